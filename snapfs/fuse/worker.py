"""The data plane of one lane, started by supervisor.Lane (workerstart.py).

Serves the kernel with pyfuse3 and obeys the supervisor over the control channel. When the
supervisor goes away it serves on: containers must not notice. The next one comes in by the door. It
ends when the mount is gone everywhere, or when it is told to stop; told to `Leave`, it unmounts
when nobody uses the mount any more. It reads the metadata and never writes it.

One root nursery: the session, the door, and the conversation with a task for each request under
way.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import socket
import time
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

import msgspec
import pyfuse3
import structlog
import trio

from snapfs import __version__, confinement, heap, logs, processes
from snapfs.fuse import channel, control, door, orphans, session
from snapfs.fuse.attributes import View
from snapfs.fuse.awake import Awake, kept_awake
from snapfs.fuse.backing import BackingIds, ids_of
from snapfs.fuse.door import Door
from snapfs.fuse.features import Feature, features
from snapfs.fuse.flushing import unbound_writers
from snapfs.fuse.freezing import Freezing
from snapfs.fuse.handover import Connection, Init
from snapfs.fuse.inflight import InFlight
from snapfs.fuse.lane import LaneForest
from snapfs.fuse.lanemount import LaneMount
from snapfs.fuse.modes import Mode
from snapfs.fuse.noopen import NoOpenOperations
from snapfs.fuse.operations import OverlayOperations
from snapfs.fuse.progress import tell_step
from snapfs.fuse.threads import notified
from snapfs.model import LaneName, Quota, SnapfsError, SnapshotId
from snapfs.overlay import Inodes, Places, identity
from snapfs.overlay.quiet import ignore_lease_signals
from snapfs.snapshots import LayerReader

LOOK_FOR_USERS_S = 1.0
UNMOUNT_TIMEOUT_S = 10.0
DROP_TIMEOUT_S = 2.0

log = structlog.get_logger(__name__)


class Worker:
    """Answers the supervisor's requests about one session; one supervisor at a time."""

    def __init__(
        self,
        lane: str,
        served: control.Served,
        mode: Mode,
        mount: LaneMount,
        forest: LaneForest,
        operations: OverlayOperations,
        paused: Iterable[SnapshotId] = (),
        *,
        besides: Iterable[Feature] = (),
    ) -> None:
        """`paused` are snapshots that were frozen before this worker, and thaw with `begin`;
        `besides` are features that are not the mount's."""
        self._lane = lane
        self._served = served
        self._mode = mode
        self._mount = mount
        self._forest = forest
        self._operations = operations
        self._features = (
            *features(mount.connection.init, mode.wanted),
            *besides,
        )
        self._born_s = time.monotonic()
        self._seat = trio.Lock()
        """Held by who speaks with a supervisor, and while the mount is ended for want of one."""
        self._told_to_leave = False
        self._slack = heap.Slack()
        self._freezing = Freezing(forest, operations, paused)

    async def begin(self, channel: trio.socket.SocketType) -> None:
        """Obey the supervisor that started this process."""
        async with self._seat:
            await self._listen(channel)

    async def converse(self, channel: trio.socket.SocketType, hello: control.Hello) -> None:
        """Obey a supervisor that came by the door, if it may."""
        if (hello.protocol, hello.lane) != (control.PROTOCOL, self._lane):
            reason = f"lane {self._lane} is served, with protocol {control.PROTOCOL}"
            return await door.refuse(channel, reason)
        with trio.move_on_after(door.SEAT_TIMEOUT_S):
            await self._seat.acquire()
        if self._seat.statistics().owner is not trio.lowlevel.current_task():
            return await door.refuse(channel, "another control process is connected")
        try:
            self._told_to_leave = False
            self._forest.set_default_quota(Quota(*hello.quota))
            await self._take_stock(frozenset(map(SnapshotId, hello.frozen)))
            await door.welcome(channel, self._introduction(), self._mount.connection)
            log.info("worker.adopted", by_version=hello.version)
            await self._listen(channel)
        finally:
            self._seat.release()

    async def leave_when_unused(self) -> None:
        """Unmount once there is no supervisor by intent and no user."""
        while True:
            await trio.sleep(LOOK_FOR_USERS_S)
            if not self._told_to_leave:
                continue
            async with self._seat:
                if self._told_to_leave and self._mount.is_in_place:
                    await trio.to_thread.run_sync(self._end_unused_mount)

    def _end_unused_mount(self) -> None:
        if not self._mount.uses() and self._mount.unmount(UNMOUNT_TIMEOUT_S):
            log.info("worker.unmounted", reason="nobody uses it and there is no control process")

    async def _listen(self, channel: trio.socket.SocketType) -> None:
        """Obey until the supervisor closes the channel; then return, and the session goes on.

        What it asked and can hear no answer to is given up.
        """
        async with trio.open_nursery() as nursery:
            while packet := await _receive(channel):
                try:
                    message = control.decode(packet)
                except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                    log.error("worker.bad_packet", error=str(error))
                    continue
                nursery.start_soon(self._handle, channel, message)
            nursery.cancel_scope.cancel()
        self._freezing.thaw_paused()
        log.info("worker.supervisor_gone", effect="serving on while the mount is in use")

    async def _take_stock(self, keep: Container[SnapshotId]) -> None:
        """Undo what a dead supervisor had begun, and learn what it had no time to tell.

        It was holding a tree for a commit: that was recorded, or it never will be.
        """
        for snapshot_id in self._forest.gone_ids:
            answer = await self._drop(control.Drop(0, snapshot_id, DROP_TIMEOUT_S))
            log.info("worker.dropped_late", snapshot=snapshot_id, error=answer.error)
        for snapshot_id in self._forest.frozen_ids:
            if snapshot_id not in keep:
                self._forest.thaw(snapshot_id)
                log.info("worker.thawed_late", snapshot=snapshot_id)

    def _introduction(self) -> control.Welcome:
        init = self._mount.connection.init
        return control.Welcome.of(__version__, self._lane, self._served, init, self._mode)

    async def _handle(self, channel: trio.socket.SocketType, message: control.Message) -> None:
        try:
            answer = await self._obey(message)
        except Exception as error:
            log.exception("worker.request_failed", request=str(message))
            answer = control.Answer(getattr(message, "id", 0), error=f"{error!r}; see the log")
        if answer is not None:
            await say(channel, answer)

    async def _obey(self, message: control.Message) -> control.Answer | None:
        match message:
            case control.Freeze():
                return await self._freezing.freeze(message)
            case control.Thaw():
                held_ns = self._freezing.thaw(SnapshotId(message.snapshot))
                return control.Answer(message.id, held_ns=held_ns)
            case control.Drop():
                return await self._drop(message)
            case control.GetStatus():
                await self._give_back()
                return control.Answer(message.id, status=self._status())
            case control.Rebind():
                self._forest.rebind(SnapshotId(message.snapshot))
            case control.GetUsage():
                found = self._forest.usage(SnapshotId(message.snapshot))
                usage = None if found is None else (found.size_bytes, found.inodes)
                return control.Answer(message.id, usage=usage)
            case control.GetUnbound():
                root = identity.root(SnapshotId(message.snapshot))
                paths = await unbound_writers(self._operations, root)
                return control.Answer(
                    message.id, unbound=(len(paths), tuple(paths[: processes.SHOWN]))
                )
            case control.Stop():
                pyfuse3.terminate()
            case control.Leave():
                self._told_to_leave = True
            case (
                control.Begin()
                | control.Hello()
                | control.Welcome()
                | control.Refused()
                | control.Ready()
                | control.Answer()
            ):
                log.error("worker.unexpected_message", message=str(message))
                return None
            case _:
                assert_never(message)
        return control.Answer(message.id)

    async def _give_back(self) -> None:
        """Return memory to the system when the kernel has forgotten many files. The supervisor asks
        often enough for nobody else to look."""
        places = self._forest.inodes.places
        if places is not None and self._slack.is_due(len(places), places.take_most()):
            await trio.to_thread.run_sync(heap.give_back)

    async def _drop(self, wish: control.Drop) -> control.Answer:
        snapshot_id = SnapshotId(wish.snapshot)
        if not self._forest.drop(snapshot_id):
            return control.Answer(wish.id)
        name = str(snapshot_id).encode()
        try:
            with trio.fail_after(wish.timeout_s), contextlib.suppress(FileNotFoundError):
                await notified(
                    self._operations.threads.notify,
                    pyfuse3.invalidate_entry,
                    identity.LANE_ROOT,
                    name,
                )
        except (OSError, trio.TooSlowError) as error:
            return control.Answer(
                wish.id, error=f"snapshot {snapshot_id}: its name is kept: {error}"
            )
        return control.Answer(wish.id)

    def _status(self) -> control.WorkerStatus:
        operations = self._operations
        return control.WorkerStatus(
            pid=os.getpid(),
            uptime_s=round(time.monotonic() - self._born_s, 3),
            nodes=self._forest.known_count,
            lookups=self._forest.lookups,
            files=operations.open_count,
            copying=operations.copy_ups.under_way,
            copied=operations.copy_ups.done,
            trees=self._forest.shown_ids,
            frozen=self._forest.frozen_ids,
            dropped=self._forest.dropped_ids,
            features=self._reasons(),
            backing=0 if self._forest.backing is None else len(self._forest.backing),
            answered=dict(operations.hot.answered()),
            left=dict(operations.hot.left()),
            ended=operations.hot.ended(),
        )

    def _reasons(self) -> dict[str, str]:
        """Return each feature with why it is off; empty when it is on."""
        found = {it.name: it.reason for it in (*self._features, self._operations.hot.feature)}
        found["passthrough"] = found["passthrough"] or self._operations.passing.why_not
        return found


async def say(channel: trio.socket.SocketType, message: control.Message) -> None:
    """Send a message; a supervisor that is gone does not matter."""
    with contextlib.suppress(OSError):
        await channel.send(control.encode(message))


async def _receive(channel: trio.socket.SocketType) -> bytes:
    try:
        return await channel.recv(control.MAX_PACKET_BYTES)
    except OSError:
        return b""


def _open_door(path: Path) -> Door | None:
    try:
        return Door(path)
    except OSError as error:  # who uses the mount matters more than who may adopt it
        log.error("worker.no_door", path=str(path), error=str(error))
        return None


@dataclass(frozen=True, slots=True)
class Settings:
    """What a worker is started with; see process.WorkerSettings."""

    lane: str
    root: Path
    mountpoint: Path
    device: str
    door: Path
    mode: Mode
    metacopy: bool = False
    """See TreeSpec."""
    awake: Awake = Awake.AUTO
    kept: str = ""
    """What this process should have given up and could not (confinement.py)."""


async def serve(
    settings: Settings, fuse_fd: int, memory: Sequence[int], channel: socket.socket
) -> None:
    """Serve one lane until its mount is gone; at once when the supervisor does not want it."""
    speaker = trio.socket.from_stdlib_socket(channel)
    tell_step("snapfs spare")
    packet = await _receive(speaker)
    tell_step("snapfs begins")
    if not packet:
        return  # not needed: the supervisor has ended
    begin = control.decode(packet)
    if not isinstance(begin, control.Begin):
        raise RuntimeError(f"the supervisor began with {begin!r}")
    # The session gives its own descriptor to libfuse.
    spare = Connection.of(os.dup(fuse_fd), begin.init, memory)
    if not spare.resend():
        log.warning("worker.no_resend", effect="what a dead worker had in hand is never answered")
    mount = LaneMount(settings.mountpoint, spare, settings.device)
    sizes = _sizes(spare, settings.mode)
    places, inflight = Places(spare.places), InFlight(spare.inflight)
    backing = None if settings.mode is Mode.NO_OPEN else ids_of(spare)
    if _is_cut(sizes, len(places)) or (backing is not None and backing.opened.damaged):
        places.lose()
    _tell_damage(places, inflight, backing)
    tell_step("snapfs store")
    with (
        LayerReader.open(settings.root, LaneName(settings.lane)) as reader,
        kept_awake(settings.awake) as why_asleep,
    ):
        served = control.Served.of(settings.root, settings.mountpoint, settings.device)
        frozen = map(SnapshotId, begin.frozen)
        forest = LaneForest(
            reader,
            settings.root / "layers",
            Inodes(places),
            backing,
            frozen=frozen,
            metacopy=settings.metacopy,
            maps_owners=not mount.can_map_owners(settings.mode),
            connection=orphans.name_of(spare.journal),
        )
        forest.set_default_quota(Quota(*begin.quota))
        operations = _operations(settings.mode, forest, inflight)
        if Init.PASSTHROUGH in begin.init.offered & settings.mode.wanted:
            operations.passing.try_out(settings.root / "metadata" / "data.mdb")
        paused = map(SnapshotId, begin.paused)
        worker = Worker(
            *(settings.lane, served, settings.mode, mount, forest, operations, paused),
            besides=(
                Feature("confinement", settings.kept),
                Feature("processors kept awake", why_asleep),
            ),
        )
        entrance = _open_door(settings.door)
        tell_step("snapfs session")
        async with trio.open_nursery() as nursery:

            def begin_work() -> None:
                tell_step("snapfs worker")
                with contextlib.suppress(OSError):  # a supervisor that is gone does not matter
                    # At once: the first request may wait for a disk.
                    channel.send(control.encode(control.Ready(os.getpid())))
                nursery.start_soon(worker.begin, speaker)
                nursery.start_soon(worker.leave_when_unused)
                nursery.start_soon(forest.counting.run)
                nursery.start_soon(forest.settle_doubts)
                nursery.start_soon(operations.refused_pages.drop)
                if entrance is not None:
                    nursery.start_soon(entrance.attend, worker.converse)

            await session.serve(operations, fuse_fd, begin.init, ready=begin_work)
            log.info("worker.ended", reason="the mount is gone")
            nursery.cancel_scope.cancel()
        if entrance is not None:
            entrance.close()
        forest.close()


def _sizes(connection: Connection, mode: Mode) -> list[int]:
    """Return how big each part is of what a dead worker left, the places last; the first worker
    finds nothing."""
    has_journal = mode is not Mode.NO_OPEN and channel.loaded()
    used = connection.memory if has_journal else connection.memory[1:]
    return [os.fstat(fd).st_size for fd in used]


def _is_cut(sizes: Sequence[int], numbers: int) -> bool:
    """Whether a part is empty that was not, by the sizes and how many numbers the places have.

    A first worker that is killed as it begins leaves some empty, but the places, which are made
    first, and these without a number: the kernel knows no file.
    """
    return any(sizes) and not (sizes[-1] and (all(sizes) or not numbers))


def _tell_damage(places: Places, inflight: InFlight, backing: BackingIds | None) -> None:
    """Name what a dead worker left that makes no sense; it is gone on without."""
    if places.damaged:
        log.error("places.damaged", effect="files that are known already are looked for by walks")
    if places.is_short:
        log.warning("places.short", effect="a commit writes back all files of its snapshot first")
    if inflight.damaged:
        effect = "a request that comes again may have happened: what is there decides"
        log.error("inflight.damaged", records=inflight.damaged, effect=effect)
    if backing is not None and backing.opened.damaged:
        effect = "a file that is open may be refused to who opens it again, until it is closed"
        log.error("backing.damaged", records=backing.opened.damaged, effect=effect)


def _operations(mode: Mode, forest: LaneForest, inflight: InFlight) -> OverlayOperations:
    if mode is Mode.NO_OPEN and channel.loaded():
        return NoOpenOperations(forest, View(), inflight=inflight)
    return OverlayOperations(forest, View(), inflight=inflight)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def raise_descriptor_limit() -> None:
    """Allow as many open files as the hard limit says: a node or a layer may need one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> int:
    """Run a worker; exit status 0 when the mount is gone, 1 when it could not serve."""
    parser = argparse.ArgumentParser(prog="snapfs.fuse.worker")
    parser.add_argument("--lane", required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--mountpoint", type=Path, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--door", type=Path, required=True)
    parser.add_argument("--mode", type=Mode, required=True)
    parser.add_argument("--metacopy", action="store_true")
    parser.add_argument("--awake", type=Awake, default=Awake.AUTO)
    parser.add_argument("--fuse-fd", type=int, required=True)
    parser.add_argument("--memory-fds", type=_numbers, required=True)
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--log-format", default="text")
    chosen = parser.parse_args()
    logs.configure(chosen.log_level, chosen.log_format)
    structlog.contextvars.bind_contextvars(lane=chosen.lane)
    raise_descriptor_limit()
    os.umask(0)
    ignore_lease_signals()
    for fd in (chosen.fuse_fd, *chosen.memory_fds, chosen.control_fd):
        os.set_inheritable(fd, False)
    channel = socket.socket(fileno=chosen.control_fd)
    settings = Settings(
        *(chosen.lane, chosen.root, chosen.mountpoint, chosen.device, chosen.door, chosen.mode),
        metacopy=chosen.metacopy,
        awake=chosen.awake,
        kept=confinement.confine(confinement.WORKER),
    )
    try:
        trio.run(serve, settings, chosen.fuse_fd, chosen.memory_fds, channel)
    except (SnapfsError, OSError, ExceptionGroup):
        log.exception("worker.failed")
        return 1
    return 0
