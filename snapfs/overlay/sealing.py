"""Directories as seen through private mounts: no path leads out of them, and lower ones take no
writer.

On such a mount the kernel follows no symbolic link that it meets on its way, and opens no device:
what a container puts in the place of a directory, between a look at a path and its use, leads to an
error. `..` is in no path of ours.

What is opened below such a descriptor carries the mount with it: the kernel refuses to open it for
writing again, by whatever way (/proc/self/fd, a FUSE backing id), and leaves its access time alone.
Kernel overlayfs looks at its lower layers in the same way (clone_private_mount). The mount is
attached nowhere and ends with the last descriptor. Linux 5.12, for links 5.14; needs CAP_SYS_ADMIN.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import os
from collections.abc import Sequence

_OPEN_TREE = 428
_MOUNT_SETATTR = 442
_OPEN_TREE_CLONE = 1
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_RDONLY = 0x1
_NODEV = 0x4
_ANY_ATIME = 0x70
_NOSYMFOLLOW = 0x200000
_NO_MOUNT = frozenset({errno.EPERM, errno.EINVAL, errno.ENOSYS})


class Atime(enum.IntEnum):
    """When reads change a file's time of access (MOUNT_ATTR_*)."""

    RELATIME = 0
    NOATIME = 0x10
    STRICTATIME = 0x20


_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = [
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    ]


_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def open_sealed(path: bytes) -> int:
    """Return an O_PATH descriptor of the directory on a read-only mount of its own.

    Where the kernel cannot make one, it is a descriptor as any other.
    """
    mount = _mount(path, _RDONLY, Atime.NOATIME)
    if mount is None:
        return os.open(path, _DIRECTORY)
    try:
        return os.open(b".", _DIRECTORY, dir_fd=mount)
    finally:
        os.close(mount)


def open_together(*paths: bytes, atime: Atime | None = None) -> list[int]:
    """Return O_PATH descriptors of directories of one file system, on one mount of their own.

    One, since nothing can be moved or linked from one mount to another. Where the kernel cannot
    make one, they are descriptors as any others, or, if it is to have an `atime` of its own,
    OSError(EOPNOTSUPP).
    """
    real = [os.path.realpath(path) for path in paths]
    top = os.path.commonpath(real)
    mount = _mount(top, 0, atime)
    if mount is not None:
        try:
            return _opened(mount, [os.path.relpath(path, top) for path in real], real)
        except FileNotFoundError:  # something is mounted on the way, which the copy is without
            pass
        finally:
            os.close(mount)
    if atime is not None:
        text = "no mount of its own can be made, which an option for times of access needs"
        raise OSError(errno.EOPNOTSUPP, text, top)
    return _opened(_AT_FDCWD, real, real)


def _opened(at: int, paths: Sequence[bytes], same: Sequence[bytes]) -> list[int]:
    """Open directories; FileNotFoundError when they are not those that `same` names."""
    with contextlib.ExitStack() as stack:
        found = []
        for path, known in zip(paths, same, strict=True):
            fd = os.open(path, _DIRECTORY, dir_fd=None if at == _AT_FDCWD else at)
            stack.callback(os.close, fd)
            if not os.path.samestat(os.fstat(fd), os.stat(known)):
                raise FileNotFoundError(errno.ENOENT, "another directory is there", path)
            found.append(fd)
        stack.pop_all()
    return found


def _mount(path: bytes, attributes: int, atime: Atime | None) -> int | None:
    """Return a mount of a directory that follows no links; None where there can be none.

    Before Linux 5.14 it follows them.
    """
    mount: int = _libc.syscall(_OPEN_TREE, _AT_FDCWD, path, _OPEN_TREE_CLONE | os.O_CLOEXEC)
    if mount < 0:
        _check_lack(path)
        return None
    for links in (_NOSYMFOLLOW, 0):
        wanted = _MountAttr(attributes | _NODEV | links, 0, 0, 0)
        if atime is not None:
            wanted.attr_set |= atime
            wanted.attr_clr = _ANY_ATIME
        size = ctypes.sizeof(wanted)
        if not _libc.syscall(
            _MOUNT_SETATTR, mount, b"", _AT_EMPTY_PATH, ctypes.byref(wanted), size
        ):
            return mount
    number = ctypes.get_errno()
    os.close(mount)
    ctypes.set_errno(number)
    _check_lack(path)
    return None


def is_sealed(fd: int) -> bool:
    """Whether a file was opened through a mount that refuses writers."""
    return bool(os.fstatvfs(fd).f_flag & os.ST_RDONLY)


def _check_lack(path: bytes) -> None:
    """Raise what is no lack of the kernel's."""
    number = ctypes.get_errno()
    if number not in _NO_MOUNT:
        raise OSError(number, os.strerror(number), path)
