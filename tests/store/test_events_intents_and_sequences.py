"""The log of what each revision did, its retention, intents, and numbers that never recur."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapfs.model import Compacted, InvalidArgument, NotFound
from snapfs.store import Event, RowCreated, RowDeleted, RowUpdated, Store, UpdateCommitted
from tests.store.kit import DOCS, SCOPE, TABLES, Doc


def events_after(store: Store, revision: int) -> list[Event]:
    with store.view() as tx:
        return list(tx.events(revision))


def test_events_tell_each_change_then_the_commit(store: Store) -> None:
    row = store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Doc("1")))

    def change(tx) -> tuple:
        new = tx.update(row, Doc("2"), name="b")
        other = tx.create(DOCS, SCOPE, "c", Doc())
        return new, other

    new, other = store.update(change)
    store.update(lambda tx: tx.delete(other))
    assert events_after(store, 0) == [
        RowCreated(1, row),
        UpdateCommitted(1),
        RowUpdated(2, new, row),
        RowCreated(2, other),
        UpdateCommitted(2),
        RowDeleted(3, other),
        UpdateCommitted(3),
    ]
    assert events_after(store, 2) == [RowDeleted(3, other), UpdateCommitted(3)]
    assert events_after(store, 3) == []


def test_update_that_wrote_nothing_has_no_revision_and_no_event(store: Store) -> None:
    assert store.update(lambda tx: tx.revision) == 0
    assert store.revision == 0
    assert events_after(store, 0) == []


def test_events_of_the_future_are_refused(store: Store) -> None:
    with store.view() as tx, pytest.raises(InvalidArgument, match="revision 1 is still to come"):
        tx.events(1)


def test_old_events_go_and_a_late_reader_is_told(path: Path) -> None:
    with Store.open(path, TABLES, keep_revisions=20) as store:
        for number in range(100):
            store.update(lambda tx, n=number: tx.create(DOCS, SCOPE, str(n), Doc()))
            assert store.check() == []
        with store.view() as tx:
            assert tx.compacted_revision == 80
            assert len(list(tx.events(80))) == 40
            with pytest.raises(Compacted, match="events after revision 79 are gone up to 80"):
                tx.events(79)


def test_a_long_log_becomes_short_bit_by_bit(path: Path) -> None:
    with Store.open(path, TABLES) as store:
        for _ in range(100):
            store.update(lambda tx: tx.sequence("x"))
    with Store.open(path, TABLES, keep_revisions=10) as store:
        compacted = []
        for _ in range(6):
            store.update(lambda tx: tx.sequence("x"))
            with store.view() as tx:
                compacted.append(tx.compacted_revision)
            assert store.check() == []
    assert compacted == [18, 36, 54, 72, 90, 96]


def test_intents_stay_until_they_are_cleared(path: Path) -> None:
    with Store.open(path, TABLES) as store:
        first, second = (store.update(lambda tx, p=p: tx.put_intent(p)) for p in (b"1", b""))
    with Store.open(path, TABLES) as store:
        with store.view() as tx:
            assert list(tx.intents()) == [(first, b"1"), (second, b"")]
        store.update(lambda tx: tx.clear_intent(second))
        with pytest.raises(NotFound, match=f"intent {second}"):
            store.update(lambda tx: tx.clear_intent(second))
        assert store.update(lambda tx: tx.put_intent(b"3")) == second + 1
        with store.view() as tx:
            assert list(tx.intents()) == [(first, b"1"), (second + 1, b"3")]
        assert store.check() == []


def test_intent_is_cleared_in_the_transaction_of_what_it_promised(store: Store) -> None:
    number = store.update(lambda tx: tx.put_intent(b"make a"))

    def finish(tx) -> None:
        tx.clear_intent(number)
        tx.create(DOCS, SCOPE, "a", Doc())

    store.update(finish)
    with store.view() as tx:
        assert list(tx.intents()) == []
        assert tx.get(DOCS, SCOPE, "a") is not None


def test_sequence_counts_from_one_in_each_scope_and_across_restarts(path: Path) -> None:
    with Store.open(path, TABLES) as store:
        assert [store.update(lambda tx: tx.sequence("a")) for _ in range(3)] == [1, 2, 3]
        assert store.update(lambda tx: (tx.sequence("b"), tx.sequence("b"))) == (1, 2)
    with Store.open(path, TABLES) as store:
        assert store.update(lambda tx: tx.sequence("a")) == 4


def test_sequence_of_a_failed_update_was_never_given(store: Store) -> None:
    def fail(tx) -> None:
        tx.sequence("a")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.update(fail)
    assert store.update(lambda tx: tx.sequence("a")) == 1
