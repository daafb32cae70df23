"""A worker that the kernel holds keeps nobody waiting; one that has ended leaves no zombie."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.fuse import process
from snapfs.fuse.process import Stranger, WorkerProcess


class Held:
    """A process in uninterruptible sleep; without a deadline, a wait for it fails the test."""

    pid = 1

    def __init__(self) -> None:
        self.killed = 0

    def wait(self, timeout: float | None = None) -> int | None:
        assert timeout is not None, "would wait for ever"
        raise subprocess.TimeoutExpired("held", timeout)

    def kill(self) -> None:
        self.killed += 1


@pytest.fixture
def held() -> Iterator[tuple[WorkerProcess, Held]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made = Held()
    worker = WorkerProcess("held", made, ours, version="1", ready=True)
    with theirs:
        yield worker, made
        worker.close(5.0)


@pytest.mark.logs("worker.held_by_the_kernel")
def test_worker_that_the_kernel_holds_is_killed_and_not_waited_for(
    held: tuple[WorkerProcess, Held],
) -> None:
    worker, made = held
    assert not worker.kill()
    assert worker.reap(0.0) is None
    assert made.killed == 2


def test_adopted_worker_that_is_our_child_is_reaped_with_its_status() -> None:
    """As a service that has begun anew finds the workers of the code before."""
    for end, status in (("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -9)):
        pid = os.posix_spawn(sys.executable, [sys.executable, "-c", end], os.environ)
        stranger = Stranger(pid, os.pidfd_open(pid))
        assert stranger.wait(process.KILL_TIMEOUT_S * 10) == status
        assert not Path(f"/proc/{pid}").exists()
        assert stranger.wait(0.0) == status
