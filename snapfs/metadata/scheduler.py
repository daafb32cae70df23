"""When to collect: after enough changes, never more than a share of the time, and at expiries.

`Plan` are the rules, pure: events go in, the time of the next run comes out. `Scheduler` is the
thread around them. Knobs and rules are containerd's (plugins/gc/scheduler.go); that an expiring
lease, image or ingest is collected without anything else happening is ours.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import structlog

from snapfs.closing import Closing
from snapfs.metadata.collected import Collected
from snapfs.model import InvalidArgument, SnapfsError, Unavailable

log = structlog.get_logger(__name__)

MIN_RUN_S = 0.005
"""A run counts for at least this long when the next one is planned."""

RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Knobs:
    """How eager the collector is."""

    pause_threshold: float = 0.02
    """Share of the time that runs may take, 0 to 0.5."""
    deletion_threshold: int = 0
    """Deletions that start a run at once; 0 for never by themselves."""
    mutation_threshold: int = 100
    """Changes since the last run without which a planned one is put off, deletions apart; 0: none.
    """
    schedule_delay_s: float = 0.0
    """From the event that starts a run to the run."""
    startup_delay_s: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.pause_threshold <= 0.5:
            raise InvalidArgument(
                f"gc pause threshold {self.pause_threshold} is not between 0 and 0.5"
            )
        for name in ("deletion_threshold", "mutation_threshold"):
            if getattr(self, name) < 0:
                raise InvalidArgument(f"gc {name.replace('_', ' ')} is below 0")
        if self.schedule_delay_s < 0 or self.startup_delay_s < 0:
            raise InvalidArgument("a delay of the garbage collector is below 0")


@dataclass(slots=True)
class Plan:
    """What has happened since the last run, and when the next one is. Times in seconds."""

    knobs: Knobs
    next_s: float | None = None
    triggered: bool = False
    deletions: int = 0
    mutations: int = 0
    runs: int = 0
    _total_s: float = field(default=0.0)

    def start(self, now_s: float) -> None:
        self.next_s = now_s + self.knobs.startup_delay_s

    def note(self, now_s: float, *, deletion: bool) -> None:
        """Take a change into account."""
        self.mutations += 1
        self.deletions += deletion
        knobs = self.knobs
        enough = 0 < knobs.deletion_threshold <= self.deletions
        if self.next_s is None:
            enough = enough or bool(self.deletions and not knobs.deletion_threshold)
            enough = enough or 0 < knobs.mutation_threshold <= self.mutations
        if enough:
            self._at(now_s + knobs.schedule_delay_s)

    def trigger(self, now_s: float) -> None:
        """Plan a run as soon as may be."""
        self.triggered = True
        self._at(now_s + self.knobs.schedule_delay_s)

    def due(self, now_s: float) -> bool:
        """Say whether to run now; a planned run without enough to do waits for what happens."""
        if self.next_s is None or now_s < self.next_s:
            return False
        knobs = self.knobs
        if (
            self.triggered
            or self.deletions
            or not self.runs
            or 0 < knobs.mutation_threshold <= self.mutations
        ):
            return True
        self.next_s = None
        return False

    def begin(self) -> None:
        """Note that a run begins: what happens from now on is for the next one."""
        self.triggered = False
        self.deletions = self.mutations = 0

    def ran(self, now_s: float, took_s: float) -> None:
        """Plan the next run after one; at once if it was asked for meanwhile."""
        self.runs += 1
        self._total_s += max(took_s, 0.0)
        self.next_s = now_s if self.triggered else now_s + self._interval_s()

    def failed(self, now_s: float) -> None:
        """Try again after a while."""
        self.triggered = True
        self.next_s = now_s + self._interval_s() + RETRY_S

    def _at(self, when_s: float) -> None:
        if self.next_s is None or when_s < self.next_s:
            self.next_s = when_s

    def _interval_s(self) -> float:
        if not self.knobs.pause_threshold:
            return 1.0
        average = max(self._total_s / max(self.runs, 1), MIN_RUN_S)
        return average / self.knobs.pause_threshold - average


class Scheduler(Closing):
    """Runs the collector on a thread of its own. Thread-safe."""

    def __init__(
        self,
        collect: Callable[[], Collected],
        next_expiry_ns: Callable[[int], int | None],
        knobs: Knobs | None = None,
        *,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`next_expiry_ns` tells when the next lease, image or ingest after a time expires."""
        self._collect = collect
        self._next_expiry_ns = next_expiry_ns
        self._clock_ns = clock_ns
        self._plan = Plan(knobs or Knobs())
        self._looked_ns = 0
        """Expiries up to this time have been looked at by a run."""
        self._has_failed = False
        """The last run did: what expired does not hasten the next one."""
        self._changed = threading.Condition()
        self._waiting: list[Future[Collected]] = []
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="gc", daemon=True)

    def start(self) -> None:
        self._plan.start(time.monotonic())
        self._thread.start()

    def note(self, *, deletion: bool = False) -> None:
        """Say that metadata changed."""
        with self._changed:
            self._plan.note(time.monotonic(), deletion=deletion)
            self._changed.notify()

    def trigger(self) -> Future[Collected]:
        """Ask for a run; the future is that of one that began after this call."""
        future: Future[Collected] = Future()
        with self._changed:
            if self._closed:
                raise Unavailable("the garbage collector is stopping")
            self._waiting.append(future)
            self._plan.trigger(time.monotonic())
            self._changed.notify()
        return future

    def close(self) -> None:
        """Stop after the run that is under way; who waits for another gets Unavailable."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()
        for future in self._waiting:
            future.set_exception(Unavailable("the garbage collector was stopped"))
        self._waiting = []

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._wanted, timeout=None)
                if self._closed:
                    return
                waiting, self._waiting = self._waiting, []
                self._plan.begin()
            self._run_once(waiting)

    def _wanted(self) -> bool:
        """Say whether to wake, sleeping until the next plan or expiry otherwise."""
        while not self._closed:
            now_s = time.monotonic()
            left_s = None if self._has_failed else self._until_expiry_s()
            if left_s == 0:
                return True
            if self._plan.due(now_s):
                return True
            pause_s = None if self._plan.next_s is None else max(0.0, self._plan.next_s - now_s)
            known = [each for each in (left_s, pause_s) if each is not None]
            self._changed.wait(min(known, default=None))
        return True

    def _until_expiry_s(self) -> float | None:
        """Return how long it is until something expires; a while if the store does not say."""
        try:
            expiry_ns = self._next_expiry_ns(self._looked_ns)
        except SnapfsError as error:
            log.warning("gc.expiry_unknown", error=str(error))
            return RETRY_S
        return None if expiry_ns is None else max(0.0, (expiry_ns - self._clock_ns()) / 1e9)

    def _run_once(self, waiting: list[Future[Collected]]) -> None:
        began_s = time.monotonic()
        try:
            done = self._collect()
        except Exception as error:  # whatever it is, there must be a next run
            if self._closed and isinstance(error, Unavailable):
                log.info("gc.stopped")
            elif isinstance(error, SnapfsError | OSError):
                log.error("gc.failed", error=str(error))
            else:
                log.exception("gc.broke")
            with self._changed:
                self._plan.failed(time.monotonic())
                self._has_failed = True
            for future in waiting:
                future.set_exception(error)
            return
        with self._changed:
            now_s = time.monotonic()
            self._plan.ran(now_s, now_s - began_s - done.waited_ns / 1e9)
            self._looked_ns = done.began_ns
            self._has_failed = False
        for future in waiting:
            future.set_result(done)
