"""Linux calls that the os module does not offer. No rules of the overlay live here.

Every function raises OSError with the errno of the call and the name it was about.
"""

from __future__ import annotations

import errno
import fcntl

from ._copies import copy_data, rename, set_times, set_times_of

__all__ = [
    "AT_FDCWD",
    "RENAME_EXCHANGE",
    "RENAME_NOREPLACE",
    "RENAME_WHITEOUT",
    "copy_data",
    "is_being_written",
    "rename",
    "set_times",
    "set_times_of",
]

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

AT_FDCWD = -100


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
