"""Binding a tree to a volume's mount path, and what is bound there (mount(2), proc(5)).

Raises OSError. Nothing here asks the mounted file system anything.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from snapfs.model import FailedPrecondition

MS_BIND = 4096
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
FILE_SYSTEM = "fuse.snapfs"

_OCTAL = re.compile(r"\\([0-7]{3})")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Bound:
    """A mount of a tree of ours."""

    device: str
    root: str
    """Path in the lane: `/` and the id of the snapshot."""
    path: str


def bind(source: Path, target: Path) -> None:
    """Show the directory `source` at `target`, which is made when it is missing.

    FailedPrecondition when something else is mounted there, or it is a directory with files in it.
    """
    if is_bound(source, target):
        return
    if _libc.mount(os.fsencode(source), os.fsencode(target), None, ctypes.c_ulong(MS_BIND), None):
        _refuse(target)


def is_bound(source: Path, target: Path) -> bool:
    """Say whether `source` is shown at `target` already; if not, it can be. Raises as `bind`."""
    _make(target)
    if found := at(target):
        if found[-1].root == f"/{source.name}":
            return True
        raise FailedPrecondition(f"{target} has something mounted already; unmount it first")
    if os.path.ismount(target):
        raise FailedPrecondition(f"{target} has something mounted already; unmount it first")
    if any(target.iterdir()):
        raise FailedPrecondition(f"{target} has files in it; use an empty directory")
    return False


def _make(target: Path) -> None:
    try:
        target.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise FailedPrecondition(
            f"nothing can be mounted at {target}: it is no directory; name another path"
        ) from None
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise FailedPrecondition(
                f"{error.filename or target} has a dead mount; unmount it first"
            ) from error
        raise FailedPrecondition(
            f"nothing can be mounted at {target}: the directory cannot be made "
            f"({(error.strerror or str(error)).lower()}); name another path"
        ) from error


def real(target: str) -> str:
    """Return a path as tables of mounts have it: without symbolic links."""
    return os.path.realpath(target)


def unbind(target: Path, *, lazy: bool = False) -> None:
    """Unmount what is bound at `target`; nothing to do when nothing of ours is. EBUSY when used."""
    while at(target):
        flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0)
        if _libc.umount2(os.fsencode(target), flags):
            _refuse(target)


def device_of(lane: Path) -> str | None:
    """Return the device number of what is mounted at a lane's mount point; None for nothing."""
    found = [it.device for it in table() if it.path == os.fspath(lane)]
    return found[-1] if found else None


def at(target: Path, process: str = "self") -> list[Bound]:
    """Return the trees bound at `target`, lowest first."""
    return [found for found in table(process) if found.path == os.fspath(target)]


def check_nowhere(tree: Bound) -> None:
    """Raise FailedPrecondition, naming the place, when we still have a tree mounted somewhere."""
    for it in table():
        is_within = it.root == tree.root or it.root.startswith(f"{tree.root}/")
        if it.device == tree.device and is_within:
            raise FailedPrecondition(f"the volume is mounted at {it.path} too; unmount that first")


def here(tree: Bound) -> Path | None:
    """Return where we have a tree: its path, or None when something else or nothing is there."""
    is_there = any((it.device, it.root) == (tree.device, tree.root) for it in at(Path(tree.path)))
    return Path(tree.path) if is_there else None


def table(process: str = "self") -> Iterator[Bound]:
    """Yield the mounts of trees of ours in a process's mount name space."""
    table = f"/proc/{process}/mountinfo"
    # Of what ends lines elsewhere the kernel escapes the newline only.
    with open(table, encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        for line in lines:
            before, _, after = line.partition(" - ")
            if after.startswith(FILE_SYSTEM + " "):
                fields = before.split(" ")
                yield Bound(fields[2], _plain(fields[3]), _plain(fields[4]))


def _plain(escaped: str) -> str:
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), escaped)


def _refuse(target: Path) -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), os.fspath(target))
