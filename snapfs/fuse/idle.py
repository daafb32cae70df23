"""What the session's thread does while trio has nothing to do: answer requests in the library.

trio tells its instruments when it is about to wait (`before_io_wait`). `Idle` waits in its place,
in the library, without the interpreter's lock: for the FUSE descriptor, whose hot requests it
answers on the spot, and for trio's own epoll descriptor. It comes back when trio has something to
do. A request for Python is kept, and an eventfd made readable for which the reader waits: so it is
when time is over, since trio would wait as long again.

INVARIANT: while a reader waits for the eventfd, each turn of the loop looks at the descriptor.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
import trio

from snapfs.fuse import channel

log = structlog.get_logger(__name__)

_FOREVER_MS = 1 << 30
"""About twelve days."""


class Idle(trio.abc.Instrument):
    """Waits for requests in trio's place."""

    def __init__(self, wake: int, epoll: int) -> None:
        """Needs the channel; `epoll` watches the eventfd `wake` while a task waits for that."""
        self._idle = channel.required().idle
        self._wake = wake
        self._epoll = epoll
        self._awaited = -1
        """The descriptor that a reader waits for, by way of the eventfd; -1 when none does."""

    async def wait(self, fd: int) -> None:
        """Return when there is a request to be received from `fd`, or after `kick`."""
        self._awaited = fd
        try:
            await trio.lowlevel.wait_readable(self._wake)
        finally:
            self._awaited = -1
        os.eventfd_read(self._wake)

    def kick(self) -> None:
        """Make who waits return."""
        os.eventfd_write(self._wake, 1)

    def before_io_wait(self, timeout: float) -> None:
        if self._awaited >= 0:
            timeout_ms = min(math.ceil(timeout * 1000), _FOREVER_MS)
            self._idle(self._awaited, self._epoll, self._wake, timeout_ms)


@asynccontextmanager
async def idling() -> AsyncIterator[Idle | None]:
    """Let requests be answered while trio waits; None where it does not let us know how it does."""
    wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        epoll = await _epoll_that_watches(wake)
        if epoll is None:
            log.warning("fuse.idle_off", reason="trio waits by other means than epoll")
            yield None
            return
        idle = Idle(wake, epoll)
        trio.lowlevel.add_instrument(idle)
        try:
            yield idle
        finally:
            trio.lowlevel.remove_instrument(idle)
    finally:
        os.close(wake)


async def _epoll_that_watches(fd: int) -> int | None:
    """Return trio's epoll descriptor, which it does not tell: the one that knows `fd`."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.lowlevel.wait_readable, fd)
        for _ in range(2):  # after one turn the task has begun, after two it waits
            await trio.lowlevel.checkpoint()
        found = _find_epoll(fd)
        nursery.cancel_scope.cancel()
    return found


def _find_epoll(fd: int) -> int | None:
    for name in os.listdir("/proc/self/fdinfo"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own, closed by now
            for line in Path("/proc/self/fdinfo", name).read_text().splitlines():
                if line.startswith("tfd:") and int(line.split()[1]) == fd:
                    return int(name)
    return None
