"""Devices of number 0:0 that users make.

In a layer such a device is a whiteout. An overlayfs that a user mounts inside a merged tree makes
them as its own whiteouts, and must find them again. So a user's is stored as a device of another
number, which no driver has, with an attribute that tells it from any other of that number: it hides
nothing, here or for kernel overlayfs, and moves, is linked and committed as every device. Its
number is put right wherever attributes are shown.
"""

from __future__ import annotations

import os
import stat

from . import xattrs

STAND_IN = os.makedev(0, 0xD0D0)
"""Major 0 has no drivers: opening it fails as opening 0:0 does."""


def shown(rdev: int, path: bytes) -> int:
    """The device number to show for one that is stored; `path` is asked for a stand-in only."""
    return 0 if rdev == STAND_IN and is_marked(path) else rdev


def is_marked(path: bytes) -> bool:
    """Whether a device that has the stand-in's number is one."""
    return xattrs.get(path, xattrs.DEVICE) is not None


def is_whiteout_like(mode: int, rdev: int) -> bool:
    """Whether a device asked for would be a whiteout if it were made as it is."""
    return rdev == 0 and stat.S_ISCHR(mode)


def make(fd: int, path: bytes, permissions: int) -> None:
    """Make the stand-in of a 0:0 character device, at a name that nobody sees yet."""
    os.mknod(path, stat.S_IFCHR | permissions, STAND_IN, dir_fd=fd)
    mark(b"/proc/self/fd/%d/%s" % (fd, path))


def mark(path: bytes) -> None:
    """Say that a device of the stand-in's number stands for 0:0."""
    xattrs.put(path, xattrs.DEVICE, b"0:0")
