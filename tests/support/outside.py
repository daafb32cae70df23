"""A directory in which nobody may open anything: the kernel tells when somebody does."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SECRET = b"secret of somebody else"
_IN_NONBLOCK = 0o4000
_WATCHED = 0x1 | 0x2 | 0x4 | 0x20 | 0x40 | 0x80 | 0x100 | 0x200  # inotify(7): all uses but stat

_libc = ctypes.CDLL(None, use_errno=True)


class Outside:
    """Holds a file with a SECRET, a FIFO and a directory, under names that a layer has as well."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "sub").mkdir(parents=True)
        for place in (path, path / "sub"):
            (place / "file").write_bytes(SECRET)
        os.mkfifo(path / "pipe")
        self._fd = _libc.inotify_init1(_IN_NONBLOCK | os.O_CLOEXEC)
        assert self._fd >= 0
        for watched in (path, path / "sub"):
            assert _libc.inotify_add_watch(self._fd, os.fsencode(watched), _WATCHED) >= 0

    def uses(self) -> bytes:
        """Return what the kernel tells of who opened, read or changed something; empty: nobody."""
        try:
            return os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        os.close(self._fd)


@contextmanager
def outside_of(base: Path) -> Iterator[Outside]:
    """A watched directory, which must be unused at the end."""
    made = Outside(base / "outside")
    try:
        yield made
        assert made.uses() == b""
    finally:
        made.close()


def put_link(layer: Path, outside: Path) -> None:
    """Let `dir` be a link that leads outside, and `away` what it was."""
    (layer / "dir").rename(layer / "away")
    (layer / "dir").symlink_to(outside)


def put_back(layer: Path) -> None:
    (layer / "dir").unlink()
    (layer / "away").rename(layer / "dir")


@contextmanager
def swapping(layer: Path, outside: Path) -> Iterator[None]:
    """Let `dir` lead outside and be a directory in turn, as quickly as can be."""
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            with suppress(OSError):
                put_link(layer, outside)
            with suppress(OSError):
                put_back(layer)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
