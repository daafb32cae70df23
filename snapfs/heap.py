"""The C library's heap, in a process with many threads that come and go (glibc; mallopt(3)).

By itself glibc gives threads up to eight heaps a core, and what is freed in one is of no use to the
others: ten thousand connections that come and go took more each time. `snapfs serve` has two, and
gives back what has become free.
"""

from __future__ import annotations

import ctypes

_M_ARENA_MAX = -8
HEAPS = 2


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
