"""OCI images built by hand: layers with whatever a test needs, as one archive for `ctr import`.

layer = Layer()
layer.file("etc/motd", b"hello")
layer.whiteout("etc/issue")
Image("example.test/two:1", [debian_layer, layer]).write(path)
"""

from __future__ import annotations

import copy
import gzip
import hashlib
import io
import json
import stat
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MTIME_NS = 1_500_000_000_123_456_789
"""Time of what a layer holds unless it says otherwise; with nanoseconds, which must survive."""

_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"


class Layer:
    """A layer's tar archive, written entry by entry, in the order given.

    Give every directory that a layer changes an entry, as real images do: only then is its time
    set, rather than that of the unpacking.
    """

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._buffer, mode="w")  # noqa: SIM115 - archive() closes it

    def directory(self, name: str, mode: int = 0o755, **more: Any) -> None:
        self._add(name, tarfile.DIRTYPE, mode, **more)

    def file(self, name: str, content: bytes = b"", mode: int = 0o644, **more: Any) -> None:
        self._add(name, tarfile.REGTYPE, mode, content=content, **more)

    def symlink(self, name: str, target: str, **more: Any) -> None:
        self._add(name, tarfile.SYMTYPE, 0o777, target=target, **more)

    def hard_link(self, name: str, target: str) -> None:
        """Add another name of `target`, with its mode and times: they are applied once more."""
        link = copy.copy(self._tar.getmember(target))
        link.name, link.type, link.linkname, link.size = name, tarfile.LNKTYPE, target, 0
        self._tar.addfile(link)

    def device(self, name: str, mode: int, major: int, minor: int, **more: Any) -> None:
        """Add a device; `mode` with its type (stat.S_IFCHR, stat.S_IFBLK)."""
        kind = tarfile.CHRTYPE if stat.S_ISCHR(mode) else tarfile.BLKTYPE
        self._add(name, kind, stat.S_IMODE(mode), device=(major, minor), **more)

    def fifo(self, name: str, mode: int = 0o644, **more: Any) -> None:
        self._add(name, tarfile.FIFOTYPE, mode, **more)

    def whiteout(self, name: str) -> None:
        """Delete what lower layers have at `name`."""
        parent, slash, last = name.rpartition("/")
        self._add(f"{parent}{slash}.wh.{last}", tarfile.REGTYPE, 0o644)

    def opaque(self, directory: str) -> None:
        """Delete what lower layers have in `directory`."""
        self._add(f"{directory}/.wh..wh..opq", tarfile.REGTYPE, 0o644)

    def _add(
        self,
        name: str,
        kind: bytes,
        mode: int,
        *,
        content: bytes = b"",
        target: str = "",
        owner: tuple[int, int] = (0, 0),
        device: tuple[int, int] = (0, 0),
        mtime_ns: int = MTIME_NS,
        xattrs: Mapping[str, str] | None = None,
    ) -> None:
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode, entry.linkname = kind, mode, target
        entry.size = len(content)
        entry.uid, entry.gid = owner
        entry.devmajor, entry.devminor = device
        entry.pax_headers = {"mtime": f"{mtime_ns // 10**9}.{mtime_ns % 10**9:09d}"}
        for key, value in (xattrs or {}).items():
            entry.pax_headers[f"SCHILY.xattr.{key}"] = value
        self._tar.addfile(entry, io.BytesIO(content))

    def archive(self) -> bytes:
        """Return the finished archive."""
        self._tar.close()
        return self._buffer.getvalue()


class Image:
    """An image of layers (archives, or files that are one), lowest first."""

    def __init__(
        self,
        name: str,
        layers: Sequence[bytes | Path],
        *,
        command: Sequence[str] = ("/bin/sh",),
        compress: bool = False,
    ) -> None:
        self.name = name
        self._archives = [it.read_bytes() if isinstance(it, Path) else it for it in layers]
        self._command = list(command)
        self._compress = compress

    @property
    def chain_id(self) -> str:
        """Name of the committed snapshot that the whole image is unpacked to (OCI image-spec)."""
        chain, *rest = self._diff_ids()
        for diff_id in rest:
            chain = f"sha256:{_digest(f'{chain} {diff_id}'.encode())}"
        return chain

    def _diff_ids(self) -> list[str]:
        return [f"sha256:{_digest(archive)}" for archive in self._archives]

    def write(self, path: Path) -> Path:
        """Write the image as one OCI archive; return its path."""
        blobs: dict[str, bytes] = {}
        layers = [self._store_layer(archive, blobs) for archive in self._archives]
        config = _store(blobs, _CONFIG, _json(self._config()))
        manifest = _store(
            blobs,
            _MANIFEST,
            _json({"schemaVersion": 2, "mediaType": _MANIFEST, "config": config, "layers": layers}),
        )
        manifest["annotations"] = {
            "io.containerd.image.name": self.name,
            "org.opencontainers.image.ref.name": self.name.rpartition(":")[2],
        }
        index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": [manifest]}
        with tarfile.open(path, "w") as tar:
            _put(tar, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
            _put(tar, "index.json", _json(index))
            for digest, blob in blobs.items():
                _put(tar, f"blobs/sha256/{digest}", blob)
        return path

    def _store_layer(self, archive: bytes, blobs: dict[str, bytes]) -> dict[str, Any]:
        if self._compress:
            return _store(blobs, f"{_LAYER}+gzip", gzip.compress(archive, 1, mtime=0))
        return _store(blobs, _LAYER, archive)

    def _config(self) -> dict[str, Any]:
        return {
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Cmd": self._command,
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "WorkingDir": "/",
            },
            "rootfs": {
                "type": "layers",
                "diff_ids": self._diff_ids(),
            },
        }


def _store(blobs: dict[str, bytes], media_type: str, blob: bytes) -> dict[str, Any]:
    digest = _digest(blob)
    blobs[digest] = blob
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(blob)}


def _digest(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _put(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))
