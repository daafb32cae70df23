"""A lane as the control process has it: one FUSE mount, and a worker that is kept alive under it.

The mount and its descriptor belong to the lane, not to the worker: when a worker dies, the watcher
starts another on the same descriptor, with the same code as the first. Requests made meanwhile wait
in the kernel. What a worker must know besides the layers, which snapshots are frozen, is kept here
and told to each new one.

A lane that is in use when the control process stops, or is killed, is left as it is; `start` adopts
the worker that it finds there (adoption.py). Which of the two happened makes no difference later.

Thread-safe. `_changed` (a condition) guards all state; no call to a worker or the kernel is made
under it. Every method returns within its deadline. No method touches a path inside the mount.
"""

from __future__ import annotations

import contextlib
import enum
import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import structlog

from snapfs import __version__
from snapfs.fuse import adoption, control, mounts, stored
from snapfs.fuse.idmapped import Clones
from snapfs.fuse.lanemount import FS_TYPE, LaneMount, abort_stale, real_mountpoint
from snapfs.fuse.modes import Mode
from snapfs.fuse.process import WorkerProcess, WorkerSettings
from snapfs.fuse.spare import SPARE_AFTER_S, Spare
from snapfs.model import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    Quota,
    SnapfsError,
    SnapshotId,
    Unavailable,
    Usage,
)
from snapfs.snapshots.idmapping import IdMapping

log = structlog.get_logger(__name__)

FIRST_DELAY_S = 0.05
LONGEST_DELAY_S = 5.0
STEADY_S = 2.0
"""A worker that lived this long clears the back-off."""
FREE_DEATHS = 3
"""In a row, before the next worker is kept waiting for longer than `FIRST_DELAY_S`."""
WATCHDOG_S = 20.0
LOOK_EVERY_S = 2.0
"""After a worker that may hang."""
CALL_TIMEOUT_S = 10.0
USAGE_TIMEOUT_S = 2.0
"""A walk finds out as well."""
ASK_AGAIN_S = 0.02
REAP_TIMEOUT_S = 2.0
"""For a worker to end after it closed its channel."""
ANSWER_TIMEOUT_S = 1.0
"""For a worker to show that it does not hang."""
IN_USE_GRACE_S = 0.2
"""For the kernel to end a connection after the unmount."""
SHOWN_USES = 10
"""Named in the log when a lane is left in use."""
READY_TIMEOUT_S = 15.0
"""For a worker that stands still."""
MOST_READY_S = 120.0
"""For one that gets on: it reads its code from a busy disk, say, as another would have to."""


class LaneState(enum.Enum):
    STOPPED = "stopped"
    STARTING = "starting"
    SERVING = "serving"
    RESTARTING = "restarting"
    UNMOUNTED = "unmounted"
    """Somebody else unmounted it; the lane must be stopped and started."""


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
    """Where it is still used, when somebody has unmounted it; None while it is in place."""
    silent_s: float | None = None
    """Since the last answer, when its worker lives and does not answer; else None."""
    watchdog_s: float = WATCHDOG_S
    """After how long it is replaced."""

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
        watchdog_s: float = WATCHDOG_S,
        store: stored.Store | None = None,
    ) -> None:
        """`door` is where workers listen for a later control process. A worker that says nothing
        for `watchdog_s` is replaced. `store` keeps the connection over the death of all processes.
        """
        self.name = name
        self._mountpoint = real_mountpoint(mountpoint)
        self._settings = WorkerSettings(
            name,
            root.absolute(),
            self._mountpoint,
            door.absolute(),
            mode,
            log_level,
            log_format,
            quota or Quota(),
        )
        self._wanted_mode = mode
        self._clones = Clones(self._mountpoint)
        self._changed = threading.Condition()
        self._state = LaneState.STOPPED
        self._mount: LaneMount | None = None
        self._worker: WorkerProcess | None = None
        self._watcher: threading.Thread | None = None
        self._stopping = threading.Event()
        self._hung = False
        """The worker of an earlier control process does not answer."""
        self._frozen: dict[SnapshotId, bool] = {}
        """What is frozen, and whether that lasts when the control process goes."""
        self._left_in_use = False
        """A worker that is not ours any more may show our snapshots."""
        self._restarts = 0
        self._deaths = 0
        """Of workers in a row that served for less than `STEADY_S`."""
        self._spare = Spare()
        self._watchdog_s = watchdog_s
        self._answered_s = 0.0
        """When the worker was last known to answer."""
        self._store = store or stored.NoStore()

    @property
    def state(self) -> LaneState:
        with self._changed:
            return self._state

    @property
    def is_displaced(self) -> bool:
        """Whether somebody unmounted it while it is in use elsewhere.

        Its connection goes on until those uses end, so nothing can be mounted in its place: two
        workers never serve one snapshot.
        """
        with self._changed:
            mount = self._mount
        return mount is not None and not mount.is_in_place and not mount.ended

    @property
    def is_left_behind(self) -> bool:
        """Whether an earlier control process left its mount, or a worker that may still serve."""
        found = mounts.mounted_at(self._mountpoint)
        return self._settings.door.exists() or bool(found and found[-1].type == FS_TYPE)

    def start(self, timeout_s: float) -> None:
        """Adopt a living worker with its mount, or mount and start one; return when it serves.

        Raises SnapfsError with nothing new left mounted or running.
        """
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            if self._state is not LaneState.STOPPED:
                raise FailedPrecondition(f"lane {self.name} is {self._state.value}; stop it first")
            self._state = LaneState.STARTING
            self._stopping.clear()
        self._hung = False
        mount, worker = (
            self._adopt(deadline_s) or self._resume(deadline_s) or self._mount_anew(deadline_s)
        )
        if worker.version != __version__ and mount.resends:
            worker = self._hand_over(mount, worker, deadline_s)
        mount.settle(_left(deadline_s))
        stored.keep(self._store, self._settings, mount)
        self._watcher = threading.Thread(
            target=self._watch, args=(worker,), name=f"lane-{self.name}-watcher", daemon=True
        )
        self._watcher.start()
        if worker.gone.is_set():
            self._await_successor(deadline_s)
        log.info("lane.started", lane=self.name, mountpoint=str(self._mountpoint), pid=worker.pid)

    def _adopt(self, deadline_s: float) -> tuple[LaneMount, WorkerProcess] | None:
        with self._changed:
            frozen = tuple(sorted(self._frozen))
        try:
            adopted = adoption.adopt(
                self._settings, frozen, deadline_s, patience_s=self._patience_s(deadline_s)
            )
        except adoption.WorkerHangs as error:
            self._hung = True
            log.error("lane.worker_hangs", lane=self.name, error=str(error))
            return None
        if adopted is None:
            return None
        mount, worker = adopted.mount, adopted.worker
        self._settings = replace(self._settings, mode=adopted.mode)
        try:
            given_up = self._take_on(worker, frozen)
        except SnapfsError:
            worker.close(1.0)
            mount.close()
            with self._changed:
                self._state = LaneState.STOPPED
            raise
        self._mount = mount
        stored.discard(self._store, self.name)
        self._thaw_late(worker, given_up)
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
        kept = stored.take(self._store, self._settings)
        if kept is None:
            return None
        try:
            adoption.end_worker(self._settings, _left(deadline_s))
            self._settings = replace(self._settings, mode=kept.mode)
            self._mount = kept.mount
            worker = self._start_worker(kept.mount, deadline_s)
        except SnapfsError:
            self._mount = None
            kept.mount.close()
            with self._changed:
                self._state = LaneState.STOPPED
            raise
        log.info("lane.resumed", lane=self.name, pid=worker.pid)
        return kept.mount, worker

    def _mount_anew(self, deadline_s: float) -> tuple[LaneMount, WorkerProcess]:
        try:
            if self._hung:
                self._end_hung(deadline_s)
            self._settings = replace(self._settings, mode=self._wanted_mode)
            mount = self._mount = LaneMount.open(
                self._mountpoint, self._wanted_mode, timeout_s=_left(deadline_s)
            )
            return mount, self._start_worker(mount, deadline_s)
        except SnapfsError:
            self._abandon()
            raise

    def _end_hung(self, deadline_s: float) -> None:
        """End a worker that nobody can go on for: who waits for it gets an error, and two never
        serve one snapshot."""
        abort_stale(self._mountpoint)  # first: it may wait for an answer of its own mount
        adoption.end_worker(self._settings, _left(deadline_s))

    def stop(self, timeout_s: float) -> None:
        """Unmount and end the worker; idempotent.

        A mount in use is left where it is, with its worker: the next `start` adopts both, here or
        in another process. Without one the worker unmounts when the last user is gone. So when the
        worker has just died, its successor is waited for; a mount that gets none is aborted, unless
        the service manager's store keeps it.
        """
        deadline_s = time.monotonic() + timeout_s
        self._await_living_worker(time.monotonic() + timeout_s / 3)
        self._stopping.set()
        with self._changed:
            mount, worker, watcher = self._mount, self._worker, self._watcher
            self._mount = self._worker = self._watcher = None
            self._state = LaneState.STOPPED
            self._changed.notify_all()
        if mount is None:
            return
        if worker is not None and _hangs(worker, min(ANSWER_TIMEOUT_S, timeout_s / 4)):
            log.error("lane.worker_hangs", lane=self.name, pid=worker.pid)
            mount.abort()  # it may wait for an answer of its own mount
            worker.kill()
        elif worker is None:
            if isinstance(self._store, stored.NoStore) or not mount.uses():
                mount.abort()
        else:
            self._unmount_or_leave(mount, worker, timeout_s / 2)
        if worker is not None:
            worker.close(1.0)
            self._end(worker, mount, deadline_s)
        if watcher is not None:
            watcher.join(max(1.0, _left(deadline_s)))
        self._spare.end()  # the watcher may just have got another
        if mount.ended:
            stored.drop(self._store, self.name)
        mount.close()
        log.info("lane.stopped", lane=self.name)

    def status(self, timeout_s: float = 2.0) -> LaneStatus:
        """Ask the worker how it is."""
        worker_status = None
        with self._changed:
            worker = self._worker
        if worker is not None and worker.is_ready:
            with contextlib.suppress(SnapfsError):  # told by worker=None
                asked = worker.call(control.GetStatus, time.monotonic() + timeout_s)
                worker_status = asked.status
                self._note_answer()
        displaced = self._uses() if self.is_displaced else None
        is_silent = worker is not None and worker.is_ready and worker_status is None
        with self._changed:
            return LaneStatus(
                self.name,
                self._mountpoint,
                self._state,
                self._worker.pid if self._worker else None,
                self._restarts,
                worker_status,
                self._worker.version if self._worker else None,
                self._settings.mode,
                self._deaths,
                self._delay_s,
                displaced,
                time.monotonic() - self._answered_s if is_silent else None,
                self._watchdog_s,
            )

    def _note_answer(self) -> None:
        with self._changed:
            self._answered_s = time.monotonic()

    def _uses(self) -> tuple[str, ...]:
        with self._changed:
            mount = self._mount
        return tuple(mount.uses()[:SHOWN_USES]) if mount is not None else ()

    def mountpoint(self, snapshot_id: SnapshotId, /, mapping: IdMapping | None = None) -> Path:
        """Return the directory that shows a snapshot: what clients bind-mount.

        With a mapping it is in an idmapped clone of the lane, where the kernel can do that; where
        it cannot, the worker translates.
        """
        with self._changed:
            mount, mode = self._mount, self._settings.mode
        if mapping is None or mount is None or not mount.can_map_owners(mode):
            return self._mountpoint / str(snapshot_id)
        return self._clones.directory(mapping, snapshot_id)

    def freeze(self, snapshot_id: SnapshotId, /, *, timeout_s: float, lasting: bool = True) -> None:
        """Return when no change of the snapshot is in flight and none can begin.

        Dirty pages of shared mappings are written first. A new worker is told of the freeze. One
        that is not `lasting` ends with the control process, whatever the worker.
        Raises DeadlineExceeded and FailedPrecondition with the tree thawed, the latter when files
        are open that the kernel writes by itself; Unavailable when the lane was left in use, or its
        mount has ended.
        """
        with self._changed:
            if self._left_in_use:
                raise Unavailable(
                    f"lane {self.name} is stopped and still in use; start it, which adopts it"
                )
            if self._state is LaneState.UNMOUNTED:
                raise Unavailable(
                    f"lane {self.name}: its mount has ended, and files of it may still be written; "
                    "start it again"
                )
            self._frozen[snapshot_id] = lasting
        try:
            self._ask(
                partial(
                    control.Freeze,
                    snapshot=snapshot_id,
                    timeout_s=timeout_s * 0.9,
                    lasting=lasting,
                ),
                timeout_s,
            )
        except SnapfsError:
            self._forget_freeze(snapshot_id)
            raise

    def thaw(self, snapshot_id: SnapshotId, /) -> int | None:
        """Undo `freeze`; a tree that is not frozen is left alone.

        Returns for how many nanoseconds changes were held, when the worker that froze it thaws it.
        """
        with self._changed:
            self._frozen.pop(snapshot_id, None)
        answer = self._ask(partial(control.Thaw, snapshot=snapshot_id), CALL_TIMEOUT_S)
        return None if answer is None else answer.held_ns

    def drop(self, snapshot_id: SnapshotId, /) -> None:
        """Make the tree read-only for who still holds it, and let the kernel forget its name."""
        self._clones.drop(snapshot_id)
        with self._changed:
            self._frozen.pop(snapshot_id, None)
        self._ask(
            partial(control.Drop, snapshot=snapshot_id, timeout_s=CALL_TIMEOUT_S * 0.9),
            CALL_TIMEOUT_S,
        )

    def rebind(self, snapshot_id: SnapshotId, /) -> None:
        """Let a quota that has changed in the metadata hold from the next request on."""
        self._ask(partial(control.Rebind, snapshot=snapshot_id), CALL_TIMEOUT_S)

    def usage(self, snapshot_id: SnapshotId, /) -> Usage | None:
        """Return what a shown snapshot takes; None when it is not shown, or nobody knows now."""
        with self._changed:
            worker = self._worker
        if worker is None or not worker.is_ready:
            return None
        try:
            answer = worker.call(
                partial(control.GetUsage, snapshot=snapshot_id), time.monotonic() + USAGE_TIMEOUT_S
            )
        except SnapfsError as error:  # an older worker does not know the question
            log.debug("lane.usage_unknown", lane=self.name, error=str(error))
            return None
        return None if answer.usage is None else Usage(*answer.usage)

    def _ask(
        self, build: Callable[[int], control.Request], timeout_s: float
    ) -> control.Answer | None:
        """Send a request that may be repeated; a worker that dies meanwhile is waited for.

        Nothing to do when no worker runs by intent: a tree that nobody shows holds still.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            worker = self._serving_worker(deadline_s)
            if worker is None:
                return None
            try:
                return worker.call(build, deadline_s)
            except Unavailable:
                if time.monotonic() > deadline_s:  # it lives, and takes no more questions
                    raise
                self._stopping.wait(ASK_AGAIN_S)

    def _serving_worker(self, deadline_s: float) -> WorkerProcess | None:
        with self._changed:
            while True:
                if self._state in (LaneState.STOPPED, LaneState.UNMOUNTED):
                    return None
                if self._worker is not None and self._worker.is_ready:
                    return self._worker
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    raise DeadlineExceeded(f"lane {self.name}: its worker is {self._state.value}")
                self._changed.wait(min(left_s, 0.1))

    def _thaw_late(self, worker: WorkerProcess, snapshots: set[SnapshotId]) -> None:
        """Undo, in a new worker, the freezes that were given up while it started."""
        for snapshot_id in snapshots:
            with contextlib.suppress(SnapfsError):  # it died: the next one is told right
                worker.call(
                    partial(control.Thaw, snapshot=snapshot_id), time.monotonic() + CALL_TIMEOUT_S
                )

    def _forget_freeze(self, snapshot_id: SnapshotId) -> None:
        with self._changed:
            self._frozen.pop(snapshot_id, None)
            worker = self._worker
        if worker is not None and worker.is_ready:
            with contextlib.suppress(SnapfsError):  # it undoes late freezes by itself as well
                worker.call(partial(control.Thaw, snapshot=snapshot_id), time.monotonic() + 1.0)

    def _start_worker(
        self, mount: LaneMount, deadline_s: float, *, still_s: float = math.inf
    ) -> WorkerProcess:
        """Have the process at hand serve, or one that is started now if there is none that lives.

        One that stands still for `still_s` is given up before the deadline. Who kills a worker may
        kill that one too, and it may not have ended when it is taken.
        """
        spare = self._spare.take()
        if spare is not None:
            try:
                return self._begin(spare, mount, deadline_s, still_s)
            except Unavailable as error:
                if self._stopping.is_set():
                    raise
                log.info("lane.spare_died", lane=self.name, error=str(error))
        return self._begin(self._new_process(mount), mount, deadline_s, still_s)

    def _begin(
        self, worker: WorkerProcess, mount: LaneMount, deadline_s: float, still_s: float
    ) -> WorkerProcess:
        with self._changed:
            frozen = tuple(sorted(self._frozen))
            paused = tuple(it for it in frozen if not self._frozen[it])
        try:
            worker.begin(self._settings, mount.connection, frozen, paused)
            worker.wait_ready(deadline_s, still_s=still_s, unless=self._stopping)
            given_up = self._take_on(worker, frozen)
        except SnapfsError:
            worker.kill()
            worker.close(1.0)
            raise
        self._thaw_late(worker, given_up)
        return worker

    def _new_process(self, mount: LaneMount) -> WorkerProcess:
        try:
            return WorkerProcess.start(self._settings, mount.connection, mount.device)
        except OSError as error:
            raise Internal(f"lane {self.name}: cannot start a worker: {error}") from error

    def _take_on(self, worker: WorkerProcess, frozen: Iterable[SnapshotId]) -> set[SnapshotId]:
        """Make a ready worker the lane's; return what it froze and need not any more."""
        with self._changed:
            if self._stopping.is_set():
                raise Unavailable(f"lane {self.name} is being stopped")
            self._worker = worker
            self._answered_s = time.monotonic()
            self._left_in_use = False
            self._restarts += self._state is LaneState.RESTARTING
            self._state = LaneState.SERVING
            self._changed.notify_all()
            return set(frozen) - self._frozen.keys()

    def _hand_over(
        self, mount: LaneMount, worker: WorkerProcess, deadline_s: float
    ) -> WorkerProcess:
        """Have a worker of the code that is installed now go on in the place of an older one.

        A handover is a kill with notice: what the old one has in hand comes to the next. When that
        does not start, the old one is returned, which has ended: the watcher finds it so, and tries
        again.
        """
        self._spare.renew(partial(self._new_process, mount))
        log.info("lane.worker_replaced", lane=self.name, pid=worker.pid, version=worker.version)
        worker.kill()
        worker.close(1.0)
        with self._changed:
            self._worker, self._state = None, LaneState.RESTARTING
        try:
            return self._start_worker(mount, min(deadline_s, time.monotonic() + READY_TIMEOUT_S))
        except SnapfsError as error:
            log.error("lane.restart_failed", lane=self.name, error=str(error))
            return worker

    def _await_successor(self, deadline_s: float) -> None:
        """Give the watcher time to start the worker that a handover did not; it goes on after."""
        with contextlib.suppress(DeadlineExceeded):
            self._serving_worker(deadline_s)

    def _await_living_worker(self, deadline_s: float) -> None:
        """Return when a worker serves, or hangs, or there is no time left."""
        with contextlib.suppress(DeadlineExceeded):
            while (worker := self._serving_worker(deadline_s)) is not None:
                if not _is_dead(worker, _left(deadline_s) / 2):
                    return
                worker.gone.wait(_left(deadline_s))

    def _abandon(self) -> None:
        """Undo what `start` did; the mount serves nobody, so it is aborted."""
        mount, self._mount = self._mount, None
        if mount is not None:
            mount.abort()
            mount.close()
        with self._changed:
            self._state = LaneState.STOPPED

    def _watch(self, worker: WorkerProcess) -> None:
        """Keep a worker under the mount; runs on a thread of its own until the lane stops."""
        while True:
            self._attend(worker)
            with self._changed:
                mount = self._mount
                if self._stopping.is_set() or mount is None:
                    return
                ended = mount.ended
                self._state = LaneState.UNMOUNTED if ended else LaneState.RESTARTING
                self._worker = None
                self._changed.notify_all()
            exit_status = worker.reap(REAP_TIMEOUT_S)
            if ended:
                log.error("lane.unmounted", lane=self.name, mountpoint=str(self._mountpoint))
                return
            log.error("lane.worker_died", lane=self.name, pid=worker.pid, exit_status=exit_status)
            self._count_death(time.monotonic() - worker.started_s)
            successor = self._succeed(mount)
            if successor is None:
                return
            worker = successor

    def _attend(self, worker: WorkerProcess) -> None:
        """Return when a worker is gone; end one that hangs, and have the next one at hand."""
        while True:
            self._keep_spare(worker)
            if worker.gone.wait(min(LOOK_EVERY_S, self._watchdog_s / 4)):
                return
            if self._stopping.is_set() or not _hangs(
                worker, min(ANSWER_TIMEOUT_S, self._watchdog_s / 2)
            ):
                self._note_answer()
            elif time.monotonic() - self._answered_s > self._watchdog_s:
                log.error("lane.worker_hangs", lane=self.name, pid=worker.pid)
                worker.kill()  # it can do nothing any more when the next one begins
                return

    def _keep_spare(self, worker: WorkerProcess) -> None:
        """Have the next worker at hand, once one has died or this one has come to stay."""
        with self._changed:
            mount, is_likely = self._mount, self._restarts > 0
        if mount is None or self._stopping.is_set():
            return
        if is_likely or time.monotonic() - worker.started_s > SPARE_AFTER_S:
            self._spare.renew(partial(self._new_process, mount))

    def _count_death(self, lived_s: float) -> None:
        with self._changed:
            self._deaths = 1 if lived_s > STEADY_S else self._deaths + 1

    @property
    def _delay_s(self) -> float:
        """How long the next worker is kept waiting."""
        late = max(0, self._deaths - FREE_DEATHS)
        return min(FIRST_DELAY_S * 2.0 ** min(late, 10), LONGEST_DELAY_S)

    def _succeed(self, mount: LaneMount) -> WorkerProcess | None:
        """Start the next worker, however often it takes; None when the lane stops first."""
        while not self._stopping.wait(self._delay_s):
            try:
                worker = self._start_worker(
                    mount, time.monotonic() + MOST_READY_S, still_s=READY_TIMEOUT_S
                )
            except SnapfsError as error:
                log.error("lane.restart_failed", lane=self.name, error=str(error))
                self._count_death(0.0)
                continue
            log.warning("lane.worker_restarted", lane=self.name, pid=worker.pid)
            return worker
        return None

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
            self._settings.door.unlink(missing_ok=True)
            return
        if mount.ended:
            log.error("lane.worker_killed", lane=self.name, pid=worker.pid)
            worker.kill()
            self._settings.door.unlink(missing_ok=True)
            return
        threading.Thread(target=worker.wait, name="lane-reaper", daemon=True).start()
        with self._changed:
            self._left_in_use = True
        if not mount.is_in_place:
            log.warning("lane.left_serving", lane=self.name, pid=worker.pid, reason="still in use")


def _left(deadline_s: float) -> float:
    return max(0.0, deadline_s - time.monotonic())


def _hangs(worker: WorkerProcess, timeout_s: float) -> bool:
    return not _answers(worker, timeout_s) and not worker.ended_within(0.1)


def _is_dead(worker: WorkerProcess, timeout_s: float) -> bool:
    return not _answers(worker, timeout_s) and worker.ended_within(0.1)


def _answers(worker: WorkerProcess, timeout_s: float) -> bool:
    try:
        worker.call(control.GetStatus, time.monotonic() + timeout_s)
    except SnapfsError:
        return False
    return True
