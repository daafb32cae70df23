"""All lanes of a control process: which snapshot is in which, started at first need.

`main` always runs. Another lane is started when a snapshot is to be mounted from it, or at once
when snapshots live there or an earlier control process left it mounted or serving: its users must
find a commit frozen and a removal dropped. A lane that several workers share (placement) is as many
lanes here, and new snapshots are spread over the first of them.

Thread-safe. Each lane has a lock, which is held while it is started or mounted again and guards
nothing else; `_closed` is looked at under it, so that no lane starts after `stop`.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import structlog

from snapfs.fuse.seat import LaneState
from snapfs.fuse.supervisor import Lane, LaneStatus
from snapfs.model import (
    MAIN_LANE,
    DeadlineExceeded,
    FailedPrecondition,
    Kind,
    Labels,
    LaneName,
    SnapfsError,
    Unavailable,
)
from snapfs.snapshots import Placement
from snapfs.snapshots.placement import workers_of

RETRY_S = 60.0
"""After a worker that could not be started, before it is given a new snapshot again."""

log = structlog.get_logger(__name__)


class Lanes:
    """The lanes of one root; implements snapshots.Lanes."""

    def __init__(
        self,
        lanes: Iterable[Lane],
        placement: Placement,
        *,
        start_timeout_s: float,
        stop_timeout_s: float,
        workers: int = 1,
    ) -> None:
        """`lanes` has all that snapshots may live in; new ones go to `workers` of each."""
        self._lanes = {LaneName(lane.name): lane for lane in lanes}
        self._placement = placement
        self._workers = {name: workers_of(name, workers) for name in placement.writable}
        self._turns = {name: itertools.count() for name in placement.writable}
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._locks = {name: threading.Lock() for name in self._lanes}
        self._closed = threading.Event()
        self._displaced: frozenset[LaneName] = frozenset()
        """As the last `mend` found it, which alone writes it."""
        self._failed_s: dict[LaneName, float] = {}
        """When a lane could not be started; written under its lock."""

    @classmethod
    def of(cls, lane: Lane, *, start_timeout_s: float, stop_timeout_s: float) -> Lanes:
        """Return one lane as all that there are."""
        name = LaneName(lane.name)
        placement = Placement({name: True}, active=name, view=name)
        return cls(
            (lane,), placement, start_timeout_s=start_timeout_s, stop_timeout_s=stop_timeout_s
        )

    def place(self, kind: Kind, labels: Labels | None, /) -> LaneName:
        """Return the lane for a snapshot to be made; InvalidArgument when it cannot be chosen.

        Of the workers that share it each is taken once in a round, but those that are not well.
        """
        chosen = self._placement.choose(kind, labels)
        workers = self._workers[chosen]
        if len(workers) == 1:
            return chosen
        in_turn = _in_turn(workers, next(self._turns[chosen]))
        return next((name for name in in_turn if self._is_well(name)), in_turn[0])

    def _is_well(self, name: LaneName) -> bool:
        """Whether a new snapshot can be mounted from a lane, as far as is known; asks nobody."""
        if name in self._displaced:
            return False
        state, failed_s = self._lanes[name].state, self._failed_s.get(name)
        may_start = failed_s is None or time.monotonic() >= failed_s + RETRY_S
        return state is LaneState.SERVING or (state is LaneState.STOPPED and may_start)

    def lane(self, name: LaneName, /) -> Lane:
        """Return a lane, or raise FailedPrecondition when there is none of this name."""
        try:
            return self._lanes[name]
        except KeyError:
            raise FailedPrecondition(
                f"lane {name!r} is not one of {', '.join(self._workers)}; "
                "use the release of snapfs that knows it"
            ) from None

    def serve(self, name: LaneName, /) -> None:
        """Return when a lane is mounted and has a worker; start it if need be."""
        lane = self.lane(name)
        if not _is_down(lane):
            return
        with self._sole(name):
            if self._closed.is_set():
                raise Unavailable(f"lane {name} is being stopped; try again when it is started")
            if lane.state is LaneState.UNMOUNTED:
                log.warning("lane.mounted_again", lane=name)
                lane.stop(self._stop_timeout_s)
            if lane.state is LaneState.STOPPED:
                self._start(name, lane)

    def _start(self, name: LaneName, lane: Lane) -> None:
        try:
            lane.start(self._start_timeout_s)
        except (SnapfsError, OSError):
            self._failed_s[name] = time.monotonic()
            raise
        self._failed_s.pop(name, None)

    def start(self, in_use: Collection[LaneName]) -> None:
        """Start `main`, the lanes of snapshots that there are, and what was left behind."""
        for name in set(in_use) - self._lanes.keys():
            log.warning("lane.unknown", lane=name, effect="its snapshots cannot be mounted")
        needed = [
            name
            for name, lane in self._lanes.items()
            if name == MAIN_LANE or name in in_use or lane.is_left_behind
        ]
        with ThreadPoolExecutor(len(needed), "lane-start") as starters:
            list(starters.map(self.serve, needed))

    def mend(self) -> None:
        """Mount again what somebody unmounted behind our back."""
        for name, lane in self._lanes.items():
            if lane.state is LaneState.UNMOUNTED and not self._closed.is_set():
                self.serve(name)
        displaced = frozenset(name for name, lane in self._lanes.items() if not lane.put_back())
        for name in displaced - self._displaced:
            log.error("lane.displaced", lane=name, effect="its snapshots cannot be mounted")
        self._displaced = displaced

    @property
    def in_place(self) -> bool:
        """Whether all lanes were where they are to be mounted when they were last looked at."""
        return not self._displaced

    def statuses(self, timeout_s: float = 2.0) -> list[LaneStatus]:
        """Return how the lanes are that were started, asked at once: none waits for another."""
        started = [it for it in self._lanes.values() if it.state is not LaneState.STOPPED]
        with ThreadPoolExecutor(max(1, len(started)), "lane-status") as askers:
            return list(askers.map(lambda lane: lane.status(timeout_s), started))

    def stop(self, timeout_s: float) -> None:
        """Unmount and end every lane that nobody uses, all at once; none starts after this."""
        self._closed.set()
        with ThreadPoolExecutor(len(self._lanes), "lane-stop") as stoppers:
            list(stoppers.map(lambda lane: self._stop(lane, timeout_s), self._lanes.values()))

    def _stop(self, lane: Lane, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        lane.stop(timeout_s)
        with self._sole(LaneName(lane.name)):  # a start that had begun is over
            lane.stop(max(1.0, deadline_s - time.monotonic()))

    @contextmanager
    def _sole(self, name: LaneName) -> Iterator[None]:
        """Keep a lane from being started by others for the block."""
        lock = self._locks[name]
        if not lock.acquire(timeout=self._start_timeout_s):
            raise DeadlineExceeded(f"lane {name} is still being started; try again")
        try:
            yield
        finally:
            lock.release()


def _in_turn(workers: tuple[LaneName, ...], turn: int) -> list[LaneName]:
    """Return the workers, whose turn it is first. Each has one turn in a round, and the order is
    another in each: a pod's sandbox and its container alternate, and idle ones would meet idle."""
    number, place = divmod(turn, len(workers))
    order = random.Random(number).sample(workers, len(workers))  # noqa: S311 - no secret
    return order[place:] + order[:place]


def _is_down(lane: Lane) -> bool:
    return lane.state in (LaneState.STOPPED, LaneState.STARTING, LaneState.UNMOUNTED)
