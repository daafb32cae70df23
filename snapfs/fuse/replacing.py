"""Beginning a worker on a lane's mount: the first, the next, or one of newer code.

All begin by the same code on the same descriptor. Loading is most of what a start takes, so one
process may wait at hand that has done it (spare). Thread-safe, as far as one thread at a time
begins a worker: first who starts the lane, then the watcher.
"""

from __future__ import annotations

import math
import time
from functools import partial

import structlog

from snapfs.fuse import progress
from snapfs.fuse.asking import thaw_late
from snapfs.fuse.lanemount import LaneMount
from snapfs.fuse.process import WorkerProcess
from snapfs.fuse.seat import LaneState, Seat
from snapfs.fuse.spare import Spare
from snapfs.model import Internal, SnapfsError, Unavailable

READY_TIMEOUT_S = 15.0
"""For a worker that stands still."""
LOOK_EVERY_S = 0.2
"""After one that was killed."""

log = structlog.get_logger(__name__)


class Replacing:
    """Begins workers in a seat."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self._spare = Spare()
        self._ending: list[WorkerProcess] = []
        """Killed, and not seen to have ended."""

    def end(self, worker: WorkerProcess) -> None:
        """Kill a worker. The next one begins when it has ended, which may be late: what the kernel
        does for it, when a disk answers, would else happen beside what the next one does."""
        if not worker.kill():
            self._ending.append(worker)

    def start(
        self, mount: LaneMount, deadline_s: float, *, still_s: float = math.inf
    ) -> WorkerProcess:
        """Have the process at hand serve, or one that is started now if there is none that lives.

        One that stands still for `still_s` is given up before the deadline. Who kills a worker may
        kill that one too, and it may not have ended when it is taken. Raises Unavailable while one
        that was killed has not ended.
        """
        self._await_ends(min(deadline_s, time.monotonic() + still_s))
        spare = self._spare.take()
        if spare is not None:
            try:
                return self._begin(spare, mount, deadline_s, still_s)
            except Unavailable as error:
                if self._seat.stopping.is_set():
                    raise
                log.info("lane.spare_died", lane=self._seat.name, error=str(error))
        return self._begin(self._load(mount), mount, deadline_s, still_s)

    def keep_spare(self, mount: LaneMount) -> None:
        """Have the next worker at hand."""
        self._spare.renew(partial(self._load, mount))

    def end_spare(self) -> None:
        """End the process at hand, if there is one."""
        self._spare.end()

    def hand_over(
        self, mount: LaneMount, worker: WorkerProcess, deadline_s: float
    ) -> WorkerProcess:
        """Have a worker of the code that is installed now go on in the place of an older one.

        A handover is a kill with notice: what the old one has in hand comes to the next. When that
        does not start, the old one is returned, which has ended: the watcher finds it so, and tries
        again.
        """
        self.keep_spare(mount)
        log.info(
            "lane.worker_replaced", lane=self._seat.name, pid=worker.pid, version=worker.version
        )
        self.end(worker)
        worker.close(1.0)
        with self._seat.changed:
            self._seat.worker, self._seat.state = None, LaneState.RESTARTING
        try:
            return self.start(mount, min(deadline_s, time.monotonic() + READY_TIMEOUT_S))
        except SnapfsError as error:
            log.error("lane.restart_failed", lane=self._seat.name, error=str(error))
            return worker

    def _await_ends(self, deadline_s: float) -> None:
        while self._ending:
            former = self._ending[-1]
            if former.ended_within(LOOK_EVERY_S):
                self._ending.pop()
            elif self._seat.stopping.is_set() or time.monotonic() > deadline_s:
                held = progress.held_in(former.pid) or "the kernel"
                raise Unavailable(
                    f"worker {former.pid} was killed and waits in {held}; the next one begins when "
                    "it has ended"
                )

    def _load(self, mount: LaneMount) -> WorkerProcess:
        try:
            return WorkerProcess.start(self._seat.settings, mount.connection, mount.device)
        except OSError as error:
            raise Internal(f"lane {self._seat.name}: cannot start a worker: {error}") from error

    def _begin(
        self, worker: WorkerProcess, mount: LaneMount, deadline_s: float, still_s: float
    ) -> WorkerProcess:
        seat = self._seat
        with seat.changed:
            frozen = tuple(sorted(seat.frozen))
            paused = tuple(it for it in frozen if not seat.frozen[it])
        try:
            worker.begin(seat.settings, mount.connection, frozen, paused)
            worker.wait_ready(deadline_s, still_s=still_s, unless=seat.stopping)
            given_up = seat.take_on(worker, frozen)
        except SnapfsError:
            self.end(worker)
            worker.close(1.0)
            raise
        thaw_late(worker, given_up)
        return worker
