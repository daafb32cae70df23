"""Copies of single entries of a layer, with everything that the overlay keeps on them.

Unlike a copy-up this keeps the overlay's own attributes: the copy is for a layer of the same chain.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Container

from . import xattrs
from .syscalls import AT_FDCWD, copy_data, set_times, set_times_of

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME | os.O_CLOEXEC
"""Not blocking: a FIFO may have taken the file's place."""
NONE_LEFT_OUT: frozenset[bytes] = frozenset()


def copy_entry(source: bytes, target: bytes, real: os.stat_result) -> None:
    """Copy a file of any kind but a directory; its data is cloned where that can be done.

    The source must be as `real` says, or OSError; a file that grows meanwhile is copied in part.
    """
    if stat.S_ISREG(real.st_mode):
        _copy_regular(source, target, real)
        return
    if stat.S_ISLNK(real.st_mode):
        os.symlink(os.readlink(source), target)
    else:
        os.mknod(target, stat.S_IFMT(real.st_mode) | 0o600, real.st_rdev)
    os.chown(target, real.st_uid, real.st_gid, follow_symlinks=False)
    copy_attributes(source, target)
    if not stat.S_ISLNK(real.st_mode):
        os.chmod(target, stat.S_IMODE(real.st_mode))
    set_times(AT_FDCWD, target, real.st_atime_ns, real.st_mtime_ns)


def _copy_regular(source: bytes, target: bytes, real: os.stat_result) -> None:
    reading = os.open(source, _READ)
    try:
        if not os.path.samestat(os.fstat(reading), real):
            raise OSError(errno.ESTALE, "the file became another while it was copied", source)
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            copy_data(reading, writing, os.fstat(reading).st_size)
            os.fchown(writing, real.st_uid, real.st_gid)
            copy_attributes(source, target)
            os.fchmod(writing, stat.S_IMODE(real.st_mode))
            set_times_of(writing, real.st_atime_ns, real.st_mtime_ns)
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def dress_directory(
    source: bytes, target: bytes, real: os.stat_result, leave_out: Container[bytes]
) -> None:
    """Give a directory owner, attributes, mode and times of another.

    Once it is filled: before, what is made in it would inherit its default ACL.
    """
    os.chown(target, real.st_uid, real.st_gid)
    copy_attributes(source, target, leave_out)
    os.chmod(target, stat.S_IMODE(real.st_mode))
    set_times(AT_FDCWD, target, real.st_atime_ns, real.st_mtime_ns)


def copy_attributes(
    source: bytes, target: bytes, leave_out: Container[bytes] = NONE_LEFT_OUT
) -> None:
    """Copy extended attributes, the overlay's own too."""
    for text in os.listxattr(source, follow_symlinks=False):
        name = os.fsencode(text)
        if name in leave_out:
            continue
        value = xattrs.get(source, name)
        if value is not None:
            os.setxattr(target, name, value, follow_symlinks=False)


def whiteout(target: bytes) -> None:
    """Hide a name of the layers below."""
    os.mknod(target, stat.S_IFCHR | 0o600, os.makedev(0, 0))
