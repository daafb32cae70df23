"""Files in layer directories by their path, with no symbolic link followed on the way."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)


class Place:
    """A layer directory, open; remembers the directory that it was last asked about."""

    def __init__(self, layer: Path) -> None:
        self._root = os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._last: tuple[bytes, int] | None = None

    def directory(self, path: bytes) -> int:
        """Return a descriptor (O_PATH) of a directory; valid until the next call."""
        if not path:
            return self._root
        if self._last is None or self._last[0] != path:
            self._forget()
            self._last = path, _walk(self._root, path)
        return self._last[1]

    def parent(self, path: bytes) -> tuple[int, bytes]:
        """Return the directory that holds `path`, valid until the next call, and its name there."""
        above, _, name = path.rpartition(b"/")
        return self.directory(above), name

    def open(self, path: bytes, flags: int = os.O_RDONLY, mode: int = 0o600) -> int:
        """Open a regular file. Raises OSError, ELOOP for a symbolic link, ENXIO for others."""
        directory, name = self.parent(path)
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(name, flags, mode, dir_fd=directory)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO), path)
        return fd

    def find(self, path: bytes) -> int | None:
        """Open a regular file for reading; None when there is none."""
        try:
            return self.open(path)
        except OSError as error:
            if error.errno in _NOT_THERE:
                return None
            raise

    def has(self, path: bytes) -> bool:
        """Say whether anything has this name."""
        try:
            directory, name = self.parent(path)
            os.stat(name, dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno in _NOT_THERE:
                return False
            raise
        return True

    def close(self) -> None:
        self._forget()
        os.close(self._root)

    def _forget(self) -> None:
        if self._last is not None:
            os.close(self._last[1])
            self._last = None


def _walk(root: int, path: bytes) -> int:
    fd = os.dup(root)
    for name in path.split(b"/"):
        try:
            inner = os.open(name, _STEP, dir_fd=fd)
        finally:
            os.close(fd)
        fd = inner
    return fd


@contextmanager
def opened(layers: Sequence[Path]) -> Iterator[list[Place]]:
    """Open layer directories for the block."""
    places: list[Place] = []
    try:
        for layer in layers:
            places.append(Place(layer))
        yield places
    finally:
        for place in places:
            place.close()


def find_base(below: Sequence[Place], path: bytes) -> tuple[int, int] | None:
    """Return the number of the nearest layer that has a file of this path, and the file, open.

    The first layer that has the name at all decides: what is below something else is not its past.
    """
    for number, place in enumerate(below):
        if place.has(path):
            fd = place.find(path)
            return None if fd is None else (number, fd)
    return None
