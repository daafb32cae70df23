"""Run pyfuse3's session on a descriptor that was taken over.

pyfuse3 reaches trio through its module global `trio`, which it documents as replaceable
(pyfuse3.asyncio does it). The `_Seam` put there keeps trio's structured tasks and changes three
things:

* a request costs one turn of trio's loop instead of three: the reader's lock does not yield when it
  is free, and a descriptor that is readable already is read at once;
* the descriptor is non-blocking, so a request that its caller took back between poll and read does
  not stop the loop: the reader's EAGAIN restarts that reader only;
* an exception that escapes a handler is logged and costs that one request, not the session.

One session a process (pyfuse3's globals). Everything runs on trio's thread.
"""

from __future__ import annotations

import errno
import select
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pyfuse3
import structlog
import trio

from snapfs.fuse.handover import InitRequest, TakeOver

MAX_TASKS = 4096
"""Requests in flight; each waits for a thread, a lock or a frozen tree. Beyond it the session
stalls."""
_TURNS_BETWEEN_CHECKPOINTS = 16

log = structlog.get_logger(__name__)


class Operations(pyfuse3.Operations):
    """What a session serves: pyfuse3's handlers and the moment at which the descriptor changes
    hands."""

    enable_writeback_cache = False
    enable_acl = False  # the real INIT decides
    supports_dot_lookup = False
    take_over: TakeOver

    def init(self) -> None:
        self.take_over.finish()


async def serve(
    operations: Operations, fd: int, init: InitRequest, *, ready: Callable[[], None]
) -> None:
    """Serve until the file system is unmounted everywhere; takes ownership of `fd`.

    Calls `ready` as soon as requests will be read.
    """
    operations.take_over = TakeOver(fd, init)
    pyfuse3.trio = _Seam()  # type: ignore[attr-defined]
    pyfuse3.init(operations, operations.take_over.device, set())
    try:
        ready()
        await pyfuse3.main(min_tasks=1, max_tasks=MAX_TASKS)
    finally:
        pyfuse3.close(unmount=False)


class _Seam:
    """Stands for the module `trio` in pyfuse3."""

    ClosedResourceError = trio.ClosedResourceError

    def __init__(self) -> None:
        self.lowlevel = _Lowlevel()
        self.Lock = _ReaderLock

    @asynccontextmanager
    async def open_nursery(self) -> AsyncIterator[_Readers]:
        async with trio.open_nursery() as nursery:
            yield _Readers(nursery)


class _Lowlevel:
    def __init__(self) -> None:
        self._poll = select.poll()
        self._known = -1
        self._turns = 0

    current_task = staticmethod(trio.lowlevel.current_task)
    current_trio_token = staticmethod(trio.lowlevel.current_trio_token)
    notify_closing = staticmethod(trio.lowlevel.notify_closing)

    async def wait_readable(self, fd: int) -> None:
        if fd != self._known:
            self._poll.register(fd, select.POLLIN)
            self._known = fd
        self._turns += 1
        if self._turns % _TURNS_BETWEEN_CHECKPOINTS == 0:
            await trio.lowlevel.checkpoint()
        if self._poll.poll(0):
            return
        await trio.lowlevel.wait_readable(fd)


class _ReaderLock:
    """A first-come lock that is passed on without a turn of the loop when nobody holds it."""

    def __init__(self) -> None:
        self._held = False
        self._waiting: deque[trio.lowlevel.Task] = deque()

    async def __aenter__(self) -> None:
        if not self._held:
            self._held = True
            return
        task = trio.lowlevel.current_task()
        self._waiting.append(task)

        def abort(_: Any) -> trio.lowlevel.Abort:
            self._waiting.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    async def __aexit__(self, *exc: object) -> None:
        if self._waiting:
            trio.lowlevel.reschedule(self._waiting.popleft())
        else:
            self._held = False


class _Readers:
    """The nursery of pyfuse3's reader tasks, each of which outlives what goes wrong in it."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def start_soon(
        self, reader: Callable[..., Awaitable[None]], *args: object, name: str | None = None
    ) -> None:
        self._nursery.start_soon(_keep_reading, reader, args, name=name)


async def _keep_reading(reader: Callable[..., Awaitable[None]], args: tuple[object, ...]) -> None:
    while True:
        try:
            return await reader(*args)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                log.exception("fuse.session.read_failed")
                raise
        except Exception:
            log.exception("fuse.session.handler_failed")
