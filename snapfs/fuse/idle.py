"""What the session's thread does while nobody has anything to do: answer requests in the library.

The reader waits for its next request in the library, without the interpreter's lock, in the place
of trio: for the FUSE descriptor, whose hot requests are answered on the spot, and for trio's own
epoll descriptor. So a request that Python answers costs no turn of the loop. It does so only while
no other task could run, which trio tells its instruments, and no longer than to the next deadline;
otherwise it lets the loop take its turn.
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

    def __init__(self, epoll: int) -> None:
        """Needs the channel; `epoll` is trio's own."""
        self._idle = channel.required().idle
        self._epoll = epoll
        self._runnable: set[trio.lowlevel.Task] = set()
        """Those that were scheduled and have not begun their step."""

    async def wait(self, fd: int) -> None:
        """Return when there is a request to be received from `fd`, or when others have had their
        turn."""
        if self._runnable or not self._idle(fd, self._epoll, self._timeout_ms()):
            await trio.lowlevel.checkpoint()

    def _timeout_ms(self) -> int:
        left_s = trio.lowlevel.current_statistics().seconds_to_next_deadline
        return min(math.ceil(max(left_s, 0.0) * 1000), _FOREVER_MS) if left_s < _FOREVER_MS else -1

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        self._runnable.add(task)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._runnable.discard(task)


@asynccontextmanager
async def idling() -> AsyncIterator[Idle | None]:
    """Let requests be answered while trio waits; None where it does not let us know how it does."""
    epoll = await _find_epoll()
    if epoll is None:
        log.warning("fuse.idle_off", reason="trio waits by other means than epoll")
        yield None
        return
    idle = Idle(epoll)
    trio.lowlevel.add_instrument(idle)
    try:
        for _ in range(2):  # what was scheduled before has begun its step by then
            await trio.lowlevel.checkpoint()
        yield idle
    finally:
        trio.lowlevel.remove_instrument(idle)


async def _find_epoll() -> int | None:
    """Return trio's epoll descriptor, which it does not tell: the one that knows another."""
    watched = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.wait_readable, watched)
            for _ in range(2):  # after one turn the task has begun, after two it waits
                await trio.lowlevel.checkpoint()
            found = _epoll_that_watches(watched)
            nursery.cancel_scope.cancel()
        return found
    finally:
        os.close(watched)


def _epoll_that_watches(fd: int) -> int | None:
    for name in os.listdir("/proc/self/fdinfo"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own, closed by now
            for line in Path("/proc/self/fdinfo", name).read_text().splitlines():
                if line.startswith("tfd:") and int(line.split()[1]) == fd:
                    return int(name)
    return None
