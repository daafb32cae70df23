"""Layer directories on disk, reached through one descriptor each.

A path inside a layer is relative to its root and never starts with a slash. Nothing here follows a
symbolic link: every directory on the way was seen as a directory before it became part of a path,
and on the mount that it is reached through (sealing.py) the kernel follows none.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from . import xattrs
from .sealing import open_sealed

if TYPE_CHECKING:
    from ._names import Index

_LONG_BYTES = 3800
"""Paths above this are reached in steps; PATH_MAX less room for /proc/self/fd."""
_STEPS_KEPT = 64
DOT_WHITEOUT = b".wh."
DOT_OPAQUE = b".wh..wh..opq"


class Layer:
    """One layer's root directory."""

    __slots__ = (
        "_proc",
        "_steps",
        "device",
        "dot_whiteouts",
        "fd",
        "is_protected",
        "path",
        "users",
    )

    def __init__(self, path: bytes | Path, fd: int, *, dot_whiteouts: bool = False) -> None:
        """`fd` is an O_PATH descriptor of it (sealing.py), which is the layer's from now on."""
        self.path = os.fsencode(path)
        self.dot_whiteouts = dot_whiteouts
        """`.wh.NAME` hides NAME and `.wh..wh..opq` a whole directory of the layers below."""
        self.fd = fd
        self.device = os.fstat(self.fd).st_dev
        self.users = 1
        self._proc = b"/proc/self/fd/%d/" % self.fd
        self._steps: dict[bytes, int] = {}
        """Directories on the way to long paths; the one used last is the last one."""
        self.is_protected = xattrs.get(self._proc + b".", xattrs.PROTECTED) is not None
        """Files in it may be immutable or append-only (protection.py)."""

    def at(self, path: bytes) -> tuple[int, bytes]:
        """Return a descriptor and a path relative to it that lead to `path`."""
        if len(path) < _LONG_BYTES:
            return self.fd, path
        return self._step(path)

    def proc(self, path: bytes) -> bytes:
        """Return an absolute path for calls that take no directory descriptor."""
        if len(path) < _LONG_BYTES:
            return self._proc + path
        fd, rest = self._step(path)
        return b"/proc/self/fd/%d/%s" % (fd, rest)

    def _step(self, path: bytes) -> tuple[int, bytes]:
        """Walk to a long path through descriptors of directories on the way.

        Those that were used last are kept, and with them what was just returned.
        """
        fd, start = self.fd, 0
        while len(path) - start >= _LONG_BYTES:
            cut = path.rindex(b"/", start, start + _LONG_BYTES)
            fd = self._kept(path[:cut], fd, path[start:cut])
            start = cut + 1
        while len(self._steps) > _STEPS_KEPT:
            os.close(self._steps.pop(next(iter(self._steps))))
        return fd, path[start:]

    def _kept(self, key: bytes, base: int, rest: bytes) -> int:
        fd = self._steps.pop(key, None)
        if fd is None:
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(rest, flags, dir_fd=base)
        self._steps[key] = fd  # as the last one used
        return fd

    def forget_steps(self) -> None:
        """Close what long paths were reached through; call when a directory moved."""
        for fd in self._steps.values():
            os.close(fd)
        self._steps.clear()

    def close(self) -> None:
        """Close the descriptors. Idempotent."""
        self.forget_steps()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Layers:
    """Opened lower layers, shared by all trees of a lane that have them in their chain."""

    def __init__(self) -> None:
        self._open: dict[bytes, Layer] = {}
        self.indexes: WeakValueDictionary[tuple[object, ...], Index] = WeakValueDictionary()
        """Merged names of stacks of directories, for as long as a node of any tree has them."""

    def get(self, path: bytes | Path, *, dot_whiteouts: bool = False) -> Layer:
        """Open a layer, or count another user of it; all users want the same of it."""
        key = os.fsencode(path)
        layer = self._open.get(key)
        if layer is None:
            layer = self._open[key] = Layer(key, open_sealed(key), dot_whiteouts=dot_whiteouts)
        else:
            layer.users += 1
        return layer

    def put(self, layer: Layer) -> None:
        """Count a user less; the last one closes the layer."""
        layer.users -= 1
        if not layer.users:
            del self._open[layer.path]
            layer.close()


class Place:
    """A directory in one lower layer."""

    __slots__ = ("depth", "layer", "prefix", "xwhiteouts")

    def __init__(self, layer: Layer, depth: int, prefix: bytes, *, xwhiteouts: bool) -> None:
        self.layer = layer
        self.depth = depth
        """Position of the layer in the tree's chain; 0 is the direct parent."""
        self.prefix = prefix
        """Empty for the layer's root, otherwise the path with a slash behind it."""
        self.xwhiteouts = xwhiteouts
        """Holds whiteouts that are empty files with an attribute (kernel 6.7)."""

    @property
    def path(self) -> bytes:
        return self.prefix[:-1] or b"."

    def below(self, name: bytes, *, xwhiteouts: bool = False) -> Place:
        """The directory `name` in this one."""
        return Place(self.layer, self.depth, b"%s%s/" % (self.prefix, name), xwhiteouts=xwhiteouts)

    def own(self, path: bytes) -> frozenset[bytes]:
        return xattrs.own(self.layer.proc(path))

    def source(self) -> tuple[bytes, int, bool, bool]:
        """What an Index reads: path, device, whether empty files or names may be whiteouts."""
        layer = self.layer
        return layer.proc(self.path), layer.device, self.xwhiteouts, layer.dot_whiteouts

    def is_dot_opaque(self) -> bool:
        """Whether a marker file says that nothing of the layers below is seen here."""
        return self.layer.dot_whiteouts and self._has(DOT_OPAQUE)

    def dot_hides(self, name: bytes) -> bool:
        """Whether a whiteout with a name of its own hides `name` in the layers below."""
        return self.layer.dot_whiteouts and self._has(DOT_WHITEOUT + name)

    def _has(self, name: bytes) -> bool:
        try:
            return stat_or_none(*self.layer.at(self.prefix + name)) is not None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # so there is none for such a name
                return False
            raise


def scan(path: bytes) -> Iterator[os.DirEntry[bytes]]:
    """Yield a directory's entries and close it."""
    with os.scandir(path) as entries:
        yield from entries


def entry_type(entry: os.DirEntry[bytes]) -> int:
    """File type (S_IFMT bits) of an entry, 0 for a 0:0 character device; stats only devices."""
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    if entry.is_symlink():
        return stat.S_IFLNK
    real = entry.stat(follow_symlinks=False)
    return 0 if is_whiteout(real) else stat.S_IFMT(real.st_mode)


def is_whiteout(real: os.stat_result) -> bool:
    """Whether this is a 0:0 character device (overlayfs.rst, whiteouts)."""
    return real.st_rdev == 0 and stat.S_ISCHR(real.st_mode)


def stat_or_none(fd: int, path: bytes) -> os.stat_result | None:
    """lstat, with None for a name that is not there."""
    try:
        return os.stat(path, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def refuse(number: int, name: bytes) -> OSError:
    """An OSError as the system would raise it."""
    return OSError(number, os.strerror(number), name)


def not_found(name: bytes) -> OSError:
    return refuse(errno.ENOENT, name)
