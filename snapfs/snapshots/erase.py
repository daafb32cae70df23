"""Deleting a directory tree of any depth, in slices of time.

Subdirectories are moved up to the top before they are emptied, so neither depth nor the length of
paths matters, two descriptors do, and a run that stopped half-way is simply run again. Files go
while their directory is read, so a run gets on however long a directory is. The kernel
refuses to move or delete a mount point (EBUSY), so nothing mounted inside is ever entered.
"""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class OutOfTime(Exception):
    """The slice of time is over and something is left."""


def erase(path: Path, *, budget_s: float, clock_s: Callable[[], float] = time.monotonic) -> bool:
    """Delete the directory at `path`; say whether it is gone, or time ran out first.

    Each call gets on, also when `budget_s` is over before anything was found. A path that does not
    exist is gone. OSError when something cannot be deleted; what could be before that is.
    """
    try:
        top = os.open(path, _DIRECTORY)
    except FileNotFoundError:
        return True
    try:
        _Eraser(top, clock_s, clock_s() + budget_s).empty_top()
    except OutOfTime:
        return False
    finally:
        os.close(top)
    path.rmdir()
    return True


class _Eraser:
    """Empties the directory open as `top`."""

    def __init__(self, top: int, clock_s: Callable[[], float], until_s: float) -> None:
        self._top = top
        self._clock_s = clock_s
        self._until_s = until_s
        self._has_begun = False
        self._numbers = itertools.count()
        self._waiting: list[str] = []

    def empty_top(self) -> None:
        self._waiting = self._unlink_files(self._top)
        while self._waiting:
            name = self._waiting.pop()
            with suppress(FileNotFoundError):
                self._empty(name)
                os.rmdir(name, dir_fd=self._top)
                self._has_begun = True

    def _empty(self, name: str) -> None:
        fd = os.open(name, _DIRECTORY, dir_fd=self._top)
        try:
            for below in self._unlink_files(fd):
                self._remove_or_move_up(fd, below)
        finally:
            os.close(fd)

    def _unlink_files(self, fd: int) -> list[str]:
        """Delete all but directories in the directory open as `fd`; return those."""
        directories = []
        with os.scandir(fd) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    directories.append(entry.name)
                    continue
                self._check_time()
                with suppress(FileNotFoundError):
                    os.unlink(entry.name, dir_fd=fd)
                    self._has_begun = True
        return directories

    def _remove_or_move_up(self, fd: int, name: str) -> None:
        self._check_time()
        try:
            os.rmdir(name, dir_fd=fd)
            self._has_begun = True
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            self._waiting.append(self._move_up(fd, name))

    def _move_up(self, fd: int, name: str) -> str:
        while True:
            moved = f"{name[:32]}.{next(self._numbers)}"
            try:
                os.rename(name, moved, src_dir_fd=fd, dst_dir_fd=self._top)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
            else:
                self._has_begun = True
                return moved

    def _check_time(self) -> None:
        if self._has_begun and self._clock_s() >= self._until_s:
            raise OutOfTime
