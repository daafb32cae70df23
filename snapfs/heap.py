"""The C library's heap, in processes that live long (glibc; mallopt(3)).

By itself glibc gives threads up to eight heaps a core, and what is freed in one is of no use to the
others: ten thousand connections that come and go took more each time. `snapfs serve` has two, and
gives back what has become free. By itself glibc gives back only what is free at a heap's end: of
what a worker had for a million files, 49 MiB stayed when the kernel had forgotten them.
"""

from __future__ import annotations

import ctypes

_M_ARENA_MAX = -8
HEAPS = 2
MUCH = 20_000
"""Objects whose memory is worth giving back: a mebibyte and more."""


def limit() -> None:
    """Have few heaps; before the first thread. Does nothing without glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, HEAPS)


def give_back() -> None:
    """Return free pages to the system; blocks for milliseconds. Does nothing without glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


class Slack:
    """Says when much of what a process has held has become free."""

    def __init__(self) -> None:
        self._most = 0

    def is_due(self, held: int, most: int) -> bool:
        """Whether to give back now that so many objects are held, of `most` since this was asked
        before: fewer than half of the most since it was due, and MUCH less."""
        self._most = max(self._most, most)
        if self._most - held < MUCH or held * 2 > self._most:
            return False
        self._most = held
        return True
