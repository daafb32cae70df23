"""The gate before a tree's changes: open, frozen, or closed for good.

INVARIANT: `entered` counts the changes between `enter` and `leave`; while frozen it only falls.
Everything runs on trio's thread, so a check and the step after it are one, without a lock.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

import trio


class Gate:
    """Changes enter and leave; `freeze` holds new ones and waits for those inside."""

    __slots__ = ("_closed", "_empty", "_opened", "_since_ns", "changed", "entered")

    def __init__(self, *, frozen: bool = False) -> None:
        self.entered = 0
        self.changed: Callable[[], object] = bool
        """Called in the step in which the gate freezes, thaws or closes."""
        self._closed = False
        self._opened: trio.Event | None = trio.Event() if frozen else None
        self._since_ns = time.monotonic_ns()
        self._empty: trio.Event | None = None

    @property
    def is_open(self) -> bool:
        """Whether a change could enter now."""
        return self._opened is None and not self._closed

    @property
    def frozen(self) -> bool:
        return self._opened is not None

    async def enter(self) -> None:
        """Begin a change, after a thaw if need be; raises EROFS when the tree takes no more
        changes."""
        while self._opened is not None:
            await self._opened.wait()
        if self._closed:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        self.entered += 1

    def leave(self) -> None:
        """End a change that entered."""
        self.entered -= 1
        if not self.entered and self._empty is not None:
            self._empty.set()

    async def freeze(self) -> None:
        """Return when nothing is inside and nothing can enter; stays frozen when cancelled."""
        if self._opened is None:
            self._opened = trio.Event()
            self._since_ns = time.monotonic_ns()
            self.changed()
        while self.entered:
            if self._empty is None or self._empty.is_set():
                self._empty = trio.Event()
            await self._empty.wait()

    def thaw(self) -> int:
        """Let changes enter again, those that waited first; return how long, in nanoseconds, they
        could not."""
        if self._opened is None:
            return 0
        self._opened.set()
        self._opened = None
        self.changed()
        return time.monotonic_ns() - self._since_ns

    def close(self) -> None:
        """Refuse changes from now on, those that waited included."""
        self._closed = True
        self.changed()
        self.thaw()
