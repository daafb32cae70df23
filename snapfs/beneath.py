"""Opening what is below a directory whose names others may change meanwhile.

A path of several names is walked by the kernel, and each of its directories may have become a
symbolic link since it was looked at. openat2(2) refuses to follow one, or to leave the directory
(Linux 5.6; before that the walk goes name by name).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

_OPENAT2 = 437
_NO_MAGIC_LINKS, _NO_LINKS, _BENEATH = 0x02, 0x04, 0x08
_HOW = struct.Struct("=QQQ")
_STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_libc = ctypes.CDLL(None, use_errno=True)


def open_beneath(directory: int, path: bytes, flags: int) -> int:
    """Open what a relative path leads to without leaving `directory` or following a link.

    Raises OSError: ELOOP or ENOTDIR when there is a link now. The file is close-on-exec. Not for
    making files.
    """
    how = _HOW.pack(flags | os.O_CLOEXEC, 0, _BENEATH | _NO_LINKS | _NO_MAGIC_LINKS)
    fd: int = _libc.syscall(
        ctypes.c_long(_OPENAT2), ctypes.c_int(directory), path, how, ctypes.c_size_t(len(how))
    )
    if fd >= 0:
        return fd
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EPERM):  # the latter where a filter does not know it
        return by_steps(directory, path, flags)
    raise OSError(number, os.strerror(number), path)


def by_steps(directory: int, path: bytes, flags: int) -> int:
    """The same on any kernel, a name at a time."""
    names = path.split(b"/")
    if b".." in names or not names[0]:
        raise OSError(errno.EXDEV, "path leads out of its directory", path)
    here = directory
    try:
        for name in names[:-1]:
            there = os.open(name or b".", _STEP, dir_fd=here)
            if here != directory:
                os.close(here)
            here = there
        return os.open(names[-1] or b".", flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
    finally:
        if here != directory:
            os.close(here)
