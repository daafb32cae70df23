"""Items of a batch are whole or nothing, share revisions up to a limit, and let others between."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapfs.model import AlreadyExists, NotFound, ResourceExhausted
from snapfs.store import Done, Failed, Row, RowCreated, Store, UpdateCommitted, WriteTx
from tests.store.kit import DOCS, SCOPE, TABLES, Doc

WAIT_S = 10.0
LIMIT_BYTES = 3 * 1536 * 1024 // 4
Item = Callable[[WriteTx], Any]


def creation(name: str, text: str = "") -> Callable[[WriteTx], Row[Doc]]:
    return lambda tx: tx.create(DOCS, SCOPE, name, Doc(text))


def creations(count: int, fail_at: int | None = None) -> Iterator[Item]:
    for number in range(1, count + 1):
        if number == fail_at:
            raise LookupError(number)
        yield creation(f"{number}")


def runs(store: Store, after_rev: int = 0) -> list[int]:
    """Return how many rows each revision created, as a watch has it."""
    found = [0]
    with store.watch(after_rev) as watch:
        while watch.revision < store.revision:
            for event in watch.take(WAIT_S).events:
                if isinstance(event, UpdateCommitted):
                    assert event.revision == after_rev + len(found)
                    found.append(0)
                else:
                    assert isinstance(event, RowCreated)
                    found[-1] += 1
    return found[:-1]


def test_405_items_are_committed_as_200_200_and_5(store: Store) -> None:
    outcomes = store.batch(creations(405))
    assert [type(outcome) for outcome in outcomes] == [Done] * 405
    assert runs(store) == [200, 200, 5]


def test_an_iterator_that_fails_at_209_leaves_the_first_200_alone(store: Store) -> None:
    with pytest.raises(LookupError):
        store.batch(creations(405, fail_at=209))
    assert runs(store) == [200]


def test_an_empty_batch_and_one_that_writes_nothing_have_no_revision(store: Store) -> None:
    assert store.batch([]) == []
    assert store.batch([lambda tx: tx.revision] * 3) == [Done(0)] * 3
    assert store.revision == 0


def test_a_failing_item_leaves_nothing_of_itself_and_all_of_the_others(store: Store) -> None:
    def fail_late(tx: WriteTx) -> None:
        tx.create(DOCS, SCOPE, "half", Doc())
        tx.put_intent(b"half")
        tx.sequence("half")
        raise LookupError

    outcomes = store.batch([creation("a"), fail_late, creation("a"), creation("b")])
    assert [type(it) for it in outcomes] == [Done, Failed, Failed, Done]
    assert isinstance(outcomes[2], Failed)
    assert isinstance(outcomes[2].error, AlreadyExists)
    assert runs(store) == [2]
    with store.view() as tx:
        assert [row.name for row in tx.rows(DOCS, SCOPE)] == ["a", "b"]
        assert list(tx.intents()) == []
        assert tx.last_sequence("half") == 0


def test_items_see_what_earlier_ones_did_and_give_results(store: Store) -> None:
    def count(tx: WriteTx) -> int:
        return len(list(tx.rows(DOCS, SCOPE)))

    items: list[Item] = [count, creation("a"), count, creation("b"), count]
    results = [outcome.result for outcome in store.batch(items) if isinstance(outcome, Done)]
    assert results[::2] == [0, 1, 2]


def test_a_batch_is_split_before_it_exceeds_three_quarters_of_what_can_be_agreed_on(
    store: Store,
) -> None:
    text = "x" * (LIMIT_BYTES // 10)
    store.batch([creation(f"{number}", text) for number in range(25)])
    assert runs(store) == [9, 9, 7]


def test_an_item_larger_than_the_limit_has_a_revision_of_its_own(store: Store) -> None:
    store.batch([creation("a"), creation("large", "x" * 2 * LIMIT_BYTES), creation("b")])
    assert runs(store) == [1, 1, 1]


def test_an_item_of_many_changes_is_not_split(store: Store) -> None:
    def many(prefix: str) -> Item:
        return lambda tx: [tx.create(DOCS, SCOPE, f"{prefix}{n}", Doc()) for n in range(150)]

    store.batch([many("a"), many("b"), creation("c")])
    assert runs(store) == [150, 151]


def test_other_updates_have_their_turn_within_a_batch(store: Store) -> None:
    other = threading.Thread(target=store.update, args=(creation("other"),))

    def items() -> Iterator[Item]:
        yield from creations(200)
        other.start()
        other.join(WAIT_S)
        yield creation("last")

    store.batch(items())
    assert runs(store) == [200, 1, 1]


def test_a_batch_goes_on_as_the_map_grows(path: Path) -> None:
    with Store.open(path, TABLES, map_size_bytes=1 << 18) as store:
        outcomes = store.batch([creation(f"{n}", "x" * 3000) for n in range(700)])
        assert {type(outcome) for outcome in outcomes} == {Done}
        assert sum(runs(store)) == 700
        assert store.check() == []


def test_a_batch_ends_at_a_transaction_that_fails(path: Path) -> None:
    with Store.open(path, TABLES, map_size_bytes=1 << 22, max_map_size_bytes=1 << 22) as store:
        with pytest.raises(ResourceExhausted):
            store.batch([creation(f"{n}", "x" * 3000) for n in range(700)])
        found = runs(store)
        assert 0 < sum(found) < 700
        assert found[:-1] == [200] * (len(found) - 1)
        assert store.check() == []


STEPS = st.tuples(st.sampled_from(["create", "delete", "fail"]), st.integers(0, 5))


@settings(max_examples=60, deadline=None)
@given(items=st.lists(st.lists(STEPS, max_size=4), max_size=12))
def test_any_batch_is_as_its_successful_items_one_after_the_other(
    tmp_path_factory: pytest.TempPathFactory, items: list[list[tuple[str, int]]]
) -> None:
    names: set[str] = set()
    expected: list[bool] = []
    for steps in items:
        after: set[str] | None = set(names)
        for what, which in steps:
            after = _model(after, what, f"{which}")
        expected.append(after is not None)
        names = names if after is None else after
    with Store.open(tmp_path_factory.mktemp("s") / "s", TABLES) as store:
        outcomes = store.batch(_run(steps) for steps in items)
        assert [isinstance(outcome, Done) for outcome in outcomes] == expected
        assert store.check() == []
        with store.view() as tx:
            assert {row.name for row in tx.rows(DOCS, SCOPE)} == names


def _model(names: set[str] | None, what: str, name: str) -> set[str] | None:
    """Return the names after a step; None once a step has failed."""
    if names is None or what == "fail" or (what == "create") == (name in names):
        return None
    return names | {name} if what == "create" else names - {name}


def _run(steps: list[tuple[str, int]]) -> Item:
    def item(tx: WriteTx) -> None:
        for what, which in steps:
            row = tx.get(DOCS, SCOPE, f"{which}")
            if what == "fail":
                raise LookupError
            if what == "create":
                tx.create(DOCS, SCOPE, f"{which}", Doc())
            elif row is None:
                raise NotFound(f"{which}")
            else:
                tx.delete(row)

    return item
