"""A lane as the control process has it: one FUSE mount, and a worker that is kept alive under it.

The mount and its descriptor belong to the lane, not to the worker: when a worker dies, the watcher
(watching) starts another on the same descriptor, with the same code as the first (replacing).
Requests made meanwhile wait in the kernel. What a worker must know besides the layers, which
snapshots are frozen, is kept in the lane's seat and told to each new one; it is asked by asking.

A lane that is in use when the control process stops, or is killed, is left as it is; `start` adopts
the worker that it finds there (adoption.py). Which of the two happened makes no difference later.

Thread-safe: the state is the seat's. Every method returns within its deadline. No method touches a
path inside the mount.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from snapfs import __version__
from snapfs.fuse import adoption, control, mounts, progress, stored
from snapfs.fuse.asking import Asking, hangs, is_dead, thaw_late
from snapfs.fuse.awake import Awake
from snapfs.fuse.idmapped import Clones
from snapfs.fuse.lanemount import FS_TYPE, LaneMount, abort_stale, real_mountpoint
from snapfs.fuse.modes import Mode
from snapfs.fuse.process import WorkerProcess, WorkerSettings
from snapfs.fuse.replacing import Replacing
from snapfs.fuse.seat import LaneState, Seat
from snapfs.fuse.watching import ANSWER_TIMEOUT_S, WATCHDOG_S, Watcher
from snapfs.model import (
    DeadlineExceeded,
    Quota,
    SnapfsError,
    SnapshotId,
    Unavailable,
    Unbound,
    Usage,
)
from snapfs.snapshots.idmapping import IdMapping

log = structlog.get_logger(__name__)

IN_USE_GRACE_S = 0.2
"""For the kernel to end a connection after the unmount."""
SHOWN_USES = 10
"""Named in the log when a lane is left in use."""


@dataclass(frozen=True, slots=True)
class LaneStatus:
    """What a lane is doing; `worker` is None when the worker did not answer."""

    name: str
    mountpoint: Path
    state: LaneState
    pid: int | None
    restarts: int
    worker: control.WorkerStatus | None
    worker_version: str | None = None
    """The release that the worker is of: an adopted one may be older than the control process."""
    mode: Mode = Mode.PASSTHROUGH
    """What the mount is; one that was adopted may be other than is configured now."""
    deaths: int = 0
    """Of workers in a row that died soon after they began."""
    delay_s: float = 0.0
    """Between the death of a worker and the start of the next."""
    displaced: tuple[str, ...] | None = None
    """Where it is still used, when it is not at its mount point; None while it is."""
    covered_by: str = ""
    """The type of what somebody has mounted in its place."""
    silent_s: float | None = None
    """Since the last answer, when its worker lives and does not answer; else None."""
    watchdog_s: float = WATCHDOG_S
    """After how long it is replaced."""
    waits_in: str = ""
    """In the kernel, when it is silent because it waits for a disk; then it is not replaced."""

    @property
    def serving(self) -> bool:
        return self.state is LaneState.SERVING and self.worker is not None


class Lane:
    """One FUSE mount and its worker; implements snapshots.Trees."""

    def __init__(
        self,
        name: str,
        mountpoint: Path,
        root: Path,
        *,
        door: Path,
        mode: Mode = Mode.PASSTHROUGH,
        log_level: str = "info",
        log_format: str = "text",
        quota: Quota | None = None,
        metacopy: bool = False,
        awake: Awake = Awake.AUTO,
        watchdog_s: float = WATCHDOG_S,
        store: stored.Store | None = None,
    ) -> None:
        """`door` is where workers listen for a later control process. A worker that says nothing
        for `watchdog_s` is replaced. `store` keeps the connection over the death of all processes.
        """
        self.name = name
        self._mountpoint = real_mountpoint(mountpoint)
        self._seat = Seat(
            name,
            WorkerSettings(
                name,
                root.absolute(),
                self._mountpoint,
                door.absolute(),
                mode,
                log_level,
                log_format,
                quota or Quota(),
                metacopy,
                awake,
            ),
        )
        self._asking = Asking(self._seat)
        self._replacing = Replacing(self._seat)
        self._watcher = Watcher(self._seat, self._replacing, watchdog_s)
        self._wanted_mode = mode
        self._clones = Clones(self._mountpoint)
        self._hung: adoption.WorkerHangs | None = None
        """That the worker of an earlier control process does not answer."""
        self._watchdog_s = watchdog_s
        self._store = store or stored.NoStore()

    @property
    def state(self) -> LaneState:
        with self._seat.changed:
            return self._seat.state

    @property
    def is_displaced(self) -> bool:
        """Whether it lives and is not at its mount point, or not to be seen there.

        Its connection goes on for who uses it elsewhere, so no other can be mounted in its place:
        two workers never serve one snapshot.
        """
        with self._seat.changed:
            mount = self._seat.mount
        return mount is not None and not mount.is_in_place and not mount.ended

    def put_back(self) -> bool:
        """Mount it again where somebody unmounted it while it was used; False while that cannot
        be, and it is displaced."""
        with self._seat.changed:
            mount, mode = self._seat.mount, self._seat.settings.mode
        return mount is None or mount.ended or mount.put_back(mode)

    @property
    def is_left_behind(self) -> bool:
        """Whether an earlier control process left its mount, or a worker that may still serve."""
        found = mounts.mounted_at(self._mountpoint)
        return self._seat.settings.door.exists() or bool(found and found[-1].type == FS_TYPE)

    def start(self, timeout_s: float) -> None:
        """Adopt a living worker with its mount, or mount and start one; return when it serves.

        Raises SnapfsError with nothing new left mounted or running.
        """
        deadline_s = time.monotonic() + timeout_s
        self._seat.open()
        self._hung = None
        mount, worker = (
            self._adopt(deadline_s) or self._resume(deadline_s) or self._mount_anew(deadline_s)
        )
        if worker.version != __version__ and mount.resends:
            worker = self._replacing.hand_over(mount, worker, deadline_s)
        if mount.is_in_place:
            mount.settle(_left(deadline_s))
        stored.keep(self._store, self._seat.settings, mount)
        self._watcher.start(worker)
        if worker.gone.is_set():
            self._await_successor(deadline_s)
        log.info("lane.started", lane=self.name, mountpoint=str(self._mountpoint), pid=worker.pid)

    def _adopt(self, deadline_s: float) -> tuple[LaneMount, WorkerProcess] | None:
        with self._seat.changed:
            frozen = tuple(sorted(self._seat.frozen))
        try:
            adopted = adoption.adopt(
                self._seat.settings, frozen, deadline_s, patience_s=self._patience_s(deadline_s)
            )
        except adoption.WorkerHangs as error:
            self._hung = error
            log.error("lane.worker_hangs", lane=self.name, error=str(error))
            return None
        if adopted is None:
            return None
        mount, worker = adopted.mount, adopted.worker
        self._seat.settings = replace(self._seat.settings, mode=adopted.mode)
        try:
            given_up = self._seat.take_on(worker, frozen)
        except SnapfsError:
            worker.close(1.0)
            mount.close()
            self._seat.become(LaneState.STOPPED)
            raise
        self._seat.put(mount)
        stored.discard(self._store, self.name)
        thaw_late(worker, given_up)
        log.info("lane.adopted", lane=self.name, pid=worker.pid, version=worker.version)
        return mount, worker

    def _patience_s(self, deadline_s: float) -> float:
        """For how long a worker is believed to be slow.

        Where the store has its connection, another one goes on; else its mount ends with it, so it
        is given as long as any worker.
        """
        if not isinstance(self._store, stored.NoStore):
            return adoption.ANSWER_TIMEOUT_S
        return max(adoption.ANSWER_TIMEOUT_S, min(self._watchdog_s, _left(deadline_s) / 2))

    def _resume(self, deadline_s: float) -> tuple[LaneMount, WorkerProcess] | None:
        """Go on under a mount that is in the service manager's store, with a new worker."""
        kept = stored.take(self._store, self._seat.settings)
        if kept is None:
            return None
        try:
            adoption.end_worker(self._seat.settings, _left(deadline_s))
            self._seat.settings = replace(self._seat.settings, mode=kept.mode)
            self._seat.put(kept.mount)
            worker = self._replacing.start(kept.mount, deadline_s)
        except SnapfsError:
            self._seat.put(None)
            kept.mount.close()
            self._seat.become(LaneState.STOPPED)
            raise
        log.info("lane.resumed", lane=self.name, pid=worker.pid)
        return kept.mount, worker

    def _mount_anew(self, deadline_s: float) -> tuple[LaneMount, WorkerProcess]:
        try:
            if self._hung is not None:
                self._end_hung(self._hung, deadline_s)
            self._seat.settings = replace(self._seat.settings, mode=self._wanted_mode)
            mount = LaneMount.open(self._mountpoint, self._wanted_mode, timeout_s=_left(deadline_s))
            self._seat.put(mount)
            return mount, self._replacing.start(mount, deadline_s)
        except SnapfsError:
            self._abandon()
            raise

    def _end_hung(self, hung: adoption.WorkerHangs, deadline_s: float) -> None:
        """End a worker that nobody can go on for: who waits for it gets an error, and two never
        serve one snapshot. Raises Unavailable when it waits for a disk and will go on."""
        held = "" if hung.pid is None else progress.held_in(hung.pid)
        if held:
            raise Unavailable(
                f"lane {self.name}: worker {hung.pid} waits in {held}; its mount and who uses it "
                "are left as they are: start again when the disk answers"
            )
        abort_stale(self._mountpoint)  # first: it may wait for an answer of its own mount
        adoption.end_worker(self._seat.settings, _left(deadline_s))

    def stop(self, timeout_s: float) -> None:
        """Unmount and end the worker; idempotent.

        A mount in use is left where it is, with its worker: the next `start` adopts both, here or
        in another process. Without one the worker unmounts when the last user is gone. So when the
        worker has just died, its successor is waited for; a mount that gets none is aborted, unless
        the service manager's store keeps it.
        """
        deadline_s = time.monotonic() + timeout_s
        self._await_living_worker(time.monotonic() + timeout_s / 3)
        mount, worker = self._seat.close()
        if mount is None:
            return
        if worker is not None and hangs(worker, min(ANSWER_TIMEOUT_S, timeout_s / 4)):
            self._end_or_leave(mount, worker, timeout_s / 4)
        elif worker is None:
            if isinstance(self._store, stored.NoStore) or not mount.uses():
                mount.abort()
        else:
            self._unmount_or_leave(mount, worker, timeout_s / 2)
        if worker is not None:
            worker.close(1.0)
            self._end(worker, mount, deadline_s)
        self._watcher.join(max(1.0, _left(deadline_s)))
        self._replacing.end_spare()  # the watcher may just have got another
        if mount.ended:
            stored.drop(self._store, self.name)
        mount.close()
        log.info("lane.stopped", lane=self.name)

    def status(self, timeout_s: float = 2.0) -> LaneStatus:
        """Ask the worker how it is."""
        worker_status = None
        seat = self._seat
        with seat.changed:
            worker = seat.worker
        if worker is not None and worker.is_ready:
            with contextlib.suppress(SnapfsError):  # told by worker=None
                asked = worker.call(control.GetStatus, time.monotonic() + timeout_s)
                worker_status = asked.status
                seat.note_answer()
        displaced, covered_by = self._uses() if self.is_displaced else (None, "")
        is_silent = worker is not None and worker.is_ready and worker_status is None
        with seat.changed:
            return LaneStatus(
                self.name,
                self._mountpoint,
                seat.state,
                seat.worker.pid if seat.worker else None,
                seat.restarts,
                worker_status,
                seat.worker.version if seat.worker else None,
                seat.settings.mode,
                self._watcher.deaths,
                self._watcher.delay_s,
                displaced,
                covered_by,
                time.monotonic() - seat.answered_s if is_silent else None,
                self._watchdog_s,
                progress.held_in(worker.pid) if worker is not None and is_silent else "",
            )

    def _uses(self) -> tuple[tuple[str, ...], str]:
        """Return where it is used, and what is in its place."""
        with self._seat.changed:
            mount = self._seat.mount
        return ((), "") if mount is None else (tuple(mount.uses()[:SHOWN_USES]), mount.covered_by)

    def mountpoint(self, snapshot_id: SnapshotId, /, mapping: IdMapping | None = None) -> Path:
        """Return the directory that shows a snapshot: what clients bind-mount.

        With a mapping it is in an idmapped clone of the lane, where the kernel can do that; where
        it cannot, the worker translates.
        """
        with self._seat.changed:
            mount, mode = self._seat.mount, self._seat.settings.mode
        if mapping is None or mount is None or not mount.can_map_owners(mode):
            return self._mountpoint / str(snapshot_id)
        return self._clones.directory(mapping, snapshot_id)

    def freeze(self, snapshot_id: SnapshotId, /, *, timeout_s: float, lasting: bool = True) -> None:
        """Return when no change of the snapshot is in flight and none can begin (Asking.freeze)."""
        self._asking.freeze(snapshot_id, timeout_s=timeout_s, lasting=lasting)

    def thaw(self, snapshot_id: SnapshotId, /) -> int | None:
        """Undo `freeze`; return for how many nanoseconds changes were held (Asking.thaw)."""
        return self._asking.thaw(snapshot_id)

    def drop(self, snapshot_id: SnapshotId, /) -> None:
        """Make the tree read-only for who still holds it, and let the kernel forget its name."""
        self._clones.drop(snapshot_id)
        self._asking.drop(snapshot_id)

    def rebind(self, snapshot_id: SnapshotId, /) -> None:
        """Let a quota that has changed in the metadata hold from the next request on."""
        self._asking.rebind(snapshot_id)

    def usage(self, snapshot_id: SnapshotId, /) -> Usage | None:
        """Return what a shown snapshot takes; None when it is not shown, or nobody knows now."""
        return self._asking.usage(snapshot_id)

    def unbound(self, snapshot_id: SnapshotId, /) -> Unbound:
        """Return the files that the kernel may write by itself; none where nobody knows now."""
        return self._asking.unbound(snapshot_id)

    def _await_successor(self, deadline_s: float) -> None:
        """Give the watcher time to start the worker that a handover did not; it goes on after."""
        with contextlib.suppress(DeadlineExceeded):
            self._seat.serving_worker(deadline_s)

    def _await_living_worker(self, deadline_s: float) -> None:
        """Return when a worker serves, or hangs, or there is no time left."""
        with contextlib.suppress(DeadlineExceeded):
            while (worker := self._seat.serving_worker(deadline_s)) is not None:
                if not is_dead(worker, _left(deadline_s) / 2):
                    return
                worker.gone.wait(_left(deadline_s))

    def _abandon(self) -> None:
        """Undo what `start` did; the mount serves nobody, so it is aborted."""
        with self._seat.changed:
            mount, self._seat.mount = self._seat.mount, None
        if mount is not None:
            mount.abort()
            mount.close()
        self._seat.become(LaneState.STOPPED)

    def _end_or_leave(self, mount: LaneMount, worker: WorkerProcess, timeout_s: float) -> None:
        """End a worker that hangs, and its mount; leave one that waits for a disk: it goes on with
        its users when that answers."""
        held = progress.held_in(worker.pid)
        if held:
            log.warning("lane.worker_waits", lane=self.name, pid=worker.pid, waits_in=held)
            self._unmount_or_leave(mount, worker, timeout_s)
            return
        log.error("lane.worker_hangs", lane=self.name, pid=worker.pid)
        mount.abort()  # it may wait for an answer of its own mount
        worker.kill()

    def _unmount_or_leave(self, mount: LaneMount, worker: WorkerProcess, timeout_s: float) -> None:
        """Unmount what nobody uses; else tell the worker that it is on its own."""
        uses = mount.uses()
        if not uses and mount.unmount(timeout_s):
            return
        with contextlib.suppress(SnapfsError):  # told by its end, or serves on as well
            worker.call(control.Leave, time.monotonic() + timeout_s)
        log.warning(
            "lane.left_in_use",
            lane=self.name,
            pid=worker.pid,
            uses=uses[:SHOWN_USES] or f"open files below {self._mountpoint}",
            more=len(uses[SHOWN_USES:]),
        )

    def _end(self, worker: WorkerProcess, mount: LaneMount, deadline_s: float) -> None:
        """Reap a worker whose mount is gone; leave one that still has users."""
        if worker.ended_within(_left(deadline_s) if mount.ended else IN_USE_GRACE_S):
            self._seat.settings.door.unlink(missing_ok=True)
            return
        if mount.ended:
            log.error("lane.worker_killed", lane=self.name, pid=worker.pid)
            worker.kill()
            self._seat.settings.door.unlink(missing_ok=True)
            return
        threading.Thread(target=worker.wait, name="lane-reaper", daemon=True).start()
        with self._seat.changed:
            self._seat.left_in_use = True
        if not mount.is_in_place:
            log.warning("lane.left_serving", lane=self.name, pid=worker.pid, reason="still in use")


def _left(deadline_s: float) -> float:
    return max(0.0, deadline_s - time.monotonic())
