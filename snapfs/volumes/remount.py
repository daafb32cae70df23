"""Puts another tree in the place of one in the mount name space of another process.

Run as a program, since a process with threads cannot enter a mount name space:

    python -m snapfs.volumes.remount PID FD TARGET...

FD is a detached mount (open_tree(2)) of the new tree; a clone of it goes to each TARGET. Exit
status 0, or 1 with the reason on the standard error.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

CLONE_NEWNS = 0x00020000
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
AT_EMPTY_PATH = 0x1000
MOVE_MOUNT_F_EMPTY_PATH = 0x4
AT_FDCWD = -100
MNT_DETACH = 2

_OPEN_TREE = 428
_MOVE_MOUNT = 429
"""Numbers of system calls that are the same on every architecture."""

_libc = ctypes.CDLL(None, use_errno=True)


def open_tree(path: Path) -> int:
    """Return a descriptor of a detached mount of `path`."""
    return _clone(AT_FDCWD, os.fsencode(path), 0)


def _clone(fd: int, path: bytes, flags: int) -> int:
    made = _libc.syscall(
        _OPEN_TREE, fd, path, ctypes.c_uint(flags | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)
    )
    return int(_checked(made))


def put(tree: int, target: Path) -> None:
    """Mount what `open_tree` returned at `target`."""
    path = os.fsencode(target)
    _checked(_libc.syscall(_MOVE_MOUNT, tree, b"", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH))


def main(pid: int, tree: int, targets: list[str]) -> None:
    """Enter the mount name space of `pid` and replace the mounts at `targets`."""
    name_space = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    copies = [_clone(tree, b"", AT_EMPTY_PATH) for _ in targets]
    _checked(_libc.setns(name_space, CLONE_NEWNS))
    for target, copy in zip(targets, copies, strict=True):
        path = os.fsencode(target)
        _checked(_libc.umount2(path, MNT_DETACH))
        _checked(_libc.syscall(_MOVE_MOUNT, copy, b"", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
    except OSError as error:
        sys.exit(f"pid {sys.argv[1]}: {error}")
