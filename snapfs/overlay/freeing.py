"""Big removed files: what they hold is freed in a thread, and nobody waits for it.

A file lives until its last name and the last descriptor of it are gone, and whoever takes that
away waits until the file system has freed its blocks and its pages in memory: 0.1 s or more for a
GiB. So a descriptor is opened before the name goes and closed in the thread. The name is gone at
once, and the file's inode number is nobody else's before it is freed.

`_lock` guards what the thread shares.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from .types import BLOCK_BYTES

BIG_BYTES = 1 << 20
"""Freed in 0.1 to 0.3 ms where it is in memory. The C code has the same (channel_src/events.c)."""
SPARE_BYTES = 64 << 20
"""Room in which changes need not wait for what is being freed."""
MOST_HELD = 64
"""Descriptors; what is more is freed by who removes it."""


class Freeing:
    """What is being freed of removed files; the thread lives while there is any."""

    __slots__ = ("_held", "_lock", "_runs", "bytes")

    def __init__(self) -> None:
        self.bytes = 0
        """What the file systems are to get back."""
        self._held: deque[tuple[int, int]] = deque()
        self._runs = False
        self._lock = threading.Lock()

    @contextmanager
    def aside(self, fd: int, name: bytes) -> Iterator[None]:
        """Free a file that loses its last name in the block, if it is big; it need not be there."""
        held = _open_big(fd, name)
        try:
            yield
        finally:
            if held is not None:
                self._take(*held)

    def may_be_needed(self, fd: int) -> bool:
        """Whether a file system has little room but what is being freed, maybe in another one."""
        if not self.bytes:
            return False
        space = os.fstatvfs(fd)
        lacks_inodes = space.f_files and space.f_favail <= MOST_HELD
        return bool(lacks_inodes) or space.f_bavail * space.f_frsize < self.bytes + SPARE_BYTES

    def _take(self, held: int, size_bytes: int) -> None:
        with self._lock:
            has_room = len(self._held) < MOST_HELD
            if has_room:
                self._held.append((held, size_bytes))
                self.bytes += size_bytes
            begins = has_room and not self._runs
            self._runs = self._runs or begins
        if not has_room:
            os.close(held)
        if begins:
            self._begin()

    def _begin(self) -> None:
        try:
            threading.Thread(target=self._run, name="freeing", daemon=True).start()
        except RuntimeError:  # there can be no more threads
            self._run()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._held:
                    self._runs = False
                    return
                held, size_bytes = self._held.popleft()
            os.close(held)
            with self._lock:
                self.bytes -= size_bytes


def _open_big(fd: int, name: bytes) -> tuple[int, int] | None:
    """Return a descriptor of a big file that has no other name, and what it holds."""
    try:
        held = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    except OSError:
        return None
    real = os.fstat(held)
    size_bytes = real.st_blocks * BLOCK_BYTES
    if stat.S_ISREG(real.st_mode) and real.st_nlink == 1 and size_bytes >= BIG_BYTES:
        return held, size_bytes
    os.close(held)
    return None
