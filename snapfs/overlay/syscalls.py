"""Linux calls that the os module does not offer. No rules of the overlay live here.

Every function raises OSError with the errno of the call and the name it was about.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100

_FICLONE = 0x40049409
_UTIME_OMIT = (1 << 30) - 2
_NO_CLONE = frozenset(
    {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM, errno.ETXTBSY}
)

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = [("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long)]


_renameat2 = _libc.renameat2
_renameat2.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_uint,
)
_utimensat = _libc.utimensat
_utimensat.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(_Timespec * 2),
    ctypes.c_int,
)
_futimens = _libc.futimens
_futimens.argtypes = (ctypes.c_int, ctypes.POINTER(_Timespec * 2))


def _fail(name: bytes) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), name)


def rename(old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int = 0) -> None:
    """Rename `old` to `new`, each relative to a directory descriptor (renameat2(2))."""
    if _renameat2(old_fd, old, new_fd, new, flags):
        raise _fail(old)


def _timespecs(atime_ns: int | None, mtime_ns: int | None) -> ctypes.Array[_Timespec]:
    pair = (_Timespec * 2)()
    for slot, value in zip(pair, (atime_ns, mtime_ns), strict=True):
        if value is None:
            slot.tv_nsec = _UTIME_OMIT
        else:
            slot.tv_sec, slot.tv_nsec = divmod(value, 1_000_000_000)
    return pair


def set_times(fd: int, path: bytes, atime_ns: int | None, mtime_ns: int | None) -> None:
    """Set the times of `path` (never of what a link points to); None leaves a time as it is."""
    pair = _timespecs(atime_ns, mtime_ns)
    if _utimensat(fd, path, ctypes.byref(pair), AT_SYMLINK_NOFOLLOW):
        raise _fail(path)


def set_times_of(fd: int, atime_ns: int | None, mtime_ns: int | None) -> None:
    """Set the times of an open file; None leaves a time as it is."""
    pair = _timespecs(atime_ns, mtime_ns)
    if _futimens(fd, ctypes.byref(pair)):
        raise _fail(b"fd %d" % fd)


def clone(source: int, target: int) -> bool:
    """Share all of `source`'s data with `target` (FICLONE); False where that cannot be done."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _NO_CLONE:
            return False
        raise
    return True


def is_being_written(fd: int) -> bool:
    """Whether anybody has a file open for writing, or mapped so; `fd` is open for reading only.

    The kernel grants a read lease only when there is nobody (fcntl(2), F_SETLEASE). Its process
    must ignore SIGIO, which tells of somebody who opens the file in that moment.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return True
        raise
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def copy_data(source: int, target: int, size_bytes: int) -> None:
    """Copy a file's data, holes as holes; clone it where the file system can."""
    if size_bytes == 0 or clone(source, target):
        return
    os.ftruncate(target, size_bytes)
    at = 0
    while at < size_bytes:
        extent = _next_extent(source, at, size_bytes)
        if extent is None:
            return
        at, end = extent
        _copy_range(source, target, at, end)
        at = end


def _next_extent(fd: int, at: int, size_bytes: int) -> tuple[int, int] | None:
    """The next (start, end) that holds data at or after `at`, or None."""
    try:
        start = os.lseek(fd, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return at, size_bytes
        raise
    return start, min(os.lseek(fd, start, os.SEEK_HOLE), size_bytes)


def _copy_range(source: int, target: int, at: int, end: int) -> None:
    while at < end:
        try:
            count = os.copy_file_range(source, target, end - at, at, at)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            count = _copy_block(source, target, at, end)
        if count == 0:
            raise OSError(errno.EIO, "source became shorter while it was copied")
        at += count


def _copy_block(source: int, target: int, at: int, end: int) -> int:
    block = os.pread(source, min(end - at, 1 << 20), at)
    done = 0
    while done < len(block):
        done += os.pwrite(target, block[done:], at + done)
    return done
