"""Taking over a worker that outlived the control process which started it.

A worker listens at its lane's door (door.py). Whoever holds the state directory's lock may connect;
the worker says what it serves and hands over the FUSE descriptor. It is adopted when all of that is
what this lane would serve itself. The peer is known by the kernel's word (SO_PEERCRED), held by a
pidfd before it has answered, so that its number cannot become another process's meanwhile.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
import structlog

from snapfs import __version__, processes
from snapfs.fuse import control, unixsocket
from snapfs.fuse.handover import Connection
from snapfs.fuse.lanemount import LaneMount
from snapfs.fuse.modes import Mode
from snapfs.fuse.process import Stranger, WorkerProcess, WorkerSettings
from snapfs.model import FailedPrecondition, SnapfsError, SnapshotId, Unavailable

ANSWER_TIMEOUT_S = 6.0
"""For a worker to answer at its door; longer than it waits there for a dead control to be gone."""
_MOST_FDS = 16

log = structlog.get_logger(__name__)


class WorkerHangs(Unavailable):
    """Somebody is at a lane's door, and says nothing."""

    def __init__(self, text: str, pid: int | None) -> None:
        """`pid` is None for one that does not even let us in."""
        super().__init__(text)
        self.pid = pid


@dataclass(frozen=True, slots=True)
class Adopted:
    """A living worker and its mount, both ours now."""

    mount: LaneMount
    worker: WorkerProcess
    mode: Mode


def adopt(
    settings: WorkerSettings,
    frozen: Iterable[SnapshotId],
    deadline_s: float,
    *,
    patience_s: float = ANSWER_TIMEOUT_S,
) -> Adopted | None:
    """Take over the lane's living worker; None when there is none, or none that is to be adopted.

    What it still keeps frozen, beside `frozen`, is thawed, or dropped if it is gone. Raises
    WorkerHangs when it says nothing for `patience_s`.
    """
    timeout_s = max(0.1, min(patience_s, deadline_s - time.monotonic()))
    channel = None
    try:
        channel = unixsocket.connect(settings.door, timeout_s)
        channel.settimeout(timeout_s)
        return _introduce(channel, settings, tuple(frozen))
    except (FileNotFoundError, ConnectionRefusedError):
        return None  # nobody there: a first start, or the worker has died too
    except TimeoutError as error:
        text = f"lane {settings.lane}: whoever is at {settings.door} does not answer"
        raise WorkerHangs(text, None if channel is None else processes.peer(channel)[0]) from error
    except (SnapfsError, OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.warning(
            "lane.not_adopted",
            lane=settings.lane,
            reason=str(error) or repr(error),
            effect="a running worker, if any, serves its old users until they have gone",
        )
        return None
    finally:
        if channel is not None:
            channel.close()


def _introduce(
    channel: socket.socket, settings: WorkerSettings, frozen: tuple[int, ...]
) -> Adopted:
    pid, uid = processes.peer(channel)
    if uid != os.geteuid():
        raise FailedPrecondition(f"{settings.door} belongs to user {uid}; remove it")
    process = Stranger(pid, os.pidfd_open(pid))
    hello = control.Hello(control.PROTOCOL, __version__, settings.lane, frozen, settings.limits)
    channel.send(control.encode(hello))
    welcome, connection = _receive_welcome(channel, pid)
    try:
        check(welcome, settings)
    except SnapfsError:
        connection.close()
        raise
    mode = Mode(welcome.mode)
    mount = LaneMount.adopt(settings.mountpoint, connection, welcome.served.device, mode)
    try:
        ours = channel.dup()  # from now on the worker's; the caller closes its own
    except OSError:
        mount.close()
        raise
    ours.settimeout(None)
    worker = WorkerProcess(settings.lane, process, ours, version=welcome.version, ready=True)
    return Adopted(mount, worker, mode)


def _receive_welcome(channel: socket.socket, pid: int) -> tuple[control.Welcome, Connection]:
    packet, fds, flags, _ = socket.recv_fds(
        channel, control.MAX_PACKET_BYTES, _MOST_FDS, socket.MSG_CMSG_CLOEXEC
    )
    try:
        answer = control.decode(packet)
        if flags & socket.MSG_CTRUNC:
            raise Unavailable(f"there was no room for the descriptors of worker {pid}")
        if isinstance(answer, control.Welcome) and fds:
            fd, *kept = fds
            fds = []
            return answer, Connection.of(fd, answer.init, kept)
    finally:
        for fd in fds:
            os.close(fd)
    if isinstance(answer, control.Refused):
        raise FailedPrecondition(f"worker {pid} of version {answer.version}: {answer.reason}")
    raise FailedPrecondition(f"worker {pid} answered with {type(answer).__name__}")


def check(welcome: control.Welcome, settings: WorkerSettings) -> None:
    """Refuse, with FailedPrecondition, a worker that does not serve what this lane would."""
    if welcome.protocol != control.PROTOCOL:
        raise FailedPrecondition(
            f"the worker of version {welcome.version} speaks protocol {welcome.protocol}, "
            f"we {control.PROTOCOL}"
        )
    if welcome.mode not in (mode.value for mode in Mode):
        raise FailedPrecondition(f"the worker serves in mode {welcome.mode!r}, which is not known")
    mine = control.Served.of(settings.root, settings.mountpoint, welcome.served.device)
    if (welcome.lane, welcome.served) != (settings.lane, mine):
        raise FailedPrecondition(
            f"the worker serves root {welcome.served.root} as lane {welcome.lane} "
            f"at {welcome.served.mountpoint}, not {mine.root} as {settings.lane} "
            f"at {mine.mountpoint}"
        )


def end_worker(settings: WorkerSettings, timeout_s: float) -> None:
    """Kill whoever listens at a lane's door and is not to be adopted; return when it is dead.

    To be called before another reads from the same connection. Raises Unavailable when it does not
    die in time, or when nobody can say whether somebody is there.
    """
    try:
        with unixsocket.connect(settings.door, timeout_s) as channel:
            pid, uid = processes.peer(channel)
            process = Stranger(pid, os.pidfd_open(pid))
    except (FileNotFoundError, ConnectionRefusedError, ProcessLookupError):
        return  # nobody is there, or not any more
    except OSError as error:
        text = f"a worker may be at {settings.door}, and cannot be reached: {error}"
        raise Unavailable(f"lane {settings.lane}: {text}") from error
    if uid != os.geteuid():
        raise FailedPrecondition(f"{settings.door} belongs to user {uid}; remove it")
    log.error("lane.worker_ended", lane=settings.lane, pid=pid, reason="it cannot be adopted")
    process.kill()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"worker {pid} of lane {settings.lane} does not die") from None
