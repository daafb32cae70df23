"""trio's clock and threads go on as ever while its thread waits for requests in the library."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio

from snapfs.fuse import channel
from snapfs.fuse.channel import Opcode
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


async def test_others_have_their_turns_while_nothing_comes(quiet: socket.socket) -> None:
    async with idling() as idle, trio.open_nursery() as nursery:
        assert idle is not None
        nursery.start_soon(reader, idle, quiet.fileno())
        send, receive = trio.open_memory_channel[int](0)
        back, answers = trio.open_memory_channel[int](0)

        async def echo() -> None:
            async for number in receive:
                await back.send(number)

        nursery.start_soon(echo)
        with trio.fail_after(DEADLINE_S):
            for number in range(100):
                await send.send(number)
                assert await answers.receive() == number
        nursery.cancel_scope.cancel()


async def test_nothing_is_left_open(quiet: socket.socket) -> None:
    before = set(os.listdir("/proc/self/fd"))
    async with idling() as idle:
        assert idle is not None
    assert len(set(os.listdir("/proc/self/fd"))) == len(before)


@contextmanager
def asking(
    interval_s: float, limit_s: float = DEADLINE_S / 4
) -> Iterator[tuple[int, threading.Event]]:
    """A descriptor on which requests keep coming, until the event is set."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    needs_no_answer = struct.pack("<IIQQIIII", 40, Opcode.INTERRUPT, 2, 1, 0, 0, 0, 0)
    is_done = threading.Event()

    def ask_on() -> None:
        while not is_done.wait(interval_s):
            theirs.send(needs_no_answer)

    with ours, theirs:
        thread = threading.Thread(target=ask_on)
        limit = threading.Timer(limit_s, is_done.set)
        thread.start()
        limit.start()
        try:
            yield ours.fileno(), is_done
        finally:
            is_done.set()
            limit.cancel()
            thread.join()


@pytest.mark.parametrize("interval_s", [0.001, 0.00001])
async def test_deadlines_pass_while_requests_keep_coming(interval_s: float) -> None:
    with asking(interval_s) as (fd, is_done):
        async with idling() as idle, trio.open_nursery() as nursery:
            assert idle is not None
            nursery.start_soon(reader_of, idle, fd)
            await trio.sleep(SHORT_S)
            assert not is_done.is_set()
            assert await trio.to_thread.run_sync(threading.get_ident) != threading.get_ident()
            assert not is_done.is_set()
            nursery.cancel_scope.cancel()


async def test_nothing_is_looked_for_once_requests_have_ceased() -> None:
    with asking(0.00001) as (fd, is_done):
        async with idling() as idle, trio.open_nursery() as nursery:
            assert idle is not None
            nursery.start_soon(reader_of, idle, fd)
            await trio.sleep(SHORT_S)
            is_done.set()
            before_s = time.thread_time()
            await trio.sleep(1)
            assert time.thread_time() - before_s < 0.1
            nursery.cancel_scope.cancel()


async def reader_of(idle: Idle, fd: int) -> None:
    """Take what the library leaves to others, of which there is nothing here."""
    while True:
        await idle.wait(fd)
        while channel.required().receive(fd) is not None:
            await trio.lowlevel.checkpoint()
