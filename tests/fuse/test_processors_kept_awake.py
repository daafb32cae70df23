"""Processors do not halt while requests follow each other, and may again right after."""

from __future__ import annotations

import itertools
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapfs.fuse import awake, channel, options
from snapfs.fuse.awake import Awake, kept_awake
from snapfs.fuse.channel import Opcode
from snapfs.model import InvalidArgument

DEADLINE_S = 20
AT_ONCE, NO_WISH = 0, 2_000_000_000
"""Microseconds of /dev/cpu_dma_latency."""
NEEDS_NO_ANSWER = struct.pack("<IIQQIIIHH", 40, Opcode.INTERRUPT, 0, 0, 0, 0, 0, 0, 0)

needs_channel = pytest.mark.skipif(not channel.loaded(), reason="the library is what does it")


class Wishes:
    """What is written to the descriptor that stands for /dev/cpu_dma_latency."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def next(self) -> int | None:
        """Return the next one; None when there is none before the deadline."""
        if not select.select([self._fd], [], [], DEADLINE_S)[0]:
            return None
        found: int = struct.unpack("<i", os.read(self._fd, 4))[0]
        return found

    def is_empty(self) -> bool:
        return not select.select([self._fd], [], [], 0)[0]


@contextmanager
def idling(fd: int) -> Iterator[None]:
    """Read requests in a thread, as the session's does when nothing else is to be done."""
    other, end = os.pipe()
    done = threading.Event()

    def run() -> None:
        while not done.is_set():
            channel.required().idle(fd, other, 1000)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        done.set()
        os.write(end, b"x")
        thread.join(DEADLINE_S)
        for it in (other, end):
            os.close(it)
    assert not thread.is_alive()


@pytest.fixture
def kernel() -> Iterator[socket.socket]:
    """Who asks: each packet is a request."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with ours, theirs, idling(ours.fileno()):
        yield theirs


@pytest.fixture
def wishes() -> Iterator[Wishes]:
    heard, fd = os.pipe()
    channel.required().keep_awake(fd)
    try:
        yield Wishes(heard)
    finally:
        channel.required().keep_awake(-1)
        for it in (heard, fd):
            os.close(it)


@needs_channel
def test_many_requests_keep_them_awake_until_there_are_none(
    wishes: Wishes, kernel: socket.socket
) -> None:
    for _ in range(2):
        ends_s = time.monotonic() + DEADLINE_S
        while wishes.is_empty() and time.monotonic() < ends_s:
            kernel.send(NEEDS_NO_ANSWER)
        assert wishes.next() == AT_ONCE
        assert wishes.next() == NO_WISH


@needs_channel
def test_few_requests_let_them_halt(wishes: Wishes, kernel: socket.socket) -> None:
    for _ in range(20):
        kernel.send(NEEDS_NO_ANSWER)
        time.sleep(0.02)
    assert wishes.is_empty()


@needs_channel
def test_it_is_done_where_processors_halt_at_once_and_are_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, poll = tmp_path / "driver", tmp_path / "poll"
    latency = tmp_path / "latency"
    latency.touch()
    for name, path in (("_DRIVER", driver), ("_POLL_NS", poll), ("_LATENCY", latency)):
        monkeypatch.setattr(awake, name, path)
    reasons = {}
    for told, polled, count in itertools.product(
        ("haltpoll", "intel_idle"), ("0", "200000"), (2, 64)
    ):
        driver.write_text(f"{told}\n")
        poll.write_text(f"{polled}\n")
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        for wish in Awake:
            with kept_awake(wish) as reason:
                reasons[told, polled, count, wish.value] = reason
    assert {it for it, reason in reasons.items() if not reason} == {
        ("haltpoll", "0", 2, "auto"),
        *(("haltpoll", polled, count, "on") for polled in ("0", "200000") for count in (2, 64)),
    }
    latency.unlink()
    with kept_awake(Awake.ON) as reason:
        pass
    assert "intel_idle" in reason
    driver.write_text("haltpoll\n")
    with kept_awake(Awake.ON) as reason:
        assert str(latency) in reason


@needs_channel
@pytest.mark.skipif(not Path("/dev/cpu_dma_latency").exists(), reason="the kernel has no PM QoS")
def test_the_kernel_takes_the_wish(kernel: socket.socket) -> None:
    """The device refuses what is no latency, and gives what holds to who asks it."""
    with open("/dev/cpu_dma_latency", "r+b", buffering=0) as device:
        channel.required().keep_awake(device.fileno())
        try:
            seen = NO_WISH
            ends_s = time.monotonic() + DEADLINE_S
            while seen != AT_ONCE and time.monotonic() < ends_s:
                kernel.send(NEEDS_NO_ANSWER)
                (seen,) = struct.unpack("<i", os.pread(device.fileno(), 4, 0))
        finally:
            channel.required().keep_awake(-1)
    assert seen == AT_ONCE


def test_a_mount_option_says_when() -> None:
    base = "lowerdir=/,"
    assert options.parse([base + "awake=off"]).awake is Awake.OFF
    assert options.parse([base]).awake is Awake.AUTO
    with pytest.raises(InvalidArgument, match="auto, on, off"):
        options.parse([base + "awake=always"])
