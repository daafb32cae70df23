"""Disk space that must be there before it is needed.

LMDB writes its reader table through a shared map of `lock.mdb`. Where the file has a hole, or is
written elsewhere at each write (copy-on-write), a full disk cannot say ENOSPC to such a write:
the kernel ends the process with SIGBUS. So the table gets its blocks beforehand.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

LOCK_FILE_BYTES = 128 * 1024
"""More than LMDB wants for MAX_READERS; it takes what is there."""

_GET_FLAGS = 0x80086601
_SET_FLAGS = 0x40086602
_NOCOW = 0x00800000
_FLAGS = struct.Struct("=L")
_HAS_NO_SUCH_FLAG = frozenset({errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})


def reserve_lock_file(path: Path) -> None:
    """Give the lock file of the store in `path` all its blocks; OSError when the disk is full.

    Call it only while this process has no environment open there: closing the file would end
    LMDB's own locks on it (fcntl(2), POSIX locks).
    """
    fd = os.open(path / "lock.mdb", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, LOCK_FILE_BYTES)
    finally:
        os.close(fd)


def write_in_place(directory: Path) -> None:
    """Have files made in `directory` written in place on a file system that would copy (btrfs)."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = _FLAGS.unpack(fcntl.ioctl(fd, _GET_FLAGS, bytes(_FLAGS.size)))[0]
        fcntl.ioctl(fd, _SET_FLAGS, _FLAGS.pack(flags | _NOCOW))
    except OSError as error:
        if error.errno not in _HAS_NO_SUCH_FLAG:
            raise
    finally:
        os.close(fd)
