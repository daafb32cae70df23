"""What a seal says of each path of a layer, and the digest that follows from it. Pure.

A *list* is the line `snapfs seal 1`, then an entry for each path: length u32 big-endian, msgpack.
Paths come parents first, siblings in byte order of their names; the layer's root is the first, at
depth 0. The digest of an entry is the SHA-256 of its msgpack form without the depth; to that of a
directory the digests of its children are added, in order. So a digest says all of a subtree, that
of the root all of the layer, and one pass over a list, or over a layer, computes it.

Not in it: times of access and change, inode numbers, block counts, the flags of chattr(1) that are
no attribute, and of 0:0 devices, which are all whiteouts, which ones are links to each other.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import msgspec

from snapfs.model import DataLoss

LINE = b"snapfs seal 1\n"
_LENGTH = struct.Struct(">I")
_LONGEST_BYTES = 1 << 24
"""An entry is a name, a link's path and attributes of at most 64 KiB a file."""

Path: TypeAlias = tuple[bytes, ...]
"""A path below a layer's root, by components; the root is empty."""


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One path of a layer."""

    depth: int
    name: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    rdev: int
    size_bytes: int
    """Of a regular file; else 0."""
    content: bytes
    """SHA-256 of a regular file's data; a symbolic link's target; else empty."""
    link: bytes
    """Of a hard link but the first: the path of the first, by `/`."""
    xattrs: tuple[tuple[bytes, bytes], ...]
    """Sorted by name, the overlay's own among them."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Entry)


def pack(entry: Entry) -> bytes:
    """Return an entry as it stands in a list."""
    raw = _encoder.encode(entry)
    return _LENGTH.pack(len(raw)) + raw


def unpack(read: Callable[[int], bytes]) -> Iterator[Entry]:
    """Yield the entries of a list; DataLoss when it is damaged or cut within an entry."""
    if read(len(LINE)) != LINE:
        raise DataLoss("the seal does not begin as one")
    while header := read(_LENGTH.size):
        length = _LENGTH.unpack(header)[0] if len(header) == _LENGTH.size else _LONGEST_BYTES
        raw = read(length) if length < _LONGEST_BYTES else b""
        if not raw or len(raw) != length:
            raise DataLoss("the seal is cut short or damaged")
        try:
            yield _decoder.decode(raw)
        except msgspec.MsgspecError as error:
            raise DataLoss(f"the seal is damaged ({error})") from error


class Digest:
    """Computes the digest of a layer from its entries, in their order."""

    def __init__(self) -> None:
        self._open: list[hashlib._Hash] = []
        """A hash for the last entry and each directory above it."""

    def add(self, entry: Entry) -> None:
        """Take the next entry; DataLoss when it cannot follow the one before."""
        if not entry.depth <= len(self._open) or (entry.depth == 0) == bool(self._open):
            raise DataLoss("the seal's entries are out of order")
        self._close(entry.depth)
        self._open.append(hashlib.sha256(_encoder.encode(msgspec.structs.replace(entry, depth=0))))

    def result(self) -> bytes:
        """Return the digest, when all entries were added; DataLoss when there were none."""
        if not self._open:
            raise DataLoss("the seal is empty")
        self._close(1)
        return self._open[0].digest()

    def _close(self, depth: int) -> None:
        while len(self._open) > depth:
            below = self._open.pop()
            self._open[-1].update(below.digest())


def with_paths(entries: Iterable[Entry]) -> Iterator[tuple[Path, Entry]]:
    """Yield each entry with its path."""
    path: list[bytes] = []
    for entry in entries:
        del path[max(entry.depth - 1, 0) :]
        if entry.depth:
            path.append(entry.name)
        yield tuple(path), entry
