"""Going through a directory tree: parents first, siblings in byte order of their names.

One descriptor at a time, so depth and length of paths do not matter: down by name, up by `..`. The
tree must not change meanwhile; that the way up leads back to where the way down began is checked.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Found:
    """One path, as it was met."""

    depth: int
    """0 for the top."""
    name: bytes
    """`.` for the top."""
    parent_fd: int
    """The directory that has `name`; good until the walk goes on."""
    status: os.stat_result

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def proc(self) -> str:
        """A path for system calls that take no descriptor; they must not follow links."""
        return f"/proc/self/fd/{self.parent_fd}/{os.fsdecode(self.name)}"


Lost: TypeAlias = Callable[[int, bytes, OSError], None]
"""Told of a path that cannot be read, by depth and name, when the walk has come to it."""


def walk(top: Path, lost: Lost | None = None) -> Iterator[Found]:
    """Yield the directory `top` and all below it; OSError when something cannot be read.

    With `lost` that is told of what cannot be read below the top, and the walk goes on.
    """
    place = Place(os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        yield Found(0, b".", place.fd, os.fstat(place.fd))
        waiting = [place.names()]
        while waiting:
            if not waiting[-1]:
                waiting.pop()
                if waiting:
                    place.ascend()
                continue
            name = waiting[-1].pop()
            depth = len(waiting)
            try:
                status = os.stat(name, dir_fd=place.fd, follow_symlinks=False)
            except OSError as error:
                _tell(lost, depth, name, error)
                continue
            found = Found(depth, name, place.fd, status)
            yield found
            if found.is_directory:
                try:
                    place.descend(name)
                except OSError as error:
                    _tell(lost, depth, name, error)
                    continue
                waiting.append([])
                try:
                    waiting[-1] = place.names()
                except OSError as error:
                    _tell(lost, depth, name, error)
    finally:
        place.close()


def _tell(lost: Lost | None, depth: int, name: bytes, error: OSError) -> None:
    """Tell who wants to know of an error; else it ends the walk."""
    if lost is None:
        raise error
    lost(depth, name, error)


class Place:
    """A directory that one is in, which can be left downwards and upwards."""

    def __init__(self, fd: int) -> None:
        """Takes the descriptor over."""
        self.fd = fd
        self._above: list[tuple[int, int]] = []

    def names(self) -> list[bytes]:
        """Return the names in it, the last first."""
        return sorted(map(os.fsencode, os.listdir(self.fd)), reverse=True)

    def descend(self, name: bytes) -> None:
        here = os.fstat(self.fd)
        self._move(os.open(name, _DIRECTORY, dir_fd=self.fd))
        self._above.append((here.st_dev, here.st_ino))

    def ascend(self) -> None:
        self._move(os.open("..", _DIRECTORY, dir_fd=self.fd))
        there = os.fstat(self.fd)
        if (there.st_dev, there.st_ino) != self._above.pop():
            raise OSError(errno.ESTALE, "a directory was moved while its tree was read")

    def _move(self, fd: int) -> None:
        os.close(self.fd)
        self.fd = fd

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
