"""Which opens by the number of a file from before its copy-up come by no name.

An open that is told ESTALE is tried once more by the kernel, in the same thread, and then it asks
about each name of the path again. So by a name the thread's next open has the file's second number.
One that has the first again came past all names: by /proc/PID/exe or /proc/self/fd, or by a bind
mount of that one file.

INVARIANT: an open by a name is not taken for such a one. Whatever may come between, a LOOKUP that
finds the file or nothing, or an open of another, ends what was noted; and a request that is sent
again after a worker's death is not its own second try. The kernel's io_uring tries without waiting
first (O_NONBLOCK) and goes on in another thread, so such opens are not noted; nor are threads that
the mount's pid name space does not have, which have no number (0). Only who tries openat2(2) with
RESOLVE_CACHED first, which cannot be told, and then without, may get the old file.

The thread that was told last of each file is noted in the journal, too, with the request: the next
worker goes on from there, as if it had been told when that begins. It stays noted until the second
open is counted.
"""

from __future__ import annotations

import os
import struct
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from snapfs.fuse import channel

if TYPE_CHECKING:
    from snapfs.fuse._channel import Opened

TRIED_AGAIN_NS = 1_000_000_000
"""The kernel does so at once."""
MOST = 1024
"""Threads noted at a time; the oldest goes."""
_BITS = 22
"""Of the number of a thread (PID_MAX_LIMIT), and of a request, in a noted word; the rest is its
sum."""
_MASK = (1 << _BITS) - 1


class _Told(NamedTuple):
    ino: int
    at_ns: int
    request: int
    """The low part of its number; 0 where nobody knows it."""


class Reopening:
    """Threads whose open for reading was told ESTALE just now."""

    def __init__(self, opened: Opened | None, number: Callable[[], int] = channel.unique) -> None:
        """`opened` has the notes of an earlier worker; `number` returns that of the present
        request."""
        self._opened = opened
        self._number = number
        self._told: OrderedDict[int, _Told] = OrderedDict()
        now_ns = time.monotonic_ns()
        for ino, word in [] if opened is None else opened.told():
            thread, request = word & _MASK, word >> _BITS & _MASK
            if word == _word(ino, thread, request):
                self._told[thread] = _Told(ino, now_ns, request)

    def is_past_names(self, thread: int, ino: int, flags: int) -> bool:
        """Whether this open of a file by its first number was told ESTALE before; else note that
        it is told now. `opened` is to be called when it is counted."""
        now_ns = time.monotonic_ns()
        number = self._number()
        if self._opened is not None and self._opened.is_counted(number):
            return True
        request = number >> 1 & _MASK  # the lowest bit means something else
        told = self._told.get(thread)
        is_told = told is not None and told.ino == ino and now_ns - told.at_ns < TRIED_AGAIN_NS
        if told is not None and is_told and (not request or told.request != request):
            return True
        self._forget(thread)
        if thread and not flags & os.O_NONBLOCK:
            self._note(thread, _Told(ino, now_ns, request))
        return False

    def opened(self, thread: int) -> None:
        """A thread opened something."""
        self._forget(thread)

    def looked_up(self, thread: int, ino: int | None) -> None:
        """A thread was told which file has a name; None: there is none."""
        told = self._told.get(thread)
        if told is not None and ino in (None, told.ino):
            self._forget(thread)

    def _note(self, thread: int, told: _Told) -> None:
        self._told[thread] = told
        if self._opened is not None and thread <= _MASK:
            self._opened.tell(told.ino, _word(told.ino, thread, told.request))
        if len(self._told) > MOST:
            self._forget(next(iter(self._told)))

    def _forget(self, thread: int) -> None:
        told = self._told.pop(thread, None)
        if told is not None and self._opened is not None:
            self._opened.tell(told.ino, 0)  # also of another, who is told of no worker's death then


def _word(ino: int, thread: int, request: int) -> int:
    """Return what is noted with a file; another file's, or a damaged one, is no such word."""
    word = thread | request << _BITS
    return word | (zlib.crc32(struct.pack("<QQ", ino, word)) & 0xFFFFF) << 2 * _BITS
