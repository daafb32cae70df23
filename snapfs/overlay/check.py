"""Tells before the first change whether a file system can hold an upper layer."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from . import xattrs
from .layer import Layer, is_whiteout
from .sealing import open_together
from .syscalls import RENAME_WHITEOUT, rename

_GOOD = "one such as ext4, xfs, btrfs, tmpfs"
_PROBE = b"snapfs-probe"
_MOVED = b"snapfs-probe2"


def check_upper(upper: Path, work: Path) -> None:
    """Raise OSError, saying what is missing, unless `upper` and `work` can be a tree's.

    Needed are: one mount of one file system for both, trusted extended attributes, whiteouts (0:0
    devices and renames that leave them). A full file system has nothing to try with and passes:
    what is removed from it makes room.
    """
    if os.stat(upper).st_dev != os.stat(work).st_dev:
        raise OSError(
            errno.EXDEV,
            f"work directory {work} is on another file system than {upper}; put both on one",
        )
    upper_fd, work_fd = open_together(os.fsencode(upper), os.fsencode(work))
    layer = Layer(work, work_fd)
    try:
        _check_mount(upper_fd, upper, work_fd, work)
        _probe(layer, work)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
    finally:
        os.close(upper_fd)
        with contextlib.suppress(OSError):  # what is wrong with it was said above
            _clean(layer.fd)
        layer.close()


def _check_mount(upper_fd: int, upper: Path, work_fd: int, work: Path) -> None:
    """Refuse two mounts, also of one file system: nothing can be renamed from one to the other."""
    if _mount_id(upper_fd) != _mount_id(work_fd):
        raise OSError(
            errno.EXDEV, f"work directory {work} is on another mount than {upper}; put both on one"
        )


def _mount_id(fd: int) -> str:
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    return next(line for line in lines if line.startswith("mnt_id:"))


def _probe(layer: Layer, work: Path) -> None:
    fd, moved = layer.fd, _MOVED
    try:
        _clean(fd)
        os.mknod(_PROBE, stat.S_IFREG | 0o600, dir_fd=fd)
    except OSError as error:
        raise _explained(error, f"cannot make files in {work}", "choose another one") from error
    try:
        xattrs.put(layer.proc(_PROBE), xattrs.OPAQUE, b"y")
    except OSError as error:
        what = f"the file system of {work} takes no trusted.* attributes"
        raise _explained(error, what, f"run as root, on {_GOOD}") from error
    try:
        rename(fd, _PROBE, fd, moved, RENAME_WHITEOUT)
        _check_whiteout(fd)
        os.unlink(_PROBE, dir_fd=fd)
    except OSError as error:
        what = f"the file system of {work} makes no whiteouts (RENAME_WHITEOUT)"
        raise _explained(error, what, f"choose {_GOOD}") from error
    try:
        os.mknod(_PROBE, stat.S_IFCHR, 0, dir_fd=fd)
        _check_whiteout(fd)
    except OSError as error:
        what = f"the file system of {work} makes no whiteouts (0:0 devices)"
        raise _explained(error, what, f"run as root, on {_GOOD}") from error


def _check_whiteout(fd: int) -> None:
    if not is_whiteout(os.stat(_PROBE, dir_fd=fd, follow_symlinks=False)):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def _explained(error: OSError, what: str, way_out: str) -> OSError:
    return OSError(error.errno, f"{what}: {error.strerror}; {way_out}")


def _clean(fd: int) -> None:
    for name in (_PROBE, _MOVED):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=fd)
