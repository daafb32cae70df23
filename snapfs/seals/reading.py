"""The SHA-256 of a file's data, from the page cache or from the disk itself."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os

CHUNK_BYTES = 1 << 20
_NO_DIRECT = (errno.EINVAL, errno.EOPNOTSUPP)


def digest(name: bytes, directory_fd: int, *, from_disk: bool) -> bytes:
    """Return the digest of a regular file.

    `from_disk` reads past the page cache (O_DIRECT) where the file system can, so that it finds
    what has changed on the disk below a file that is in use.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOATIME
    fd = _open(name, flags | (os.O_DIRECT if from_disk else 0), directory_fd)
    try:
        return _read(fd)
    except OSError as error:
        if not from_disk or error.errno not in _NO_DIRECT:
            raise
        return digest(name, directory_fd, from_disk=False)
    finally:
        os.close(fd)


def _open(name: bytes, flags: int, directory_fd: int) -> int:
    try:
        return os.open(name, flags, dir_fd=directory_fd)
    except OSError as error:
        if error.errno not in _NO_DIRECT:
            raise
        return os.open(name, flags & ~os.O_DIRECT, dir_fd=directory_fd)


def _read(fd: int) -> bytes:
    hash_ = hashlib.sha256()
    with mmap.mmap(-1, CHUNK_BYTES) as buffer, memoryview(buffer) as view:  # pages are aligned
        at = 0
        while count := os.preadv(fd, [view], at):
            hash_.update(view[:count])
            at += count
    return hash_.digest()
