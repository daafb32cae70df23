"""The data plane of one lane: `python -m snapfs.fuse.worker`, started by supervisor.Lane.

Serves the kernel with pyfuse3 and obeys the supervisor over the control channel. When the
supervisor goes away it serves on: containers must not notice. It ends when the mount is gone
everywhere, or when it is told to stop. It reads the metadata and never writes it.

One root nursery: the session, and the listener with a task for each request under way.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import socket
import sys
import time
from pathlib import Path
from typing import assert_never

import msgspec
import pyfuse3
import structlog
import trio

from snapfs import logs
from snapfs.fuse import control, session
from snapfs.fuse.attributes import View
from snapfs.fuse.flushing import flush_dirty_pages
from snapfs.fuse.lane import LaneForest
from snapfs.fuse.operations import OverlayOperations
from snapfs.fuse.threads import blocking
from snapfs.model import SnapfsError, SnapshotId
from snapfs.overlay import Inodes, identity
from snapfs.snapshots import LayerReader

log = structlog.get_logger(__name__)


class Worker:
    """Answers the supervisor's requests about one session."""

    def __init__(
        self, channel: trio.socket.SocketType, forest: LaneForest, operations: OverlayOperations
    ) -> None:
        self._channel = channel
        self._forest = forest
        self._operations = operations
        self._born_s = time.monotonic()

    async def listen(self) -> None:
        """Obey until the supervisor closes the channel; then return, and the session goes on."""
        async with trio.open_nursery() as nursery:
            while packet := await self._receive():
                try:
                    message = control.decode(packet)
                except msgspec.MsgspecError as error:
                    log.error("worker.bad_packet", error=str(error))
                    continue
                nursery.start_soon(self._handle, message)
        log.info("worker.supervisor_gone", effect="serving on while the mount is in use")

    async def say(self, message: control.Message) -> None:
        """Send a message; a supervisor that is gone does not matter."""
        with contextlib.suppress(OSError):
            await self._channel.send(control.encode(message))

    async def _receive(self) -> bytes:
        try:
            return await self._channel.recv(control.MAX_PACKET_BYTES)
        except OSError:
            return b""

    async def _handle(self, message: control.Message) -> None:
        try:
            answer = await self._obey(message)
        except Exception as error:
            log.exception("worker.request_failed", request=str(message))
            answer = control.Answer(getattr(message, "id", 0), error=f"{error!r}; see the log")
        if answer is not None:
            await self.say(answer)

    async def _obey(self, message: control.Message) -> control.Answer | None:
        match message:
            case control.Freeze():
                return await self._freeze(message)
            case control.Thaw():
                self._forest.thaw(SnapshotId(message.snapshot))
            case control.Drop():
                return await self._drop(message)
            case control.GetStatus():
                return control.Answer(message.id, status=self._status())
            case control.Stop():
                pyfuse3.terminate()
            case control.Begin() | control.Ready() | control.Answer():
                log.error("worker.unexpected_message", message=str(message))
                return None
            case _:
                assert_never(message)
        return control.Answer(message.id)

    async def _freeze(self, wish: control.Freeze) -> control.Answer:
        snapshot_id = SnapshotId(wish.snapshot)
        try:
            with trio.fail_after(wish.timeout_s):
                shown = self._forest.shown(snapshot_id)
                if shown is not None and not shown.gate.frozen:  # else it would wait for the thaw
                    await flush_dirty_pages(self._operations, shown)
                await self._forest.freeze(snapshot_id)
                self._forest.settle(snapshot_id)
        except trio.TooSlowError:
            self._forest.thaw(snapshot_id)
            text = f"snapshot {snapshot_id}: changes are still in flight; try again when it is idle"
            return control.Answer(wish.id, error=text, late=True)
        except OSError as error:
            self._forest.thaw(snapshot_id)
            return control.Answer(wish.id, error=f"snapshot {snapshot_id}: {error}")
        return control.Answer(wish.id)

    async def _drop(self, wish: control.Drop) -> control.Answer:
        snapshot_id = SnapshotId(wish.snapshot)
        if not self._forest.drop(snapshot_id):
            return control.Answer(wish.id)
        name = str(snapshot_id).encode()
        try:
            with trio.fail_after(wish.timeout_s), contextlib.suppress(FileNotFoundError):
                await blocking(
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
            nodes=len(self._forest.inodes),
            lookups=self._forest.lookups,
            files=len(operations.files),
            directories=len(operations.directories),
            copying=operations.copy_ups.under_way,
            copied=operations.copy_ups.done,
            trees=self._forest.shown_ids,
            frozen=self._forest.frozen_ids,
            dropped=self._forest.dropped_ids,
        )


async def serve(root: Path, fuse_fd: int, channel: socket.socket) -> None:
    """Serve one lane until its mount is gone."""
    speaker = trio.socket.from_stdlib_socket(channel)
    begin = control.decode(await speaker.recv(control.MAX_PACKET_BYTES))
    if not isinstance(begin, control.Begin):
        raise RuntimeError(f"the supervisor began with {begin!r}")
    with LayerReader.open(root) as reader:
        frozen = map(SnapshotId, begin.frozen)
        forest = LaneForest(reader, root / "layers", Inodes(), frozen=frozen)
        operations = OverlayOperations(forest, View())
        worker = Worker(speaker, forest, operations)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.listen)
            await session.serve(
                operations,
                fuse_fd,
                begin.init,
                ready=lambda: nursery.start_soon(worker.say, control.Ready(os.getpid())),
            )
            nursery.cancel_scope.cancel()
        forest.close()


def raise_descriptor_limit() -> None:
    """Allow as many open files as the hard limit says: a node or a layer may need one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> int:
    """Run a worker; exit status 0 when the mount is gone, 1 when it could not serve."""
    parser = argparse.ArgumentParser(prog="snapfs.fuse.worker")
    parser.add_argument("--lane", required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--fuse-fd", type=int, required=True)
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--log-format", default="text")
    chosen = parser.parse_args()
    logs.configure(chosen.log_level, chosen.log_format)
    structlog.contextvars.bind_contextvars(lane=chosen.lane)
    raise_descriptor_limit()
    os.umask(0)
    os.set_inheritable(chosen.fuse_fd, False)
    os.set_inheritable(chosen.control_fd, False)
    channel = socket.socket(fileno=chosen.control_fd)
    try:
        trio.run(serve, chosen.root, chosen.fuse_fd, channel)
    except (SnapfsError, OSError, ExceptionGroup):
        log.exception("worker.failed")
        return 1
    log.info("worker.ended", reason="the mount is gone")
    return 0


if __name__ == "__main__":
    sys.exit(main())
