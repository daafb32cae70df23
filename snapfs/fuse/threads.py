"""The ways to a thread for what may block, with named limits.

A call for a request is not abandoned when that is cancelled: it holds descriptors that would be
closed under it. Its result is then thrown away with the request. A notification holds nothing, and
may wait as long as the kernel does: for a page that another request has locked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

Result = TypeVar("Result")

FILE_IO_THREADS = 16
COPY_UP_THREADS = 4
NOTIFY_THREADS = 4


class Threads:
    """Limits by purpose, so that slow copies do not take the places of reads."""

    def __init__(self) -> None:
        self.file_io = trio.CapacityLimiter(FILE_IO_THREADS)
        self.copy_up = trio.CapacityLimiter(COPY_UP_THREADS)
        self.notify = trio.CapacityLimiter(NOTIFY_THREADS)


async def blocking(
    limiter: trio.CapacityLimiter, call: Callable[..., Result], *args: object
) -> Result:
    """Run `call(*args)` in a thread and return its result."""
    return await trio.to_thread.run_sync(call, *args, limiter=limiter)


async def notified(limiter: trio.CapacityLimiter, call: Callable[..., None], *args: object) -> None:
    """Run a notification of the kernel in a thread; when cancelled, leave it to itself."""
    await trio.to_thread.run_sync(call, *args, limiter=limiter, abandon_on_cancel=True)
