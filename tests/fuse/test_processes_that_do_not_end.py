"""A worker that the kernel holds keeps nobody waiting; one that has ended is noticed and reaped."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.fuse import process
from snapfs.fuse.process import Child, Stranger, WorkerProcess


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


def child(code: str) -> Child:
    return Child(subprocess.Popen([sys.executable, "-c", code]))


def test_child_is_reaped_with_its_status_also_when_it_has_ended_before() -> None:
    for end, status in (("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -9)):
        for timeout_s in (None, process.KILL_TIMEOUT_S * 10):
            made = child(end)
            os.waitid(os.P_PID, made.pid, os.WEXITED | os.WNOWAIT)
            assert made.wait(timeout_s) == status
            assert not Path(f"/proc/{made.pid}").exists()
            assert made.wait(0.0) == status
            made.kill()


def test_child_that_does_not_end_is_waited_for_until_the_deadline() -> None:
    made = child("import time; time.sleep(60)")
    for timeout_s in (0.0, 0.05):
        with pytest.raises(subprocess.TimeoutExpired):
            made.wait(timeout_s)
    made.kill()
    assert made.wait(process.KILL_TIMEOUT_S * 10) == -9


def test_wait_for_a_child_sleeps_until_its_end_and_does_not_look_again_and_again() -> None:
    """So it returns at that end, not up to 50 ms later."""
    made = child("import time; time.sleep(1)")
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    assert made.wait(process.KILL_TIMEOUT_S * 10) == 0
    assert resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before < 10


def test_child_that_there_is_no_descriptor_for_is_ended() -> None:
    started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            Child(started)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert started.returncode == -9
