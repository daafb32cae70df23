"""Which parts of a file have blocks: asked of the file system, also for what is not written yet.

SEEK_HOLE calls space that was allocated and not written a hole; FIEMAP (fiemap.rst) does not. tmpfs
has no FIEMAP.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator

from snapfs import ioctls

_FIEMAP = 0xC020660B
_HEADER = struct.Struct("<QQIIII")
_EXTENT = struct.Struct("<QQQQQIIII")
_EXTENTS = 64
_LAST = 1
_SECTOR_BYTES = 512


def unallocated(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the parts (from, to) of a range that have no blocks, in order; `fd` may be read or
    written."""
    at = start
    for extent, extent_end in _allocated(fd, start, end):
        if extent > at:
            yield at, min(extent, end)
        at = max(at, extent_end)
        if at >= end:
            return
    if at < end:
        yield at, end


def _allocated(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    try:
        yield from _mapped(fd, start, end)
    except OSError as error:
        if error.errno not in ioctls.NO_SUCH:
            raise
        yield from _with_data(fd, start, end)


def _mapped(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    while start < end:
        request = bytearray(_HEADER.size + _EXTENTS * _EXTENT.size)
        _HEADER.pack_into(request, 0, start, end - start, 0, 0, _EXTENTS, 0)
        fcntl.ioctl(fd, _FIEMAP, request)
        count = _HEADER.unpack_from(request)[3]
        for index in range(count):
            logical, _, length, _, _, flags, *_ = _EXTENT.unpack_from(
                request, _HEADER.size + index * _EXTENT.size
            )
            yield logical, logical + length
            start = logical + length
            if flags & _LAST:
                return
        if count < _EXTENTS:
            return


def _with_data(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Without a map: a file that has no holes at all, or what SEEK_DATA finds."""
    real = os.fstat(fd)
    block = real.st_blksize
    whole = real.st_size + -real.st_size % block
    if real.st_blocks * _SECTOR_BYTES >= whole:
        yield 0, whole
        return
    at = start
    while at < end:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        hole = os.lseek(fd, at, os.SEEK_HOLE)
        yield at - at % block, hole + -hole % block
        at = hole
