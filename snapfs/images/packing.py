"""A layer directory as the file that an image has of it: an archive, packed, with both digests."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import zstandard

from snapfs.images import manifests, tarring
from snapfs.model import NotImplementedYet

GZIP_LEVEL = 6
TAR = manifests.OCI_LAYER
TAR_GZIP = f"{TAR}+gzip"
TAR_ZSTD = f"{TAR}+zstd"
DOCKER_GZIP = manifests.DOCKER + "image.rootfs.diff.tar.gzip"


class Out(Protocol):
    """Where bytes go."""

    def write(self, data: bytes, /) -> int: ...


@dataclass(frozen=True, slots=True)
class Packed:
    """What was written."""

    media_type: str
    digest: str
    """Of the bytes written."""
    size_bytes: int
    diff_id: str
    """Digest of the archive when it is not packed."""


def pack(
    upper: Path,
    lowers: Sequence[Path],
    out: Out,
    *,
    media_type: str = TAR_GZIP,
    latest_s: int | None = None,
) -> Packed:
    """Write what the layer `upper` changes in the tree of `lowers`; the same layer, the same bytes.

    `latest_s` is the latest time that entries may have. Raises NotImplementedYet for a media type
    that layers are not written in here, OSError.
    """
    packer = _PACKERS.get(media_type)
    if packer is None:
        raise NotImplementedYet(
            f"layers are not written as {media_type!r}; use one of {', '.join(_PACKERS)}"
        )
    packed = _Hashing(out)
    with packer(cast(BinaryIO, packed)) as inner:
        plain = _Hashing(inner)
        tarring.write(upper, lowers, cast(BinaryIO, plain), latest_s=latest_s)
    return Packed(media_type, packed.digest, packed.size_bytes, plain.digest)


class _Hashing:
    """Passes bytes on, and computes their digest."""

    def __init__(self, out: Out) -> None:
        self._out = out
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.size_bytes += len(data)
        self._out.write(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is kept back here."""

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


def _as_it_is(out: BinaryIO) -> AbstractContextManager[BinaryIO]:
    return nullcontext(out)


def _gzip(out: BinaryIO) -> AbstractContextManager[BinaryIO]:
    # No name and no time: the same bytes for the same layer.
    return cast(BinaryIO, gzip.GzipFile("", "wb", GZIP_LEVEL, out, mtime=0))


def _zstd(out: BinaryIO) -> AbstractContextManager[BinaryIO]:
    return cast(BinaryIO, zstandard.ZstdCompressor().stream_writer(out, closefd=False))


_PACKERS: dict[str, Callable[[BinaryIO], AbstractContextManager[BinaryIO]]] = {
    TAR: _as_it_is,
    TAR_GZIP: _gzip,
    TAR_ZSTD: _zstd,
    DOCKER_GZIP: _gzip,
}
