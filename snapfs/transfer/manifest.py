"""What a layer is, written down: every file of it with all that matters, in one order.

A manifest is a sequence of records, each behind its length (u32, big-endian), in MessagePack: a
header, then an entry for each file of the layer directory, the directory itself first, a directory
before its entries, siblings in the order of their bytes. Two layers have the same manifest if and
only if they hold the same, on whatever file system, so its SHA-256 names the layer's content.

In it: names, types, modes, owners, times of modification, device numbers, targets of links, hard
links, all extended attributes, data in chunks. Not in it: what one host alone can know (inode
numbers, file handles: `LOCAL_XATTRS`), access and change times, how many blocks a file has.

Codecs only: what comes from another host is checked here, before anybody acts on it.
"""

from __future__ import annotations

import hashlib
import stat
import struct
from collections.abc import Iterator
from io import BufferedReader
from typing import BinaryIO, NewType

import msgspec

from snapfs.model import DataLoss, InvalidArgument
from snapfs.transfer import chunking

Digest = NewType("Digest", bytes)
"""SHA-256, 32 bytes."""

FORMAT = 1
DIGEST_BYTES = 32
MAX_RECORD_BYTES = 64 << 20
"""Longest record: a file of about 100 GiB has one of this size."""
MAX_PATH_BYTES = 64 << 10
MAX_NAME_BYTES = 255
MAX_SIZE_BYTES = (1 << 63) - 1
MAX_MTIME_NS = (1 << 63) - 1
MAX_ID = (1 << 32) - 2
"""Greatest uid and gid: one more would say to chown(2) to leave it as it is."""

LOCAL_XATTRS = frozenset(
    (
        b"trusted.overlay.origin",
        b"trusted.overlay.uuid",
        b"trusted.overlay.snapfs.ino",
    )
)
"""Inode numbers and file handles of one host's file systems."""

_TYPES = (
    stat.S_IFREG,
    stat.S_IFDIR,
    stat.S_IFLNK,
    stat.S_IFCHR,
    stat.S_IFBLK,
    stat.S_IFIFO,
    stat.S_IFSOCK,
)
_LENGTH = struct.Struct(">I")


class Header(msgspec.Struct, frozen=True, array_like=True):
    """The rules that a manifest was made by."""

    format: int = FORMAT
    least_bytes: int = chunking.LEAST_BYTES
    wanted_bytes: int = chunking.WANTED_BYTES
    most_bytes: int = chunking.MOST_BYTES
    hole_bytes: int = chunking.HOLE_BYTES


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """A part of a file's data; what lies between chunks is zeros."""

    offset: int
    size_bytes: int
    digest: bytes


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One name in a layer; the order of fields is the order on the wire."""

    path: bytes
    """Relative to the layer; empty for the layer's own directory."""
    mode: int
    """Type and permissions, as st_mode has them."""
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    """In the order of their names, as they are on disk."""
    link: bytes = b""
    """Path of an earlier entry that is the same file; then everything else is that entry's."""
    target: bytes = b""
    """Of a symbolic link."""
    rdev: int = 0
    size_bytes: int = 0
    """Of a regular file."""
    chunks: tuple[Chunk, ...] = ()

    @property
    def is_file(self) -> bool:
        """Whether it has data of its own."""
        return stat.S_ISREG(self.mode) and not self.link


_header = msgspec.msgpack.Decoder(Header)
_entry = msgspec.msgpack.Decoder(Entry)


class Writer:
    """Writes a manifest to a file, and knows its digest."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._write(msgspec.msgpack.encode(Header()))

    def add(self, entry: Entry) -> None:
        """Write the next entry."""
        self._write(msgspec.msgpack.encode(entry))

    @property
    def digest(self) -> Digest:
        """What names a layer of the entries so far."""
        return Digest(self._hash.digest())

    def _write(self, record: bytes) -> None:
        head = _LENGTH.pack(len(record))
        self._hash.update(head)
        self._hash.update(record)
        self._file.write(head)
        self._file.write(record)


def read(file: BinaryIO) -> Iterator[Entry]:
    """Yield the entries of a manifest; they are sound each and in order.

    Raises InvalidArgument for what no layer can be, or what was made by other rules.
    """
    if not is_current(file):
        raise InvalidArgument(
            "the manifest of a layer was made by another version's rules; upgrade the older host"
        )
    order = _Order()
    for record in _records(file):
        try:
            entry = _entry.decode(record)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise _wrong(f"an entry does not decode ({error})") from error
        _check(entry)
        order.follow(entry)
        yield entry
    order.end()


def is_current(file: BinaryIO) -> bool:
    """Say whether a manifest was made by the rules of today; read its header for that."""
    header = next(_records(file), None)
    return header is not None and _decode_header(header) == Header()


def digest_of(file: BufferedReader) -> Digest:
    """Return the digest of the manifest that `file` holds."""
    return Digest(hashlib.file_digest(file, "sha256").digest())


def _records(file: BinaryIO) -> Iterator[bytes]:
    while head := file.read(_LENGTH.size):
        if len(head) != _LENGTH.size:
            raise _wrong("it ends within a record")
        size = _LENGTH.unpack(head)[0]
        if size > MAX_RECORD_BYTES:
            raise _wrong(f"a record takes {size} bytes")
        record = file.read(size)
        if len(record) != size:
            raise _wrong("it ends within a record")
        yield record


def _decode_header(record: bytes) -> Header | None:
    try:
        return _header.decode(record)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _wrong(what: str) -> DataLoss:
    return DataLoss(f"the manifest of a layer is damaged: {what}; transfer it again")


class _Order:
    """Sees to it that entries come in order, each below a directory that came before."""

    def __init__(self) -> None:
        self._above: list[bytes] = []
        """Names of the directories that the next entry may lie in."""
        self._last: list[bytes] = []
        """The last name seen in each of them."""
        self._begun = False

    def follow(self, entry: Entry) -> None:
        if not self._begun:
            if entry.path or not stat.S_ISDIR(entry.mode):
                raise _wrong("it does not begin with the layer's own directory")
            self._begun, self._last = True, [b""]
            return
        names = check_path(entry.path)
        depth = len(names) - 1
        if names[:depth] != self._above[:depth] or depth > len(self._above):
            raise _wrong(f"{entry.path!r} does not follow its directory")
        if names[depth] <= self._last[depth]:
            raise _wrong(f"{entry.path!r} is out of order")
        del self._above[depth:], self._last[depth:]
        self._last.append(names[depth])
        if stat.S_ISDIR(entry.mode):
            self._above.append(names[depth])
            self._last.append(b"")

    def end(self) -> None:
        if not self._begun:
            raise _wrong("it has no entries")


def check_path(path: bytes) -> list[bytes]:
    """Return the names in a path below a layer, or raise DataLoss when it could lead elsewhere."""
    names = path.split(b"/")
    if len(path) > MAX_PATH_BYTES or b"\0" in path:
        raise _wrong(f"path {path[:64]!r} is no path")
    if any(name in (b"", b".", b"..") or len(name) > MAX_NAME_BYTES for name in names):
        raise _wrong(f"path {path[:64]!r} leads out of the layer")
    return names


def _check(entry: Entry) -> None:
    if entry.mode >> 16 or stat.S_IFMT(entry.mode) not in _TYPES:
        raise _wrong(f"{entry.path[:64]!r} is of no known type")
    if entry.link:
        check_path(entry.link)
    if stat.S_ISDIR(entry.mode) and entry.link:
        raise _wrong(f"directory {entry.path[:64]!r} is a hard link")
    if max(entry.uid, entry.gid) > MAX_ID or min(entry.uid, entry.gid) < 0:
        raise _wrong(f"{entry.path[:64]!r} is of no possible owner")
    if not -MAX_MTIME_NS <= entry.mtime_ns <= MAX_MTIME_NS:
        raise _wrong(f"{entry.path[:64]!r} is of no possible time")
    if entry.rdev >> 32 or b"\0" in entry.target:
        raise _wrong(f"{entry.path[:64]!r} is no possible device or link")
    if not all(map(_is_xattr, (name for name, _ in entry.xattrs))):
        raise _wrong(f"{entry.path[:64]!r} has attributes that mean nothing on another host")
    if not 0 <= entry.size_bytes <= MAX_SIZE_BYTES:
        raise _wrong(f"{entry.path[:64]!r} has no possible size")
    _check_chunks(entry)


def _is_xattr(name: bytes) -> bool:
    return name not in LOCAL_XATTRS and b"\0" not in name and 0 < len(name) <= MAX_NAME_BYTES


def _check_chunks(entry: Entry) -> None:
    if entry.chunks and not entry.is_file:
        raise _wrong(f"{entry.path[:64]!r} has data and is no file")
    end = 0
    for chunk in entry.chunks:
        if chunk.offset < end or not 0 < chunk.size_bytes <= chunking.MOST_BYTES:
            raise _wrong(f"chunks of {entry.path[:64]!r} are out of order")
        if len(chunk.digest) != DIGEST_BYTES:
            raise _wrong(f"a chunk of {entry.path[:64]!r} has no digest")
        end = chunk.offset + chunk.size_bytes
    if end > entry.size_bytes:
        raise _wrong(f"chunks of {entry.path[:64]!r} lie behind its end")
