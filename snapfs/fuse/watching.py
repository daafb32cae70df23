"""Keeping a worker under a lane's mount: one that ends is followed by another, one that hangs ends.

The watcher is a thread of its own from the lane's start to its stop. Deaths in a row make it wait:
who dies at once would take all of the processor.
"""

from __future__ import annotations

import threading
import time

import structlog

from snapfs.fuse import progress
from snapfs.fuse.asking import hangs
from snapfs.fuse.lanemount import LaneMount
from snapfs.fuse.process import WorkerProcess
from snapfs.fuse.replacing import READY_TIMEOUT_S, Replacing
from snapfs.fuse.seat import LaneState, Seat
from snapfs.fuse.spare import SPARE_AFTER_S
from snapfs.model import SnapfsError

FIRST_DELAY_S = 0.05
LONGEST_DELAY_S = 5.0
STEADY_S = 2.0
"""A worker that lived this long clears the back-off."""
FREE_DEATHS = 3
"""In a row, before the next worker is kept waiting for longer than `FIRST_DELAY_S`."""
WATCHDOG_S = 20.0
LOOK_EVERY_S = 2.0
"""After a worker that may hang."""
ANSWER_TIMEOUT_S = 1.0
"""For a worker to show that it does not hang."""
REAP_TIMEOUT_S = 2.0
"""For a worker to end after it closed its channel."""
MOST_READY_S = 120.0
"""For one that gets on: it reads its code from a busy disk, say, as another would have to."""

log = structlog.get_logger(__name__)


class Watcher:
    """Watches over the workers of a seat, one after another."""

    def __init__(self, seat: Seat, replacing: Replacing, watchdog_s: float) -> None:
        """A worker that says nothing for `watchdog_s` is replaced."""
        self._seat = seat
        self._replacing = replacing
        self._watchdog_s = watchdog_s
        self._thread: threading.Thread | None = None
        self.deaths = 0
        """Of workers in a row that served for less than `STEADY_S`."""

    @property
    def delay_s(self) -> float:
        """How long the next worker is kept waiting."""
        late = max(0, self.deaths - FREE_DEATHS)
        return min(FIRST_DELAY_S * 2.0 ** min(late, 10), LONGEST_DELAY_S)

    def start(self, worker: WorkerProcess) -> None:
        """Watch from now on."""
        with self._seat.changed:
            self.deaths = 0
        self._thread = threading.Thread(
            target=self._watch, args=(worker,), name=f"lane-{self._seat.name}-watcher", daemon=True
        )
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait for the end of what a stop has ended."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(timeout_s)

    def _watch(self, worker: WorkerProcess) -> None:
        seat = self._seat
        while True:
            self._attend(worker)
            with seat.changed:
                mount = seat.mount
                if seat.stopping.is_set() or mount is None:
                    return
                ended = mount.ended
                seat.state = LaneState.UNMOUNTED if ended else LaneState.RESTARTING
                seat.worker = None
                seat.changed.notify_all()
            exit_status = worker.reap(REAP_TIMEOUT_S)
            if ended:
                log.error(
                    "lane.unmounted", lane=seat.name, mountpoint=str(seat.settings.mountpoint)
                )
                return
            log.error("lane.worker_died", lane=seat.name, pid=worker.pid, exit_status=exit_status)
            self._count_death(time.monotonic() - worker.started_s)
            successor = self._succeed(mount)
            if successor is None:
                return
            worker = successor

    def _attend(self, worker: WorkerProcess) -> None:
        """Return when a worker is gone; end one that hangs, and have the next one at hand.

        One that waits for a disk does not hang: it goes on when the disk answers, and what another
        one asked the disk would wait, too.
        """
        seat = self._seat
        held_s = told_s = 0.0
        while True:
            self._keep_spare(worker)
            if worker.gone.wait(min(LOOK_EVERY_S, self._watchdog_s / 4)):
                return
            if seat.stopping.is_set() or not hangs(
                worker, min(ANSWER_TIMEOUT_S, self._watchdog_s / 2)
            ):
                seat.note_answer()
                self._note_life(worker)
                continue
            now_s, held = time.monotonic(), progress.held_in(worker.pid)
            if held:
                held_s = now_s
                if now_s - max(seat.answered_s, told_s) > self._watchdog_s:
                    told_s = now_s
                    log.warning("lane.worker_waits", lane=seat.name, pid=worker.pid, waits_in=held)
            elif now_s - max(seat.answered_s, held_s) > self._watchdog_s:
                log.error("lane.worker_hangs", lane=seat.name, pid=worker.pid)
                self._replacing.end(worker)
                return

    def _keep_spare(self, worker: WorkerProcess) -> None:
        """Have the next worker at hand, once one has died or this one has come to stay."""
        with self._seat.changed:
            mount, is_likely = self._seat.mount, self._seat.restarts > 0
        if mount is None or self._seat.stopping.is_set():
            return
        if is_likely or time.monotonic() - worker.started_s > SPARE_AFTER_S:
            self._replacing.keep_spare(mount)

    def _count_death(self, lived_s: float) -> None:
        with self._seat.changed:
            self.deaths = 1 if lived_s > STEADY_S else self.deaths + 1

    def _note_life(self, worker: WorkerProcess) -> None:
        """Clear the back-off, and say so, when a worker answers that has lived long enough."""
        if not self.deaths or time.monotonic() - worker.started_s <= STEADY_S:
            return
        with self._seat.changed:
            deaths, self.deaths = self.deaths, 0
        if deaths > FREE_DEATHS:
            log.info("lane.worker_steady", lane=self._seat.name, pid=worker.pid, deaths=deaths)

    def _succeed(self, mount: LaneMount) -> WorkerProcess | None:
        """Start the next worker, however often it takes; None when the lane stops first."""
        while not self._waits():
            try:
                worker = self._replacing.start(
                    mount, time.monotonic() + MOST_READY_S, still_s=READY_TIMEOUT_S
                )
            except SnapfsError as error:
                log.error("lane.restart_failed", lane=self._seat.name, error=str(error))
                self._count_death(0.0)
                continue
            log.warning("lane.worker_restarted", lane=self._seat.name, pid=worker.pid)
            return worker
        return None

    def _waits(self) -> bool:
        """Keep the next worker waiting, and say so when that takes longer after deaths in a row;
        whether the lane stops meanwhile."""
        delay_s = self.delay_s
        if delay_s > FIRST_DELAY_S:
            log.warning("lane.backs_off", lane=self._seat.name, deaths=self.deaths, delay_s=delay_s)
        return self._seat.stopping.wait(delay_s)
