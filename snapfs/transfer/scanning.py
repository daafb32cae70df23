"""Reading a layer directory into the entries of its manifest; nothing in it is followed."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from snapfs.transfer import chunking
from snapfs.transfer.manifest import LOCAL_XATTRS, Chunk, Entry

_ABSENT = (errno.ENODATA, errno.EOPNOTSUPP)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def scan(layer: Path) -> Iterator[Entry]:
    """Yield the entries of a layer that nobody changes, in the order of a manifest.

    Reads all data, with a descriptor for each level of directories. Raises OSError.
    """
    root = os.open(layer, _DIRECTORY)
    stack = [_Open(root, b"")]
    try:
        yield _entry(root, b"", os.fstat(root))
        seen: dict[tuple[int, int], bytes] = {}
        while stack:
            here = stack[-1]
            name = next(here.names, None)
            if name is None:
                os.close(stack.pop().fd)
                continue
            found = os.stat(name, dir_fd=here.fd, follow_symlinks=False)
            if not stat.S_ISDIR(found.st_mode):
                yield _file(here.fd, name, here.prefix + name, found, seen)
                continue
            path = here.prefix + name
            stack.append(_Open(os.open(name, _DIRECTORY, dir_fd=here.fd), path + b"/"))
            yield _entry(stack[-1].fd, path, found)
    finally:
        for each in stack:
            os.close(each.fd)


class _Open:
    """A directory on the way, and the names in it that are still to be looked at."""

    def __init__(self, fd: int, prefix: bytes) -> None:
        self.fd = fd
        self.prefix = prefix
        self.names = iter(sorted(map(os.fsencode, os.listdir(fd))))


def _file(
    directory: int,
    name: bytes,
    path: bytes,
    found: os.stat_result,
    seen: dict[tuple[int, int], bytes],
) -> Entry:
    """`seen` has the first path of each file that has several names."""
    if found.st_nlink > 1:
        first = seen.setdefault((found.st_dev, found.st_ino), path)
        if first != path:
            return Entry(path, stat.S_IFMT(found.st_mode), link=first)
    if stat.S_ISREG(found.st_mode):
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    else:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        return _entry(fd, path, found)
    finally:
        os.close(fd)


def _entry(fd: int, path: bytes, found: os.stat_result) -> Entry:
    kind = stat.S_IFMT(found.st_mode)
    is_device = kind in (stat.S_IFCHR, stat.S_IFBLK)
    is_file = kind == stat.S_IFREG
    return Entry(
        path,
        found.st_mode,
        found.st_uid,
        found.st_gid,
        found.st_mtime_ns,
        tuple(_xattrs(fd)),
        target=os.readlink(b"", dir_fd=fd) if kind == stat.S_IFLNK else b"",
        rdev=found.st_rdev if is_device else 0,
        size_bytes=found.st_size if is_file else 0,
        chunks=tuple(_chunks(fd)) if is_file else (),
    )


def _chunks(fd: int) -> Iterator[Chunk]:
    for offset, data in chunking.chunks(fd):
        yield Chunk(offset, len(data), hashlib.sha256(data).digest())


def _xattrs(fd: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield names and values; those of links and devices are reached through /proc."""
    path = b"/proc/self/fd/%d" % fd
    try:
        names = os.listxattr(path)
    except OSError as error:
        if error.errno in _ABSENT:
            return
        raise
    for name in sorted(map(os.fsencode, names)):
        if name not in LOCAL_XATTRS:
            yield name, os.getxattr(path, name)
