"""Objects carry revisions and times; an update against a stale revision tells both."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from snapfs.model import Conflict
from snapfs.store import Row, Store
from tests.store.kit import DOCS, SCOPE, TABLES, Doc


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    """A store in which every update is a nanosecond later, from 1."""
    clock = count(1)
    with Store.open(path, TABLES, clock_ns=lambda: next(clock)) as store:
        yield store
        assert store.check() == []


@pytest.fixture
def row(store: Store) -> Row[Doc]:
    return store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Doc()))


def test_created_is_set_once_and_updated_each_time(store: Store, row: Row[Doc]) -> None:
    later = store.update(lambda tx: tx.update(row, Doc("b")))
    assert row.created_ns == row.updated_ns == later.created_ns
    assert later.updated_ns > later.created_ns


def test_an_update_follows_its_own_answer_a_read_and_refuses_a_stale_copy(
    store: Store, row: Row[Doc]
) -> None:
    own = store.update(lambda tx: tx.update(row, Doc("own"), expect_mod_rev=row.mod_rev))
    with store.view() as tx:
        read = tx.get(DOCS, SCOPE, "a")
    assert read == own
    last = store.update(lambda tx: tx.update(read, Doc("read"), expect_mod_rev=read.mod_rev))
    with pytest.raises(Conflict, match="is at revision 3, not at 2; read it again") as caught:
        store.update(lambda tx: tx.update(own, Doc("stale"), expect_mod_rev=own.mod_rev))
    assert (caught.value.expected, caught.value.actual) == (2, 3)
    store.update(lambda tx: tx.update(last, Doc("fresh"), expect_mod_rev=last.mod_rev))


def test_status_does_not_disturb_who_changes_the_spec(store: Store, row: Row[Doc]) -> None:
    for number in range(3):
        store.update(lambda tx, n=number: tx.update(row, Doc(f"{n}"), spec=False))  # type: ignore[misc]
    new = store.update(lambda tx: tx.update(row, Doc("spec"), expect_spec_rev=row.spec_rev))
    assert (new.create_rev, new.spec_rev, new.mod_rev) == (1, 5, 5)
    with pytest.raises(Conflict) as caught:
        store.update(lambda tx: tx.update(row, Doc("stale"), expect_spec_rev=row.spec_rev))
    assert (caught.value.expected, caught.value.actual) == (1, 5)


def test_what_a_revision_changed_carries_it_and_so_does_its_commit(store: Store) -> None:
    rows = store.update(lambda tx: [tx.create(DOCS, SCOPE, name, Doc()) for name in "ab"])
    assert [(row.create_rev, row.mod_rev, row.spec_rev) for row in rows] == [(1, 1, 1)] * 2
    with store.view() as tx:
        assert [event.revision for event in tx.events(0)] == [1, 1, 1]


def test_what_a_transaction_returned_is_the_callers_own(store: Store, row: Row[Doc]) -> None:
    with store.view() as before:
        store.update(lambda tx: tx.update(row, Doc("new")))
        assert before.get(DOCS, SCOPE, "a") == row
    with store.view() as after:
        assert after.get(DOCS, SCOPE, "a") != row
