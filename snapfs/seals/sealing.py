"""Making a seal: reading a layer to its end, and writing the list and its digest."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from snapfs.seals import reading
from snapfs.seals.entries import LINE, Digest, Entry, pack, unpack
from snapfs.seals.entries import Path as Components
from snapfs.seals.walking import Found, walk

SEAL = "seal"
"""Name of the list beside a layer's `fs`."""

_WHITEOUT = os.makedev(0, 0)


UNREADABLE = b"cannot be read: "
"""Begins the content of a file that could not be read, in place of its digest."""


def entries(
    layer: Path, *, doubtful: bool = False, lost: dict[Components, OSError] | None = None
) -> Iterator[Entry]:
    """Yield what a seal says of the directory `layer`, reading all of it; OSError.

    A `doubtful` layer is read from the disk, past the page cache, and a file that cannot be read
    has the reason as its content. With `lost` other errors below the top go there, by path.
    """
    reader = _Reader(doubtful=doubtful, lost=lost)
    for found in walk(layer, None if lost is None else reader.lose):
        yield reader.entry(found)


def seal(layer: Path, file: Path) -> bytes:
    """Write the list of `layer` to `file`, whole or not at all, durably; return the digest."""
    draft = file.with_name(f"{file.name}.new")
    draft.unlink(missing_ok=True)  # who died over it may not be dead yet, and writes elsewhere
    digest = Digest()
    with draft.open("wb") as out:
        out.write(LINE)
        for entry in entries(layer):
            digest.add(entry)
            out.write(pack(entry))
        out.flush()
        os.fsync(out.fileno())
    draft.rename(file)
    _sync_directory(file.parent)
    return digest.result()


def measure(layer: Path) -> bytes:
    """Return the digest of a layer as it is."""
    digest = Digest()
    for entry in entries(layer):
        digest.add(entry)
    return digest.result()


def digest_of(file: Path) -> bytes:
    """Return the digest that a list has; DataLoss when it is damaged, OSError."""
    digest = Digest()
    with file.open("rb") as source:
        for entry in unpack(source.read):
            digest.add(entry)
    return digest.result()


class _Reader:
    """Turns what a walk finds into entries; knows the files that it met before."""

    def __init__(self, *, doubtful: bool, lost: dict[Components, OSError] | None) -> None:
        self._doubtful = doubtful
        self._lost = lost
        self._path: list[bytes] = []
        self._linked: dict[tuple[int, int], tuple[bytes, bytes]] = {}
        """By device and inode: path and content."""

    def entry(self, found: Found) -> Entry:
        status, is_top = found.status, found.depth == 0
        del self._path[max(found.depth - 1, 0) :]
        if not is_top:
            self._path.append(found.name)
        content, link, xattrs = self._inside(found)
        return Entry(
            depth=found.depth,
            name=b"" if is_top else found.name,
            mode=status.st_mode,
            uid=status.st_uid,
            gid=status.st_gid,
            mtime_ns=status.st_mtime_ns,
            rdev=status.st_rdev,
            size_bytes=status.st_size if stat.S_ISREG(status.st_mode) else 0,
            content=content,
            link=link,
            xattrs=xattrs,
        )

    def lose(self, depth: int, name: bytes, error: OSError) -> None:
        """Note that a path cannot be read."""
        if self._lost is None:
            raise error
        self._lost[(*self._path[: max(depth - 1, 0)], name)] = error

    def _inside(self, found: Found) -> tuple[bytes, bytes, tuple[tuple[bytes, bytes], ...]]:
        try:
            return *self._content(found), tuple(_xattrs(found))
        except OSError as error:
            if found.depth == 0:
                raise
            self.lose(found.depth, found.name, error)
            return b"", b"", ()

    def _content(self, found: Found) -> tuple[bytes, bytes]:
        status = found.status
        is_whiteout = stat.S_ISCHR(status.st_mode) and status.st_rdev == _WHITEOUT
        if found.is_directory or is_whiteout or status.st_nlink == 1:
            return self._read(found), b""
        identity = (status.st_dev, status.st_ino)
        if identity in self._linked:
            first, content = self._linked[identity]
            return content, first
        content = self._read(found)
        self._linked[identity] = (b"/".join(self._path), content)
        return content, b""

    def _read(self, found: Found) -> bytes:
        if stat.S_ISREG(found.status.st_mode):
            return self._digest(found)
        if stat.S_ISLNK(found.status.st_mode):
            return os.readlink(found.name, dir_fd=found.parent_fd)
        return b""

    def _digest(self, found: Found) -> bytes:
        try:
            return reading.digest(found.name, found.parent_fd, from_disk=self._doubtful)
        except OSError as error:
            if not self._doubtful:
                raise
            return UNREADABLE + os.strerror(error.errno or 0).encode()


def _xattrs(found: Found) -> Iterator[tuple[bytes, bytes]]:
    for name in sorted(os.listxattr(found.proc, follow_symlinks=False)):
        yield os.fsencode(name), os.getxattr(found.proc, name, follow_symlinks=False)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
