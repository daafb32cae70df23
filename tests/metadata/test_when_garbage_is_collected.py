"""Checklist M15: the scheduler's knobs; and expiries, which fire by themselves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from snapfs.metadata import Collected, Knobs, Metadata, Plan, Resource, Scheduler
from snapfs.model import FailedPrecondition, InvalidArgument, Unavailable
from tests.metadata.kit import NOW, SECOND, Clock, rfc3339

DEADLINE_S = 20.0


class Runs:
    """A collector that counts, and says when it was asked."""

    def __init__(self) -> None:
        self.count = 0
        self.happened = threading.Condition()
        self.error: Exception | None = None

    def __call__(self) -> Collected:
        with self.happened:
            self.count += 1
            self.happened.notify_all()
        if self.error is not None:
            raise self.error
        return Collected(NOW)

    def wait(self, count: int) -> None:
        with self.happened:
            assert self.happened.wait_for(lambda: self.count >= count, DEADLINE_S)


@contextmanager
def scheduler(runs: Runs, knobs: Knobs) -> Iterator[Scheduler]:
    with Scheduler(runs, lambda _after_ns: None, knobs) as built:
        built.start()
        yield built


def plan(**knobs: float) -> Plan:
    made = Plan(Knobs(**knobs))  # type: ignore[arg-type]
    made.start(0.0)
    return made


def test_the_first_run_comes_after_the_startup_delay_whatever_happened() -> None:
    made = plan(startup_delay_s=5)
    assert not made.due(4.9)
    assert made.due(5.0)


def test_runs_take_no_more_than_their_share_of_the_time() -> None:
    made = plan(pause_threshold=0.02)
    made.begin()
    made.ran(now_s=100.0, took_s=1.0)
    assert made.next_s == pytest.approx(100.0 + 1.0 / 0.02 - 1.0)
    made.begin()
    made.ran(now_s=200.0, took_s=0.0)
    assert made.next_s == pytest.approx(200.0 + 0.5 / 0.02 - 0.5)


def test_a_short_run_counts_as_five_milliseconds() -> None:
    made = plan(pause_threshold=0.02)
    made.begin()
    made.ran(now_s=0.0, took_s=0.0001)
    assert made.next_s == pytest.approx(0.245)


def test_a_planned_run_is_put_off_until_enough_has_changed() -> None:
    made = plan(mutation_threshold=3)
    made.begin()
    made.ran(0.0, 0.0)
    assert not made.due(1.0)
    made.note(1.0, deletion=False)
    made.note(1.0, deletion=False)
    assert not made.due(2.0)
    made.note(2.0, deletion=False)
    assert made.due(3.0)


def test_nothing_is_planned_while_nothing_happens() -> None:
    made = plan()
    made.begin()
    made.ran(0.0, 0.0)
    assert not made.due(1.0)
    assert made.next_s is None
    made.note(5.0, deletion=True)
    assert made.due(5.0)


def test_one_deletion_is_enough_for_a_planned_run() -> None:
    made = plan()
    made.begin()
    made.ran(0.0, 0.0)
    made.note(0.1, deletion=True)
    assert not made.due(0.1)
    assert made.due(0.3)


def test_the_deletion_threshold_starts_a_run_at_once() -> None:
    made = plan(deletion_threshold=5, schedule_delay_s=0.05)
    made.begin()
    made.ran(0.0, took_s=10.0)
    for _ in range(4):
        made.note(1.0, deletion=True)
    assert not made.due(1.1)
    made.note(1.0, deletion=True)
    assert not made.due(1.04)
    assert made.due(1.05)


@pytest.mark.parametrize(
    "bad",
    [
        {"pause_threshold": 0.6},
        {"pause_threshold": -1},
        {"deletion_threshold": -1},
        {"startup_delay_s": -1},
    ],
)
def test_knobs_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InvalidArgument):
        Knobs(**bad)  # type: ignore[arg-type]


def test_a_trigger_runs_at_once_and_tells_who_waits() -> None:
    runs = Runs()
    with scheduler(runs, Knobs(startup_delay_s=3600)) as built:
        assert built.trigger().result(timeout=DEADLINE_S).began_ns == NOW
        assert runs.count == 1


def test_who_asks_while_a_run_is_under_way_gets_another_one() -> None:
    under_way, go_on = threading.Event(), threading.Event()
    runs = Runs()

    def collect() -> Collected:
        done = runs()
        under_way.set()
        assert go_on.wait(DEADLINE_S)
        return done

    with Scheduler(collect, lambda _after_ns: None, Knobs(startup_delay_s=3600)) as built:
        built.start()
        first = built.trigger()
        assert under_way.wait(DEADLINE_S)
        second = built.trigger()
        go_on.set()
        first.result(timeout=DEADLINE_S)
        second.result(timeout=DEADLINE_S)
        assert runs.count == 2


@pytest.mark.logs("gc.failed")
def test_a_failed_run_tells_who_waits_and_is_tried_again() -> None:
    runs = Runs()
    runs.error = FailedPrecondition("no")
    with scheduler(runs, Knobs(startup_delay_s=3600)) as built:
        with pytest.raises(FailedPrecondition):
            built.trigger().result(timeout=DEADLINE_S)
        runs.error = None
        runs.wait(2)


@pytest.mark.logs("gc.failed")
def test_what_expired_does_not_hasten_the_run_after_a_failed_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = Runs()
    runs.error = FailedPrecondition("no")
    looked = threading.Semaphore(0)

    def due(_plan: Plan, _now_s: float) -> bool:
        if runs.count:
            looked.release()
        return False

    monkeypatch.setattr(Plan, "due", due)
    with Scheduler(runs, lambda _after_ns: NOW, clock_ns=lambda: NOW) as built:
        built.start()
        runs.wait(1)
        assert looked.acquire(timeout=DEADLINE_S)
        built.note()
        assert looked.acquire(timeout=DEADLINE_S)
        assert runs.count == 1


@pytest.mark.logs("gc.expiry_unknown")
def test_a_store_that_cannot_say_what_expires_ends_no_collections() -> None:
    runs = Runs()

    def unknown(_after_ns: int) -> int:
        raise Unavailable("too many readers")

    with Scheduler(runs, unknown, Knobs(startup_delay_s=3600)) as built:
        built.start()
        built.trigger().result(timeout=DEADLINE_S)


@pytest.mark.logs("gc.broke")
def test_a_run_that_breaks_tells_who_waits_and_is_tried_again() -> None:
    runs = Runs()
    runs.error = KeyError("what")
    with scheduler(runs, Knobs(startup_delay_s=3600)) as built:
        with pytest.raises(KeyError):
            built.trigger().result(timeout=DEADLINE_S)
        runs.error = None
        runs.wait(2)


def test_closing_refuses_who_still_waits() -> None:
    built = Scheduler(Runs(), lambda _after_ns: None)
    waiting = built.trigger()
    built.close()
    with pytest.raises(Unavailable):
        waiting.result(timeout=DEADLINE_S)
    with pytest.raises(Unavailable):
        built.trigger()


def test_a_lease_that_expires_is_collected_with_nothing_else_happening(
    metadata: Metadata, clock: Clock
) -> None:
    expire = {"containerd.io/gc.expire": rfc3339(NOW + SECOND)}
    metadata.leases.create("here", "short", expire)
    metadata.leases.add("here", "short", Resource("images", "i"))
    metadata.start()
    metadata.gc.trigger().result(timeout=DEADLINE_S)
    assert [each.id for each in metadata.leases.walk("here")] == ["short"]
    gone = threading.Event()
    clock.now_ns += 2 * SECOND
    for _ in range(200):
        if not list(metadata.leases.walk("here")):
            gone.set()
            break
        gone.wait(0.05)
    assert gone.is_set()
