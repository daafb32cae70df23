"""Which opens by the number of a file from before its copy-up come by no name.

An open that is told ESTALE is tried once more by the kernel, in the same thread, and then it asks
about each name of the path again. So by a name the thread's next open has the file's second number.
One that has the first again came past all names: by /proc/PID/exe or /proc/self/fd, or by a bind
mount of that one file.

INVARIANT: an open by a name is not taken for such a one. Whatever may come between, a LOOKUP that
finds the file or nothing, or an open of another, ends what was noted. The kernel's io_uring tries
without waiting first (O_NONBLOCK) and goes on in another thread, so such opens are not noted; nor
are threads that the mount's pid name space does not have, which have no number (0). Only who tries
openat2(2) with RESOLVE_CACHED first, which cannot be told, and then without, may get the old file.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from typing import NamedTuple

TRIED_AGAIN_NS = 1_000_000_000
"""The kernel does so at once."""
MOST = 1024
"""Threads noted at a time; the oldest goes."""


class _Told(NamedTuple):
    ino: int
    at_ns: int


class Reopening:
    """Threads whose open for reading was told ESTALE just now."""

    def __init__(self) -> None:
        self._told: OrderedDict[int, _Told] = OrderedDict()

    def is_past_names(self, thread: int, ino: int, flags: int) -> bool:
        """Whether this open of a file by its first number was told ESTALE before; else note that
        it is told now."""
        now_ns = time.monotonic_ns()
        told = self._told.pop(thread, None)
        if told is not None and told.ino == ino and now_ns - told.at_ns < TRIED_AGAIN_NS:
            return True
        if thread and not flags & os.O_NONBLOCK:
            self._told[thread] = _Told(ino, now_ns)
            if len(self._told) > MOST:
                self._told.popitem(last=False)
        return False

    def opened(self, thread: int) -> None:
        """A thread opened something else."""
        self._told.pop(thread, None)

    def looked_up(self, thread: int, ino: int | None) -> None:
        """A thread was told which file has a name; None: there is none."""
        told = self._told.get(thread)
        if told is not None and ino in (None, told.ino):
            del self._told[thread]
