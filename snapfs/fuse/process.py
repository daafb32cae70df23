"""One worker process as its supervisor sees it: started or adopted, spoken to, watched, ended.

Thread-safe. Lock: `_lock` guards `_waiting`, `_next` and writes to the channel; it is never held
across a system call that blocks. The reader thread ends with the worker, or when `close` shuts the
channel.
"""

from __future__ import annotations

import errno
import math
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import msgspec
import structlog

from snapfs import __version__
from snapfs.fuse import control
from snapfs.fuse.awake import Awake
from snapfs.fuse.handover import Connection
from snapfs.fuse.modes import Mode
from snapfs.fuse.progress import Progress, describe, held_in
from snapfs.model import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    Quota,
    ResourceExhausted,
    Unavailable,
)

POLL_S = 0.1
TELL_EVERY_S = 5.0
"""Of a worker that is still not ready."""
KILL_TIMEOUT_S = 2.0
"""For a process that was killed to be gone."""

log = structlog.get_logger(__name__)


class Unfinished(DeadlineExceeded):
    """Part of what was asked for is done for good: who asks again gets further."""


class Process(Protocol):
    """What is needed of a process: a `Child`, or a `Stranger` that somebody else has started."""

    @property
    def pid(self) -> int: ...

    def wait(self, timeout: float | None = None) -> int | None:
        """Return the exit status, None when it is not known; subprocess.TimeoutExpired."""

    def kill(self) -> None: ...


class Child:
    """A process that we have started; a wait for it returns at its end.

    That of subprocess looks again and again, up to 50 ms apart.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        """Take on a process that nobody has waited for; raises OSError, and then it has ended."""
        self.pid = process.pid
        self._process = process
        try:
            self._pidfd = os.pidfd_open(process.pid)
        except OSError:
            process.kill()
            process.wait()
            raise

    def __del__(self) -> None:
        if hasattr(self, "_pidfd"):
            os.close(self._pidfd)

    def wait(self, timeout: float | None = None) -> int:
        _await_end(self.pid, self._pidfd, timeout)
        return self._process.wait()

    def kill(self) -> None:
        self._process.kill()


class Stranger:
    """A living process that we did not start, held by a pidfd, which is ours from now on.

    It is our child nevertheless when this process started it before it began anew: then it is
    reaped, and its exit status known.
    """

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self._pidfd = pidfd
        self._reaping = threading.Lock()
        self._status: int | None = None

    def __del__(self) -> None:
        os.close(self._pidfd)

    def wait(self, timeout: float | None = None) -> int | None:
        _await_end(self.pid, self._pidfd, timeout)
        with self._reaping:
            if self._status is None:
                self._status = self._reap()
            return self._status

    def _reap(self) -> int | None:
        try:
            found = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return None  # another process's child
        if found is None:
            return None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    def kill(self) -> None:
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return  # it has ended


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What each worker of a lane is started with."""

    lane: str
    root: Path
    mountpoint: Path
    door: Path
    mode: Mode
    log_level: str
    log_format: str
    quota: Quota
    """For snapshots whose labels say none."""
    metacopy: bool = False
    """A change of attributes copies no data (overlay/metacopying.py)."""
    awake: Awake = Awake.AUTO

    @property
    def limits(self) -> control.Limits:
        return self.quota.size_bytes, self.quota.inodes


class WorkerProcess:
    """A running worker."""

    def __init__(
        self, name: str, process: Process, channel: socket.socket, *, version: str, ready: bool
    ) -> None:
        self.version = version
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[control.Answer]] = {}
        self._next = 1
        self._ready = ready
        self._settled = threading.Event()
        self.gone = threading.Event()
        """The worker has ended, or will never speak again."""
        self._channel = channel
        self._process = process
        self.started_s = time.monotonic()
        self._reader = threading.Thread(target=self._read, name=f"lane-{name}-reader", daemon=True)
        self._reader.start()

    @classmethod
    def start(
        cls,
        settings: WorkerSettings,
        connection: Connection,
        device: str,
    ) -> Self:
        """Start a worker, which touches nothing before `begin`; raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                _command(settings, device, connection, theirs.fileno()),
                pass_fds=(*connection.fds, theirs.fileno()),
                stdin=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
        return cls(settings.lane, Child(process), ours, version=__version__, ready=False)

    def begin(
        self,
        settings: WorkerSettings,
        connection: Connection,
        frozen: tuple[int, ...],
        paused: tuple[int, ...] = (),
    ) -> None:
        """Let it serve: nobody else reads from the connection any more; raises Unavailable.

        `paused` are those of `frozen` that thaw when we go.
        """
        self.started_s = time.monotonic()
        self._send(control.Begin.of(connection.init, frozen, paused, settings.limits))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_ready(self) -> bool:
        return self._ready and not self.gone.is_set()

    def wait_ready(
        self, deadline_s: float, *, still_s: float = math.inf, unless: threading.Event
    ) -> None:
        """Return when the worker serves.

        Raises DeadlineExceeded, also when it stands still for `still_s` and waits for no disk, or
        Unavailable when it died or `unless` was set.
        """
        progress, began_s, told_s = Progress(self.pid), time.monotonic(), TELL_EVERY_S
        while not self._settled.wait(min(POLL_S, _left(deadline_s))):
            if unless.is_set():
                raise Unavailable(f"worker {self.pid} is not needed any more")
            waited_s = time.monotonic() - began_s
            still = progress.stands_still(still_s) and not held_in(self.pid)
            if still or not _left(deadline_s):
                log.error("worker.not_ready", **self._late(waited_s))
                raise DeadlineExceeded(f"worker {self.pid} is not ready in time")
            if waited_s > told_s:
                told_s += TELL_EVERY_S
                log.info("worker.slow", **self._late(waited_s))
        if not self._ready:
            raise Unavailable(f"worker {self.pid} ended before it served; its log says why")

    def _late(self, waited_s: float) -> dict[str, object]:
        return {"pid": self.pid, "waited_s": round(waited_s, 1), **describe(self.pid)}

    def ended_within(self, timeout_s: float) -> bool:
        """Say whether the process ends within `timeout_s`."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def wait(self) -> None:
        """Wait for the process to end, however long it takes."""
        self._process.wait()

    def reap(self, timeout_s: float) -> int | None:
        """Return the exit status (negative: the signal) of a worker that closed its channel.

        None when it is not known: an adopted worker may be another process's child, and one that
        the kernel holds has not ended.
        """
        if not self.ended_within(timeout_s) and not self.kill():
            return None
        return self._process.wait(timeout_s)

    def call(self, build: Callable[[int], control.Request], deadline_s: float) -> control.Answer:
        """Send a request and return its answer.

        Raises Unavailable when the worker ends first, DeadlineExceeded (Unfinished),
        FailedPrecondition, ResourceExhausted or Internal with its words.
        """
        future: Future[control.Answer] = Future()
        with self._lock:
            number = self._next
            self._next += 1
            self._waiting[number] = future
        try:
            self._send(build(number))
            answer = future.result(_left(deadline_s))
        except FutureTimeout:
            raise DeadlineExceeded(f"worker {self.pid} did not answer in time") from None
        finally:
            with self._lock:
                self._waiting.pop(number, None)
        if answer.late:
            kind = Unfinished if answer.unfinished else DeadlineExceeded
            raise kind(answer.error or "the worker's deadline passed")
        if answer.refused:
            raise FailedPrecondition(answer.error or "the worker refuses")
        if answer.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceExhausted(f"{answer.error}; free some space")
        if answer.error is not None:
            raise Internal(f"worker {self.pid}: {answer.error}")
        return answer

    def kill(self) -> bool:
        """End the process at once and reap it; return whether it has ended.

        One that waits in the kernel for a disk ends when that answers. Until then what it is at may
        still happen, so no other may begin in its place.
        """
        self._process.kill()
        if self.ended_within(KILL_TIMEOUT_S):
            return True
        log.error("worker.held_by_the_kernel", pid=self.pid, waits_in=held_in(self.pid))
        return False

    def close(self, timeout_s: float) -> None:
        """Close the channel; a worker that still runs goes on serving."""
        _shut(self._channel)
        self._reader.join(timeout_s)

    def _send(self, message: control.Message) -> None:
        try:
            with self._lock:
                self._channel.send(
                    control.encode(message), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
                )
        except OSError as error:
            raise Unavailable(f"worker {self.pid} cannot be reached: {error.strerror}") from error

    def _read(self) -> None:
        while packet := self._receive():
            try:
                self._take(control.decode(packet))
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                log.error("worker.bad_packet", pid=self.pid, error=str(error))
        self.gone.set()
        self._settled.set()
        with self._lock:
            self._channel.close()
            waiting = list(self._waiting.values())
        for future in waiting:
            future.set_exception(Unavailable(f"worker {self.pid} ended while it was asked"))

    def _receive(self) -> bytes:
        try:
            return self._channel.recv(control.MAX_PACKET_BYTES)
        except OSError:
            return b""

    def _take(self, message: control.Message) -> None:
        match message:
            case control.Ready():
                self._ready = True
                self._settled.set()
            case control.Answer():
                with self._lock:
                    future = self._waiting.pop(message.id, None)
                if future is not None:
                    future.set_result(message)
            case _:
                log.error("worker.unexpected_message", pid=self.pid, message=str(message))


def _await_end(pid: int, pidfd: int, timeout_s: float | None) -> None:
    """Return when a process has ended; subprocess.TimeoutExpired."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    if not poller.poll(None if timeout_s is None else timeout_s * 1000):
        raise subprocess.TimeoutExpired(f"process {pid}", timeout_s or 0.0)


def _command(
    settings: WorkerSettings, device: str, connection: Connection, channel: int
) -> list[str]:
    return [
        sys.executable,
        "-P",
        "-m",
        "snapfs.fuse.workerstart",
        f"--lane={settings.lane}",
        f"--root={os.fspath(settings.root)}",
        f"--mountpoint={os.fspath(settings.mountpoint)}",
        f"--device={device}",
        f"--door={os.fspath(settings.door)}",
        f"--mode={settings.mode.value}",
        *(["--metacopy"] if settings.metacopy else []),
        f"--awake={settings.awake.value}",
        f"--fuse-fd={connection.fd}",
        f"--memory-fds={','.join(map(str, connection.memory))}",
        f"--control-fd={channel}",
        f"--log-level={settings.log_level}",
        f"--log-format={settings.log_format}",
    ]


def _left(deadline_s: float) -> float:
    return max(0.0, deadline_s - time.monotonic())


def _shut(channel: socket.socket) -> None:
    try:
        channel.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # the reader has closed it: the worker is gone
