"""trio's clock and threads go on as ever while its thread waits for requests in the library."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import trio

from snapfs.fuse.idle import Idle, idling

DEADLINE_S = 20
SHORT_S = 0.3


async def reader(idle: Idle, fd: int) -> None:
    """As the session's: waits for requests, of which none is ever for Python."""
    while True:
        await idle.wait(fd)


@pytest.fixture
def quiet() -> Iterator[socket.socket]:
    """A descriptor on which nothing comes."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with ours, theirs:
        yield ours


async def test_deadlines_pass_once_and_not_twice_over(quiet: socket.socket) -> None:
    async with idling() as idle, trio.open_nursery() as nursery:
        assert idle is not None
        nursery.start_soon(reader, idle, quiet.fileno())
        waits = []
        for _ in range(5):
            began_s = time.monotonic()
            await trio.sleep(SHORT_S)
            waits.append(time.monotonic() - began_s)
        assert min(waits) < SHORT_S * 1.9
        nursery.cancel_scope.cancel()


async def test_other_threads_are_heard(quiet: socket.socket) -> None:
    async with idling() as idle, trio.open_nursery() as nursery:
        assert idle is not None
        nursery.start_soon(reader, idle, quiet.fileno())
        with trio.fail_after(DEADLINE_S):
            assert await trio.to_thread.run_sync(threading.get_ident) != threading.get_ident()
            token = trio.lowlevel.current_trio_token()
            heard = trio.Event()
            timer = threading.Timer(0.1, token.run_sync_soon, (heard.set,))
            timer.start()
            await heard.wait()
        nursery.cancel_scope.cancel()


async def test_kick_ends_a_wait(quiet: socket.socket) -> None:
    async with idling() as idle, trio.open_nursery() as nursery:
        assert idle is not None
        done = trio.Event()

        async def waiter() -> None:
            await idle.wait(quiet.fileno())
            done.set()

        nursery.start_soon(waiter)
        await trio.sleep(0.05)
        idle.kick()
        with trio.fail_after(DEADLINE_S):
            await done.wait()


async def test_nothing_is_left_open(quiet: socket.socket) -> None:
    before = set(os.listdir("/proc/self/fd"))
    async with idling() as idle:
        assert idle is not None
    assert len(set(os.listdir("/proc/self/fd"))) == len(before)
