"""A held writer is seen and named; whoever agrees to changes decides whether they take effect."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog

from snapfs.model import Compacted, Internal, InvalidArgument, TooLarge, Unavailable
from snapfs.store import Change, Store, Wedge
from snapfs.store.changes import unpack
from tests.store.kit import DOCS, SCOPE, TABLES, Doc

WAIT_S = 10.0


def create(store: Store, name: str, text: str = "") -> None:
    store.update(lambda tx: tx.create(DOCS, SCOPE, name, Doc(text)))


def test_a_store_at_rest_or_at_work_is_not_wedged(store: Store) -> None:
    assert store.wedged() is None
    assert store.update(lambda tx: store.wedged()) is None


@pytest.mark.logs("store.wedged")
def test_a_held_writer_is_seen_and_logged_once_with_what_holds_it(path: Path) -> None:
    go_on, logged = threading.Event(), threading.Event()
    seen: list[Any] = []

    def notice(logger: Any, method: str, event: Any) -> Any:
        if event["event"] == "store.wedged":
            seen.append(dict(event))
            logged.set()
        return event

    def hold_the_writer(tx: Any) -> None:
        assert go_on.wait(WAIT_S)

    processors = structlog.get_config()["processors"]
    processors.insert(0, notice)
    try:
        with Store.open(path, TABLES, wedged_after_s=0.05) as store:
            holder = threading.Thread(target=store.update, args=(hold_the_writer,))
            holder.start()
            assert logged.wait(WAIT_S)
            wedge = store.wedged()
            threading.Event().wait(0.1)
            go_on.set()
            holder.join()
            assert store.wedged() is None
    finally:
        processors.remove(notice)
    assert isinstance(wedge, Wedge)
    assert wedge.held_s >= 0.05
    assert wedge.by.endswith("hold_the_writer")
    assert "go_on.wait(WAIT_S)" in wedge.stack
    assert [it["by"].endswith("hold_the_writer") for it in seen] == [True]


class Agreement:
    """A proposer for tests: keeps what was agreed to, and may refuse."""

    max_change_bytes: int | None = 2000

    def __init__(self) -> None:
        self.agreed: list[Change] = []
        self.before: Exception | None = None
        self.after: Exception | None = None
        self.silent = False

    def propose(self, changes: Sequence[Change], commit: Callable[[], None]) -> None:
        if self.before:
            raise self.before
        if self.silent:
            return
        commit()
        self.agreed += changes
        if self.after:
            raise self.after

    def version(self) -> int:
        return self.agreed[-1].revision if self.agreed else 0

    def changes_between(self, after_rev: int, up_to_rev: int) -> Iterator[Change]:
        return iter(it for it in self.agreed if after_rev < it.revision <= up_to_rev)


@pytest.fixture
def agreement() -> Agreement:
    return Agreement()


@pytest.fixture
def agreed(path: Path, agreement: Agreement) -> Iterator[Store]:
    with Store.open(path, TABLES, proposer=agreement) as store:
        yield store
        assert store.check() == []


def test_a_proposer_gets_every_change_in_order_and_nothing_for_an_update_without_one(
    agreed: Store, agreement: Agreement
) -> None:
    create(agreed, "a")
    agreed.update(lambda tx: tx.get(DOCS, SCOPE, "a"))
    create(agreed, "b")
    assert [it.revision for it in agreement.agreed] == [1, 2]
    assert agreed.proposer.version() == 2
    assert [unpack(it.pack()) for it in agreement.agreed] == agreement.agreed
    with agreed.view() as tx:
        assert list(tx.changes(0)) == agreement.agreed


def test_what_is_refused_takes_no_effect_and_the_next_may(
    agreed: Store, agreement: Agreement
) -> None:
    agreement.before = Unavailable("no majority; try again")
    with agreed.watch(0) as watch:
        with pytest.raises(Unavailable, match="no majority"):
            create(agreed, "a")
        assert agreed.revision == 0
        agreement.before = None
        create(agreed, "a")
        assert watch.take(WAIT_S).revision == 1


@pytest.mark.logs("store.proposal_failed_after_commit")
def test_what_is_committed_stands_whatever_the_proposer_says_later(
    agreed: Store, agreement: Agreement
) -> None:
    agreement.after = Unavailable("lost the leader")
    create(agreed, "a")
    assert agreed.revision == 1


def test_a_proposer_that_neither_commits_nor_refuses_is_an_error(
    agreed: Store, agreement: Agreement
) -> None:
    agreement.silent = True
    with pytest.raises(Internal, match="neither committed nor refused"):
        create(agreed, "a")
    assert agreed.revision == 0


def test_an_update_larger_than_can_be_agreed_on_is_refused_alone(agreed: Store) -> None:
    with pytest.raises(TooLarge, match="use a batch"):
        create(agreed, "a", "x" * 2000)
    create(agreed, "b")
    assert agreed.revision == 1


def test_the_local_proposer_answers_from_the_log(path: Path) -> None:
    with Store.open(path, TABLES, keep_revisions=5) as store:
        for name in "abcde":
            create(store, name)
        local = store.proposer
        assert local.version() == 5
        assert [it.revision for it in local.changes_between(1, 3)] == [2, 3]
        assert list(local.changes_between(3, 3)) == []
        with pytest.raises(InvalidArgument, match="still to come"):
            list(local.changes_between(1, 6))
        for number in range(40):
            create(store, f"{number}")
        with pytest.raises(Compacted):
            list(local.changes_between(1, 45))
