"""Run pyfuse3's session on a descriptor that was taken over.

pyfuse3 reaches trio through its module global `trio`, which it has its own modules replace
(pyfuse3.asyncio does). The `_Seam` put there keeps trio's structured tasks and changes who reads:

* one task reads requests and answers them on the spot, without a turn of the loop in between;
  only when a handler has to wait is another reader started (`Operations.waiting`), so that however
  many requests wait, the next one is read;
* requests come through the channel where that is to be had: those with a handler in
  `Operations.raw` are answered before pyfuse3 hears of them;
* the descriptor is non-blocking, so a request that its caller took back between poll and read does
  not stop the loop: the reader's EAGAIN restarts that reader only;
* an exception that escapes a handler is logged and costs that one request, not the session.

INVARIANT: after each step of the loop, some reader is waiting for the descriptor.
One session a process (pyfuse3's globals). Everything runs on trio's thread.
"""

from __future__ import annotations

import errno
import select
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial

import pyfuse3
import structlog
import trio

from snapfs.fuse import channel
from snapfs.fuse.channel import RawHandler, Request
from snapfs.fuse.handover import InitRequest, TakeOver
from snapfs.fuse.hot import Hot
from snapfs.fuse.idle import Idle, idling
from snapfs.fuse.raw import RawRequests

TURNS_BETWEEN_CHECKPOINTS = 16
"""Requests answered in a row before other tasks get their turn."""

log = structlog.get_logger(__name__)


class Operations(pyfuse3.Operations):
    """What a session serves: pyfuse3's handlers, and how they stand to the session."""

    enable_writeback_cache = False
    enable_acl = False  # the answer to the real INIT decides
    supports_dot_lookup = False
    take_over: TakeOver
    seam: Seam

    def __init__(self) -> None:
        super().__init__()
        self.raw: dict[int, RawHandler] = {}
        """Handlers of requests that are not to reach pyfuse3, by opcode (channel.Opcode)."""
        self.hot = Hot()

    def init(self) -> None:
        self.take_over.finish()

    async def recover(self, ino: int) -> bool:
        """Find a node that an earlier worker knew; False: the kernel is told that it is stale."""
        return False

    def waiting(self) -> None:
        """To be called when a handler is about to wait for something: others must read on."""
        self.seam.ensure_reader()


async def serve(
    operations: Operations, fd: int, init: InitRequest, *, ready: Callable[[], None]
) -> None:
    """Serve until the file system is unmounted everywhere; takes ownership of `fd`.

    Calls `ready` as soon as requests will be read.
    """
    operations.take_over = TakeOver(fd, init)
    operations.seam = seam = Seam(operations.raw)
    pyfuse3.trio = seam  # type: ignore[attr-defined]
    pyfuse3.init(operations, operations.take_over.device, set())
    try:
        async with seam.attached(operations.hot):
            ready()
            # Readers are ours to start and end: pyfuse3 is to start none and never to end one.
            await pyfuse3.main(min_tasks=sys.maxsize >> 32, max_tasks=1)
    finally:
        pyfuse3.close(unmount=False)


class Seam:
    """Stands for the module `trio` in pyfuse3, and starts the readers."""

    def __init__(self, handlers: Mapping[int, RawHandler]) -> None:
        """`handlers` are served past pyfuse3 once `attach` has found that possible."""
        self._handlers = handlers
        self.lowlevel = _Lowlevel()
        self.Lock = _NoLock
        self.ClosedResourceError = (trio.ClosedResourceError, _NotNeeded)
        self._nursery: trio.Nursery | None = None
        self._reader: Callable[[], Awaitable[None]] | None = None

    @asynccontextmanager
    async def attached(self, hot: Hot) -> AsyncIterator[None]:
        """Read through the channel if pyfuse3's session goes through it; then `hot` can be used."""
        if not channel.adopt_session():
            log.warning("fuse.session.plain", reason=channel.why_not())
            yield
            return
        self.lowlevel.raw = RawRequests(self._handlers, self.ensure_reader)
        async with idling() as self.lowlevel.idle:
            with hot.running():
                yield

    @asynccontextmanager
    async def open_nursery(self) -> AsyncIterator[Seam]:
        async with trio.open_nursery() as self._nursery:
            yield self

    def start_soon(
        self, reader: Callable[..., Awaitable[None]], *args: object, name: str | None = None
    ) -> None:
        """Start the first reader; pyfuse3's wish for more is left to `ensure_reader`."""
        if self._reader is None:
            self._reader = partial(reader, *args)
            self.ensure_reader()

    def ensure_reader(self) -> None:
        """Start a reader unless one is at it already; those that are too many end."""
        if not self.lowlevel.reading and self._nursery is not None and self._reader is not None:
            self._nursery.start_soon(self._keep_reading, self._reader, name="fuse-reader")

    async def _keep_reading(self, reader: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                return await reader()
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    log.exception("fuse.session.read_failed")
                    raise
            except Exception:
                log.exception("fuse.session.handler_failed")


class _NotNeeded(Exception):
    """Ends a reader, as the closing of the descriptor does: another one reads."""


class _Lowlevel:
    """Stands for trio.lowlevel."""

    def __init__(self) -> None:
        self.raw: RawRequests | None = None
        self.idle: Idle | None = None
        self.reading = False
        """A task waits for the descriptor. INVARIANT: never two, and never across a handler."""
        self._poll = select.poll()
        self._known = -1
        self._turns = 0
        self._is_ending = False

    current_task = staticmethod(trio.lowlevel.current_task)
    current_trio_token = staticmethod(trio.lowlevel.current_trio_token)

    def notify_closing(self, fd: int) -> None:
        """End the reader: pyfuse3's session is to terminate."""
        self._is_ending = True
        trio.lowlevel.notify_closing(fd)

    async def wait_readable(self, fd: int) -> None:
        """Return when there is a request for pyfuse3; answer those that come before it."""
        while not self.reading:
            self.reading = True
            raw = self.raw
            try:
                if raw is None:
                    return await self._polled(fd)
                request = await self._received(fd, raw)
            finally:
                self.reading = False
            if request is None:
                return None
            await raw.serve(fd, request)
        raise _NotNeeded

    async def _received(self, fd: int, raw: RawRequests) -> Request | None:
        """Return the next request; None when it is for pyfuse3, which has only to take it."""
        while not self._is_ending:
            await self._let_others_run()
            found = raw.receive(fd)
            if found is None or (found is False and self.idle is not None):
                await self._wait(fd)
            elif found is False:
                await trio.lowlevel.checkpoint()
            else:
                return found if isinstance(found, Request) else None
        raise _NotNeeded

    async def _wait(self, fd: int) -> None:
        if self.idle is None:
            await trio.lowlevel.wait_readable(fd)
        else:
            await self.idle.wait(fd)

    async def _polled(self, fd: int) -> None:
        if fd != self._known:
            self._poll.register(fd, select.POLLIN)
            self._known = fd
        await self._let_others_run()
        if not self._poll.poll(0):
            await trio.lowlevel.wait_readable(fd)

    async def _let_others_run(self) -> None:
        self._turns += 1
        if not self._turns % TURNS_BETWEEN_CHECKPOINTS:
            await trio.lowlevel.checkpoint()


class _NoLock:
    """Stands for trio.Lock: `_Lowlevel.wait_readable` lets one reader in at a time."""

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *exc: object) -> None:
        pass
