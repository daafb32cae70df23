"""Keeping the files of removed snapshots for a while, for who copies layers beside the service.

A hold is a shared lock (flock) on the directory of layers; whoever deletes layer directories asks
first whether there is one. A snapshot whose row was there when the hold began keeps its files until
the hold ends: its removal comes later, and its deletion asks after that. The kernel ends the lock
with its holder, however that ends.

A hold gives way when the file system gets full: then it is lost, and says so from before the moment
at which anything can be deleted.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LEAST_FREE = 0.05
"""Share of blocks or inodes that must be left for a hold to go on."""
_POLL_S = 1.0


class Hold:
    """Whether layers are still kept."""

    def __init__(self) -> None:
        self._lost = threading.Event()

    @property
    def is_lost(self) -> bool:
        """Whether files of removed snapshots may have been deleted."""
        return self._lost.is_set()

    def lose(self) -> None:
        self._lost.set()


@contextmanager
def held(layers: Path) -> Iterator[Hold]:
    """Let nobody delete layer directories for the block; OSError when there are none."""
    fd, hold, is_over = _open(layers), Hold(), threading.Event()

    def watch() -> None:
        while not is_short(fd):
            if is_over.wait(_POLL_S):
                return
        hold.lose()
        fcntl.flock(fd, fcntl.LOCK_UN)

    watcher = threading.Thread(target=watch, name="snapfs-hold", daemon=True)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        watcher.start()
        yield hold
    finally:
        is_over.set()
        if watcher.ident is not None:
            watcher.join()
        os.close(fd)


def is_held(layers: Path) -> bool:
    """Say whether somebody keeps the layers, so that none may be deleted now."""
    fd = _open(layers)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def is_short(fd: int) -> bool:
    """Say whether a file system has little room left."""
    found = os.fstatvfs(fd)
    return (
        found.f_bavail < found.f_blocks * LEAST_FREE or found.f_favail < found.f_files * LEAST_FREE
    )


def _open(layers: Path) -> int:
    return os.open(layers, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
