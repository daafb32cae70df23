"""Writing data and zeros into files without taking blocks for zeros where that can be avoided."""

from __future__ import annotations

import ctypes
import errno
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

_KEEP_SIZE = 1
_PUNCH_HOLE = 2
_PAGE_BYTES = 4096
_ZEROS = bytes(_PAGE_BYTES)


def write(fd: int, offset: int, data: bytes) -> None:
    """Write all of `data`; whole pages of zeros over a hole leave it one. Raises OSError."""
    if _ZEROS not in data:
        _write(fd, offset, data)
        return
    begin = 0
    for at in range(-offset % _PAGE_BYTES, len(data) - _PAGE_BYTES + 1, _PAGE_BYTES):
        if data[at : at + _PAGE_BYTES] == _ZEROS and _is_hole(fd, offset + at, _PAGE_BYTES):
            _write(fd, offset + begin, data[begin:at])
            begin = at + _PAGE_BYTES
    _write(fd, offset + begin, data[begin:])


def clear(fd: int, offset: int, count: int) -> None:
    """Make zeros of a range that is not to keep what it holds. Raises OSError."""
    if _is_hole(fd, offset, count):
        return
    if _libc.fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, count) == 0:
        return
    number = ctypes.get_errno()
    if number not in (errno.EOPNOTSUPP, errno.ENOSYS):
        raise OSError(number, os.strerror(number))
    for at in range(0, count, _PAGE_BYTES):
        _write(fd, offset + at, _ZEROS[: min(_PAGE_BYTES, count - at)])


def _is_hole(fd: int, offset: int, count: int) -> bool:
    try:
        return os.lseek(fd, offset, os.SEEK_DATA) >= offset + count
    except OSError as error:
        if error.errno == errno.ENXIO:  # no data from here to the end
            return True
        raise


def _write(fd: int, offset: int, data: bytes) -> None:
    view, at = memoryview(data), 0
    while at < len(view):
        at += os.pwrite(fd, view[at:], offset + at)
