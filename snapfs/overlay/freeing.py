"""Big removed files: what they hold is freed in a thread, and nobody waits for it.

A file lives until its last name and the last descriptor of it are gone, and whoever takes that
away waits until the file system has freed its blocks and its pages in memory: 0.1 s or more for a
GiB. So a descriptor is opened before the name goes and closed in the thread. The name is gone at
once, and the file's inode number is nobody else's before it is freed.

What the kernel knows goes only when it is forgotten, which the kernel says after unlink(2) has
returned: who removes a file to have its space may ask for that before. So it is expected for a
moment.

`_lock` guards what the thread shares.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from .types import BLOCK_BYTES

BIG_BYTES = 1 << 20
"""Freed in 0.1 to 0.3 ms where it is in memory. The C code has the same (channel_src/events.c)."""
SPARE_BYTES = 64 << 20
"""Room in which changes need not wait for what is being freed."""
LET_GO_S = 0.2
"""For the kernel to let go of what was just removed: it says so after unlink(2) has returned."""
MOST_HELD = 64
"""Descriptors; what is more is freed by who removes it."""


class Freeing:
    """What is being freed of removed files; the thread lives while there is any."""

    __slots__ = (
        "_expected",
        "_expected_files",
        "_expected_until_s",
        "_held",
        "_lock",
        "_runs",
        "bytes",
    )

    def __init__(self) -> None:
        self.bytes = 0
        """What the file systems are to get back."""
        self._expected = self._expected_files = 0
        self._expected_until_s = 0.0
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
                self._came(held[1])

    def expect(self, blocks: int) -> None:
        """Note that a file of so many blocks has lost its last name. It is freed when the kernel
        lets go of it, or much later, if somebody has it open."""
        if blocks * BLOCK_BYTES >= BIG_BYTES:
            self._expected = self.expected + blocks * BLOCK_BYTES
            self._expected_files += 1
            self._expected_until_s = time.monotonic() + LET_GO_S

    def _came(self, size_bytes: int) -> None:
        """Expect a file less, whatever it held when it lost its name."""
        self._expected_files = max(self._expected_files - 1, 0)
        self._expected = max(self._expected - size_bytes, 0) if self._expected_files else 0

    @property
    def expected(self) -> int:
        """What the file systems may be about to get back."""
        if self._expected and time.monotonic() >= self._expected_until_s:
            self._expected = self._expected_files = 0
        return self._expected

    @property
    def coming(self) -> int:
        """What the file systems are to get back, or may be about to."""
        return self.bytes + self.expected

    def may_be_needed(self, fd: int) -> bool:
        """Whether a file system has little room but what is coming, maybe in another one."""
        coming = self.coming
        if not coming:
            return False
        space = os.fstatvfs(fd)
        lacks_inodes = space.f_files and space.f_favail <= MOST_HELD
        return bool(lacks_inodes) or space.f_bavail * space.f_frsize < coming + SPARE_BYTES

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
