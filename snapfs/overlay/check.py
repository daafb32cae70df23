"""Tells before the first change whether a file system can hold an upper layer."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from . import xattrs
from .layer import Layer
from .sealing import open_together
from .syscalls import RENAME_WHITEOUT, rename

_GOOD = "one such as ext4, xfs, btrfs, tmpfs"
_PROBE = b"snapfs-probe"


def check_upper(upper: Path, work: Path) -> None:
    """Raise OSError, saying what is missing, unless `upper` and `work` can be a tree's.

    Needed are: one file system for both, trusted extended attributes, whiteouts (0:0 devices and
    renames that leave them).
    """
    if os.stat(upper).st_dev != os.stat(work).st_dev:
        raise OSError(
            errno.EXDEV,
            f"work directory {work} is on another file system than {upper}; put both on one",
        )
    (fd,) = open_together(os.fsencode(work))
    layer = Layer(work, fd)
    try:
        _probe(layer, work)
    finally:
        for name in (_PROBE, _PROBE + b"2"):
            _remove(layer.fd, name)
        layer.close()


def _probe(layer: Layer, work: Path) -> None:
    fd, moved = layer.fd, _PROBE + b"2"
    for name in (_PROBE, moved):
        _remove(fd, name)
    try:
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
    except OSError as error:
        what = f"the file system of {work} makes no whiteouts (RENAME_WHITEOUT)"
        raise _explained(error, what, f"choose {_GOOD}") from error


def _explained(error: OSError, what: str, way_out: str) -> OSError:
    return OSError(error.errno, f"{what}: {error.strerror}; {way_out}")


def _remove(fd: int, name: bytes) -> None:
    try:
        os.unlink(name, dir_fd=fd)
    except FileNotFoundError:
        return
