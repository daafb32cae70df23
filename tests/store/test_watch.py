"""A watch has everything after its revision, once, in order: from the log, then live."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snapfs.model import Compacted, InvalidArgument, Unavailable
from snapfs.store import (
    Action,
    Event,
    Overflow,
    Row,
    RowCreated,
    RowDeleted,
    RowUpdated,
    Specifier,
    Store,
    UpdateCommitted,
    Watch,
    WatchClosed,
    feed,  # for its bound
)
from tests.store.kit import DOCS, NOTES, SCOPE, TABLES, Doc, Note

WAIT_S = 10.0


def create(store: Store, name: str, text: str = "", scope: str = SCOPE) -> Row[Doc]:
    return store.update(lambda tx: tx.create(DOCS, scope, name, Doc(text)))


def until(watch: Watch, revision: int) -> list[Event]:
    """Return what the watch has up to and with `revision`."""
    found: list[Event] = []
    while watch.revision < revision:
        news = watch.take(WAIT_S)
        assert news.events or news.revision >= revision, "nothing came in time"
        found += news.events
    return found


def logged(store: Store, after_rev: int = 0) -> list[Event]:
    with store.view() as tx:
        return list(tx.events(after_rev))


def test_a_watch_replays_from_its_revision_and_goes_on_live(store: Store) -> None:
    row = create(store, "a")
    store.update(lambda tx: tx.update(row, Doc("new")))
    with store.watch(1) as watch:
        replayed = until(watch, 2)
        assert [type(event) for event in replayed] == [RowUpdated, UpdateCommitted]
        store.update(lambda tx: tx.delete(row))
        assert [type(event) for event in until(watch, 3)] == [RowDeleted, UpdateCommitted]
        create(store, "b")
        assert replayed + logged(store, 2) == logged(store, 1)
        assert until(watch, 4) == logged(store, 3)


def test_an_update_comes_with_the_row_as_it_was_live_and_from_the_log(store: Store) -> None:
    row = create(store, "a", "old")
    with store.watch(None) as live:
        new = store.update(lambda tx: tx.update(row, Doc("new")))
        expected = [RowUpdated(2, new, row), UpdateCommitted(2)]
        assert until(live, 2) == expected
    with store.watch(1) as replaying:
        assert until(replaying, 2) == expected


def test_a_watch_from_now_has_nothing_of_before(store: Store) -> None:
    create(store, "before")
    with store.watch(None) as watch:
        assert watch.take(0).events == []
        row = create(store, "after")
        assert until(watch, 2) == [RowCreated(2, row), UpdateCommitted(2)]


def test_a_failed_update_is_not_seen(store: Store) -> None:
    def fail(tx: Any) -> None:
        tx.create(DOCS, SCOPE, "a", Doc())
        raise LookupError

    with store.watch(0) as watch:
        with pytest.raises(LookupError):
            store.update(fail)
        row = create(store, "b")
        assert until(watch, 1) == [RowCreated(1, row), UpdateCommitted(1)]


@pytest.mark.parametrize("revision", [-1, 2, 10_000])
def test_a_revision_still_to_come_is_refused(store: Store, revision: int) -> None:
    create(store, "a")
    with pytest.raises(InvalidArgument, match="still to come"):
        store.watch(revision)


def test_a_revision_gone_from_the_log_is_refused_as_compacted(path: Path) -> None:
    with Store.open(path, TABLES, keep_revisions=1) as store:
        for number in range(40):
            create(store, f"{number}")
        with pytest.raises(Compacted, match="read the rows anew"):
            store.watch(0)
        assert until(store.watch(39), 40) == logged(store, 39)


def test_a_replay_overtaken_by_compaction_says_so(path: Path) -> None:
    with Store.open(path, TABLES, keep_revisions=30) as store:
        create(store, "a")
        watch = store.watch(0, limit=5)
        for number in range(60):
            create(store, f"{number}")
        with pytest.raises(Compacted):
            until(watch, 61)


def test_a_watch_is_taken_up_after_a_restart_without_gap_or_duplicate(path: Path) -> None:
    with Store.open(path, TABLES) as store:
        for name in "abc":
            create(store, name)
        with store.watch(0) as watch:
            found = until(watch, 2)[:4]
            create(store, "d")
        place = 2
    with Store.open(path, TABLES) as store:
        create(store, "e")
        with store.watch(place) as watch:
            create(store, "f")
            found += until(watch, 6)
        assert found == logged(store)


MATCHES: list[tuple[Specifier[Any], list[str]]] = [
    (Specifier(DOCS), ["+a", "+b", "a!", "-b"]),
    (Specifier(NOTES), ["+n"]),
    (Specifier(DOCS, Action.CREATE), ["+a", "+b"]),
    (Specifier(DOCS, Action.CREATE | Action.DELETE), ["+a", "+b", "-b"]),
    (Specifier(DOCS, scope="else"), ["+b", "-b"]),
    (Specifier(DOCS, name="a"), ["+a", "a!"]),
    (Specifier(DOCS, name="A"), []),
    (Specifier(DOCS, name_prefix="b"), ["+b", "-b"]),
    (Specifier(DOCS, oid=1), ["+a", "a!"]),
    (Specifier(DOCS, prototype={"text": "new"}), ["a!"]),
    (Specifier(DOCS, prototype={"text": "new", "slug": "x"}), []),
    (Specifier(DOCS, checks=(lambda event: event.row.name == "b",)), ["+b", "-b"]),
    (Specifier(DOCS, Action.DELETE, checks=(lambda event: event.row.name == "a",)), []),
]


def short(event: Event) -> str:
    match event:
        case RowCreated(_, row):
            return f"+{row.name}"
        case RowUpdated(_, row, _):
            return f"{row.name}!"
        case RowDeleted(_, row):
            return f"-{row.name}"
        case UpdateCommitted(revision):
            return f"={revision}"


def _history(store: Store) -> None:
    a = create(store, "a", "old")
    b = create(store, "b", scope="else")
    store.update(lambda tx: tx.create(NOTES, SCOPE, "n", Note(a.oid)))
    store.update(lambda tx: tx.update(a, Doc("new")))
    store.update(lambda tx: tx.delete(b))


@pytest.mark.parametrize(("specifier", "expected"), MATCHES)
def test_a_watch_has_what_its_specifier_is_for(
    store: Store, specifier: Specifier[Any], expected: list[str]
) -> None:
    with (
        store.watch(None, specifier, commits=False) as live,
        store.watch(None, specifier) as committed,
    ):
        _history(store)
        found: list[Event] = []
        while len(found) < len(expected):
            found += live.take(WAIT_S).events
        found += live.take(0.05).events
        assert [short(event) for event in found] == expected
        assert [short(e) for e in until(committed, 5) if not isinstance(e, UpdateCommitted)] == (
            expected
        )
    with store.watch(0, specifier, commits=False) as replayed:
        assert [short(event) for event in replayed.take(0.05).events] == expected
        assert replayed.take(0).revision == 5


def test_any_of_several_specifiers_suffices_and_an_event_comes_once(store: Store) -> None:
    first, second = Specifier(DOCS, name="a"), Specifier(DOCS, Action.CREATE)
    with store.watch(None, first, second, commits=False) as watch:
        _history(store)
        found = [short(event) for event in until(watch, 4)]
        assert found == ["+a", "+b", "a!"]


def test_a_watch_of_other_rows_has_the_commit_alone(store: Store) -> None:
    with store.watch(None, Specifier(NOTES)) as notes, store.watch(None, Specifier(DOCS)) as docs:
        row = create(store, "a")
        assert until(notes, 1) == [UpdateCommitted(1)]
        assert until(docs, 1) == [RowCreated(1, row), UpdateCommitted(1)]


def test_specifiers_that_no_event_can_match_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="names no action"):
        Specifier(DOCS, Action(0))
    with pytest.raises(InvalidArgument, match="no field colour"):
        Specifier(DOCS, prototype={"colour": 1})
    with pytest.raises(InvalidArgument, match="does not begin with"):
        Specifier(DOCS, name="a", name_prefix="b")


def test_what_a_check_raises_comes_to_the_consumer_and_nothing_is_lost(store: Store) -> None:
    answers = iter([LookupError("not now"), None])

    def check(event: Any) -> bool:
        error = next(answers)
        if error:
            raise error
        return True

    with store.watch(0, Specifier(DOCS, checks=(check,)), commits=False) as watch:
        row = create(store, "a")
        with pytest.raises(LookupError):
            watch.take(WAIT_S)
        assert watch.take(WAIT_S).events == [RowCreated(1, row)]


def test_ten_thousand_events_wait_for_a_reader_that_comes_late(store: Store) -> None:
    def many(tx: Any) -> None:
        for number in range(1000):
            tx.create(DOCS, SCOPE, f"{tx.revision}-{number}", Doc())

    with store.watch(None) as watch:
        for _ in range(9):
            store.update(many)
        assert len(until(watch, 9)) == 9009


def test_a_slow_watch_gets_overflow_and_resumes_from_the_log(store: Store) -> None:
    with store.watch(None, limit=10) as watch:
        for number in range(5):
            create(store, f"{number}")
        found = until(watch, 5)
        for number in range(5, 11):
            create(store, f"{number}")
        with pytest.raises(Overflow, match="more than 10 events behind") as caught:
            watch.take(WAIT_S)
        with pytest.raises(WatchClosed):
            watch.take(0)
    assert caught.value.last_rev == 5
    with store.watch(caught.value.last_rev, limit=10) as again:
        found += until(again, 11)
        create(store, "last")
        found += until(again, 12)
    assert found == logged(store)


def test_the_memory_for_watches_is_bounded_also_in_bytes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "RING_BYTES", 100_000)
    with store.watch(None) as watch:
        for number in range(12):
            create(store, f"{number}", "x" * 10_000)
        with pytest.raises(Overflow) as caught:
            watch.take(WAIT_S)
    with store.watch(caught.value.last_rev) as again:
        assert until(again, 12) == logged(store)


def test_a_revision_larger_than_the_limit_still_arrives(store: Store) -> None:
    def many(tx: Any) -> None:
        for number in range(20):
            tx.create(DOCS, SCOPE, f"{number}", Doc())

    with store.watch(None, limit=3) as watch:
        store.update(many)
        with pytest.raises(Overflow) as caught:
            watch.take(WAIT_S)
    with store.watch(caught.value.last_rev, limit=3) as again:
        assert until(again, 1) == logged(store)


def test_one_slow_watch_does_not_hold_up_another(store: Store) -> None:
    with store.watch(None, limit=2), store.watch(None, limit=100) as quick:
        for number in range(20):
            create(store, f"{number}")
        assert until(quick, 20) == logged(store)


def test_a_closed_watch_ends_its_iteration_and_its_wait(store: Store) -> None:
    watch = store.watch(None)
    found: list[Event] = []
    reader = threading.Thread(target=lambda: found.extend(watch))
    reader.start()
    row = create(store, "a")
    until(store.watch(0), 1)
    while len(found) < 2:
        reader.join(0.01)
    watch.close()
    watch.close()
    reader.join(WAIT_S)
    assert not reader.is_alive()
    assert found == [RowCreated(1, row), UpdateCommitted(1)]


def test_a_store_that_closes_ends_every_watch_as_unavailable(path: Path) -> None:
    store = Store.open(path, TABLES)
    errors: list[Exception] = []
    begun = threading.Barrier(3)

    def read(watch: Watch) -> None:
        begun.wait(WAIT_S)
        try:
            list(watch)
        except Unavailable as error:
            errors.append(error)

    readers = [threading.Thread(target=read, args=(store.watch(None),)) for _ in range(2)]
    for reader in readers:
        reader.start()
    begun.wait(WAIT_S)
    store.close()
    for reader in readers:
        reader.join(WAIT_S)
    assert ["watch from revision 0" in str(error) for error in errors] == [True, True]


def test_view_and_watch_together_miss_nothing_while_others_write(store: Store) -> None:
    def write() -> None:
        for number in range(150):
            row = create(store, f"{number}")
            if number % 3 == 0:
                store.update(lambda tx, it=row: tx.delete(it))  # type: ignore[misc]  # bound now
            elif number % 3 == 1:
                store.update(lambda tx, it=row: tx.update(it, Doc("x")))  # type: ignore[misc]

    writer = threading.Thread(target=write)
    writer.start()
    while store.revision < 50:
        pass
    with store.view() as tx:
        known = {row.oid: row for row in tx.rows(DOCS, SCOPE)}
        revision = tx.revision
    with store.watch(revision) as watch:
        for event in _until_named(watch, "149"):
            match event:
                case RowCreated(_, row):
                    assert row.oid not in known
                    known[row.oid] = row
                case RowUpdated(_, row, old):
                    assert known[row.oid] == old
                    known[row.oid] = row
                case RowDeleted(_, row):
                    assert known.pop(row.oid) == row
    writer.join()
    with store.view() as tx:
        assert sorted(known) == sorted(row.oid for row in tx.rows(DOCS, SCOPE))
        assert all(known[row.oid] == row for row in tx.rows(DOCS, SCOPE))


def _until_named(watch: Watch, name: str) -> Iterator[Event]:
    for event in watch:
        yield event
        if isinstance(event, RowCreated) and event.row.name == name:
            return


def test_news_that_waits_for_its_pace_comes_before_a_waiting_watch_overflows(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "WAKEUPS_PER_S", 0.001)
    with store.watch(None, limit=100) as watch:
        for _ in range(5):
            first, *_ = [create(store, f"{store.revision}") for _ in range(15)]
            until(watch, first.mod_rev)


def test_all_that_wait_are_woken_also_beside_some_that_give_up(store: Store) -> None:
    updates = 30
    found: dict[int, list[Event]] = {}

    def consume(number: int) -> None:
        with store.watch(0) as watch:
            seen: list[Event] = []
            end = time.monotonic() + 6 * WAIT_S
            while watch.revision < updates and time.monotonic() < end:
                seen += watch.take(0.001 * number if number % 2 else WAIT_S).events
            found[number] = seen

    threads = [threading.Thread(target=consume, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for number in range(updates):
        create(store, f"{number}")
    for thread in threads:
        thread.join(7 * WAIT_S)
    everything = logged(store)
    assert [found[number] == everything for number in range(20)] == 20 * [True]
