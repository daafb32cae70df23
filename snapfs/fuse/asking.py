"""What the worker of a lane is asked for: freezes, thaws, quotas, usage.

Each request may be repeated: when a worker dies while it is asked, its successor is. With no worker
by intent they return: a tree that nobody shows holds still. What is frozen is kept in the seat, and
told to each new worker. Thread-safe; every method but `freeze` returns within its deadline.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from functools import partial

import structlog

from snapfs import processes
from snapfs.fuse import control
from snapfs.fuse.lanemount import source_of
from snapfs.fuse.process import Unfinished, WorkerProcess
from snapfs.fuse.seat import LaneState, Seat
from snapfs.fuse.writers import writers
from snapfs.model import FailedPrecondition, SnapfsError, SnapshotId, Unavailable, Unbound, Usage
from snapfs.overlay import is_settled
from snapfs.snapshots.layers import LayerDirectories

CALL_TIMEOUT_S = 10.0
TRY_TIMEOUT_S = 2.0
"""For what can be found out in another way, or done without."""
LATE_S = 5.0
"""How long a worker that freezes may take beyond its deadline, for a thread that copies."""
ASK_AGAIN_S = 0.02

log = structlog.get_logger(__name__)


class Asking:
    """The requests to whoever serves in a seat."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat

    def freeze(self, snapshot_id: SnapshotId, *, timeout_s: float, lasting: bool) -> None:
        """Return when no change of the snapshot is in flight and none can begin.

        Dirty pages of shared mappings are written first, and data that was left below is copied,
        most of it before changes are held: that may take longer than `timeout_s`, as long as it
        gets further. One that is not `lasting` ends with the control process, whatever the worker.
        Raises DeadlineExceeded and FailedPrecondition with the tree thawed, the latter when files
        are open that the kernel writes by itself, naming who has them; Unavailable when the lane
        was left in use, its mount has ended, or it is stopped while the layer needs a worker.
        """
        seat = self._seat
        with seat.changed:
            if seat.left_in_use:
                raise Unavailable(
                    f"lane {seat.name} is stopped and still in use; start it, which adopts it"
                )
            if seat.state is LaneState.UNMOUNTED:
                raise Unavailable(
                    f"lane {seat.name}: its mount has ended, and files of it may still be written; "
                    "start it again"
                )
            seat.frozen[snapshot_id] = lasting
        try:
            wish = partial(
                control.Freeze, snapshot=snapshot_id, timeout_s=timeout_s * 0.9, lasting=lasting
            )
            if self._ask_until_done(wish, timeout_s + LATE_S) is None:
                self._check_settled(snapshot_id)
        except FailedPrecondition as error:
            self._forget_freeze(snapshot_id)
            found = writers(snapshot_id, source_of(seat.settings.mountpoint))
            if not found:
                raise
            named = processes.named(map(processes.described, found))
            raise FailedPrecondition(f"{error}: {named}") from error
        except (SnapfsError, OSError):
            self._forget_freeze(snapshot_id)
            raise

    def thaw(self, snapshot_id: SnapshotId) -> int | None:
        """Undo `freeze`; a tree that is not frozen is left alone.

        Returns for how many nanoseconds changes were held, when the worker that froze it thaws it.
        """
        with self._seat.changed:
            self._seat.frozen.pop(snapshot_id, None)
        answer = self._ask(partial(control.Thaw, snapshot=snapshot_id), CALL_TIMEOUT_S)
        return None if answer is None else answer.held_ns

    def drop(self, snapshot_id: SnapshotId) -> None:
        """Make the tree read-only for who still holds it, and let the kernel forget its name."""
        with self._seat.changed:
            self._seat.frozen.pop(snapshot_id, None)
        self._ask(
            partial(control.Drop, snapshot=snapshot_id, timeout_s=CALL_TIMEOUT_S * 0.9),
            CALL_TIMEOUT_S,
        )

    def rebind(self, snapshot_id: SnapshotId) -> None:
        """Let a quota that has changed in the metadata hold from the next request on."""
        self._ask(partial(control.Rebind, snapshot=snapshot_id), CALL_TIMEOUT_S)

    def usage(self, snapshot_id: SnapshotId) -> Usage | None:
        """Return what a shown snapshot takes; None when it is not shown, or nobody knows now."""
        answer = self._try(partial(control.GetUsage, snapshot=snapshot_id))
        return None if answer is None or answer.usage is None else Usage(*answer.usage)

    def unbound(self, snapshot_id: SnapshotId) -> Unbound:
        """Return the files that the kernel may write by itself; none where nobody knows now."""
        answer = self._try(partial(control.GetUnbound, snapshot=snapshot_id))
        found = None if answer is None else answer.unbound
        return Unbound() if found is None else Unbound(*found)

    def _try(self, build: Callable[[int], control.Request]) -> control.Answer | None:
        """Ask who serves now, once; None without an answer."""
        with self._seat.changed:
            worker = self._seat.worker
        if worker is None or not worker.is_ready:
            return None
        try:
            return worker.call(build, time.monotonic() + TRY_TIMEOUT_S)
        except SnapfsError as error:  # an older worker does not know the question
            log.debug("lane.not_answered", lane=self._seat.name, error=str(error))
            return None

    def _ask_until_done(
        self, build: Callable[[int], control.Request], timeout_s: float
    ) -> control.Answer | None:
        """Ask again, with a new deadline, as long as each time gets further."""
        while True:
            try:
                return self._ask(build, timeout_s)
            except Unfinished as error:
                log.info("lane.asked_again", lane=self._seat.name, reason=str(error))

    def _check_settled(self, snapshot_id: SnapshotId) -> None:
        """Refuse, without a worker, a layer that only one can make whole."""
        layers = LayerDirectories(self._seat.settings.root)
        if not is_settled(layers.upper(snapshot_id), layers.work(snapshot_id)):
            raise Unavailable(
                f"lane {self._seat.name} is stopped, and files of snapshot {snapshot_id} are not "
                "in its layer yet; start it"
            )

    def _ask(
        self, build: Callable[[int], control.Request], timeout_s: float
    ) -> control.Answer | None:
        deadline_s = time.monotonic() + timeout_s
        while True:
            worker = self._seat.serving_worker(deadline_s)
            if worker is None:
                return None
            try:
                return worker.call(build, deadline_s)
            except Unavailable:
                if time.monotonic() > deadline_s:  # it lives, and takes no more questions
                    raise
                self._seat.stopping.wait(ASK_AGAIN_S)

    def _forget_freeze(self, snapshot_id: SnapshotId) -> None:
        with self._seat.changed:
            self._seat.frozen.pop(snapshot_id, None)
            worker = self._seat.worker
        if worker is not None and worker.is_ready:
            with contextlib.suppress(SnapfsError):  # it undoes late freezes by itself as well
                worker.call(partial(control.Thaw, snapshot=snapshot_id), time.monotonic() + 1.0)


def thaw_late(worker: WorkerProcess, snapshots: Iterable[SnapshotId]) -> None:
    """Undo, in a new worker, the freezes that were given up while it started."""
    for snapshot_id in snapshots:
        with contextlib.suppress(SnapfsError):  # it died: the next one is told right
            worker.call(
                partial(control.Thaw, snapshot=snapshot_id), time.monotonic() + CALL_TIMEOUT_S
            )


def hangs(worker: WorkerProcess, timeout_s: float) -> bool:
    """Say whether a worker lives and does not answer."""
    return not _answers(worker, timeout_s) and not worker.ended_within(0.1)


def is_dead(worker: WorkerProcess, timeout_s: float) -> bool:
    """Say whether a worker has ended; for one that lives, as soon as it answers."""
    return not _answers(worker, timeout_s) and worker.ended_within(0.1)


def _answers(worker: WorkerProcess, timeout_s: float) -> bool:
    try:
        worker.call(control.GetStatus, time.monotonic() + timeout_s)
    except SnapfsError:
        return False
    return True
