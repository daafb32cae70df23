"""Disk space that must be there before it is needed.

LMDB writes its reader table through a shared map of `lock.mdb`. Where the file has a hole, or is
written elsewhere at each write (copy-on-write), a full disk cannot say ENOSPC to such a write:
the kernel ends the process with SIGBUS. So the table gets its blocks beforehand.

A removal writes too. On a full disk it would be refused, and nothing could ever be freed, so the
data file has blocks beyond its end (`Ballast`), which only what makes nothing new may use up.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from pathlib import Path

from snapfs.store.faults import NO_SPACE

LOCK_FILE_BYTES = 128 * 1024
"""More than LMDB wants for MAX_READERS; it takes what is there."""

BALLAST_BYTES = 4 << 20
"""Blocks kept beyond the end of the data file. Half of them are for removals only."""

_BLOCK_BYTES = 512
_KEEP_SIZE = 1
_libc = ctypes.CDLL(None, use_errno=True)

_GET_FLAGS = 0x80086601
_SET_FLAGS = 0x40086602
_NOCOW = 0x00800000
_FLAGS = struct.Struct("=L")
_HAS_NO_SUCH_FLAG = frozenset({errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})


def reserve_lock_file(path: Path) -> None:
    """Give the lock file of the store in `path` all its blocks; OSError when the disk is full.

    One that has them is left alone: xfs would refuse on a full disk.

    Call it only while this process has no environment open there: closing the file would end
    LMDB's own locks on it (fcntl(2), POSIX locks).
    """
    fd = os.open(path / "lock.mdb", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        found = os.fstat(fd)
        if min(found.st_size, found.st_blocks * _BLOCK_BYTES) < LOCK_FILE_BYTES:
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


class Ballast:
    """Disk blocks behind the end of the data file in `path`, whose size stays as it is.

    Not thread-safe: it belongs to the writer. Where a file system cannot do it, nothing is done.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path / "data.mdb", os.O_RDWR | os.O_CLOEXEC)
        self._end = os.fstat(self._fd).st_blocks * _BLOCK_BYTES
        """The file has its blocks up to here."""
        self._is_possible = True

    def secure(self) -> bool:
        """See to it that there are blocks for what follows; say whether something new may be made.

        Costs one fstat(2), and one fallocate(2) whenever half of the blocks are used up.
        """
        size = os.fstat(self._fd).st_size
        if not self._is_possible or self._end - size >= BALLAST_BYTES // 2:
            return True
        start = max(size, self._end)
        enough = self._reach(start, size + BALLAST_BYTES)
        return enough or self._reach(start, size + BALLAST_BYTES // 2) or not self._is_possible

    def _reach(self, start: int, end: int) -> bool:
        """Give the file its blocks from `start` to `end`; say whether it has them.

        Only those that it lacks: xfs wants room for all that it is asked for, also for what is
        there.
        """
        if _libc.fallocate(self._fd, _KEEP_SIZE, *map(ctypes.c_int64, (start, end - start))) == 0:
            self._end = end
            return True
        self._is_possible = ctypes.get_errno() in NO_SPACE
        return False

    def close(self) -> None:
        """End it; the blocks stay with the file."""
        os.close(self._fd)
