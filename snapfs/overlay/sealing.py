"""Directories as seen through a private mount that nobody can write through.

What is opened below such a descriptor carries the mount with it: the kernel refuses to open it for
writing again, by whatever way (/proc/self/fd, a FUSE backing id), and leaves its access time alone.
Kernel overlayfs looks at its lower layers in the same way (clone_private_mount). The mount is
attached nowhere and ends with the last descriptor. Linux 5.12; needs CAP_SYS_ADMIN.
"""

from __future__ import annotations

import ctypes
import os

_OPEN_TREE = 428
_MOUNT_SETATTR = 442
_OPEN_TREE_CLONE = 1
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_RDONLY = 0x1
_NOATIME = 0x10
_ANY_ATIME = 0x70

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = [
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    ]


_SEALED = _MountAttr(_RDONLY | _NOATIME, _ANY_ATIME, 0, 0)


def open_sealed(path: bytes) -> int:
    """Return an O_PATH descriptor of the directory on a read-only mount of its own.

    Raises OSError where the kernel cannot make one.
    """
    mount = _libc.syscall(_OPEN_TREE, _AT_FDCWD, path, _OPEN_TREE_CLONE | os.O_CLOEXEC)
    if mount < 0:
        raise _failed(path)
    try:
        size = ctypes.sizeof(_SEALED)
        if _libc.syscall(_MOUNT_SETATTR, mount, b"", _AT_EMPTY_PATH, ctypes.byref(_SEALED), size):
            raise _failed(path)
        return os.open(b".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
    finally:
        os.close(mount)


def is_sealed(fd: int) -> bool:
    """Whether a file was opened through a mount that refuses writers."""
    return bool(os.fstatvfs(fd).f_flag & os.ST_RDONLY)


def _failed(path: bytes) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), path)
