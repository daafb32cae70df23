"""Disk space that must be there before it is needed.

A removal writes too. On a full disk it would be refused, and nothing could ever be freed, so the
data file has blocks beyond its end (`Ballast`), which only what makes nothing new may use up.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from pathlib import Path

from snapfs import ioctls
from snapfs.store.faults import NO_SPACE

BALLAST_BYTES = 4 << 20
"""Blocks kept beyond the end of the data file. Half of them are for removals only."""

_BLOCK_BYTES = 512
_KEEP_SIZE = 1
_libc = ctypes.CDLL(None, use_errno=True)

_GET_FLAGS = 0x80086601
_SET_FLAGS = 0x40086602
_NOCOW = 0x00800000
_FLAGS = struct.Struct("=L")


def write_in_place(directory: Path) -> None:
    """Have files made in `directory` written in place on a file system that would copy (btrfs)."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = _FLAGS.unpack(fcntl.ioctl(fd, _GET_FLAGS, bytes(_FLAGS.size)))[0]
        fcntl.ioctl(fd, _SET_FLAGS, _FLAGS.pack(flags | _NOCOW))
    except OSError as error:
        if error.errno not in ioctls.NO_SUCH:
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
