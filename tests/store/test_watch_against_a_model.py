"""Watches under any order of updates, takes, overflows, compactions and restarts."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from snapfs.model import Compacted
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
)
from tests.store.kit import DOCS, SCOPE, TABLES, Doc

KEEP_REVISIONS = 15
FILTERS: list[tuple[Specifier[Any], ...]] = [
    (),
    (Specifier(DOCS, prototype={"text": "x"}),),
    (Specifier(DOCS, Action.DELETE), Specifier(DOCS, Action.CREATE, name_prefix="1")),
]


def wanted(filters: int, event: Event) -> bool:
    """Say what FILTERS say, in other words."""
    if isinstance(event, UpdateCommitted) or filters == 0:
        return True
    if filters == 1:
        return bool(event.row.body.text == "x")
    created = isinstance(event, RowCreated) and event.row.name.startswith("1")
    return created or isinstance(event, RowDeleted)


@dataclass
class Consumer:
    watch: Watch
    filters: int
    limit: int
    place: int
    found: list[Event] = field(default_factory=list)


class WatchMachine(RuleBasedStateMachine):
    @initialize()
    def make(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.history: list[Event] = []
        self.consumers: list[Consumer] = []
        self.rows: dict[int, Row[Doc]] = {}
        self.made = 0
        self.open()

    def open(self) -> None:
        self.store = Store.open(self.root / "m", TABLES, keep_revisions=KEEP_REVISIONS)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.root)

    @rule(steps=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=8))
    def update(self, steps: list[tuple[int, int]]) -> None:
        def function(tx: Any) -> tuple[list[Event], dict[int, Row[Doc]], int]:
            events: list[Event] = []
            rows, made, revision = dict(self.rows), self.made, tx.revision + 1
            for what, which in steps:
                old = rows[sorted(rows)[which % len(rows)]] if rows else None
                if what == 0 or old is None:
                    made += 1
                    row = tx.create(DOCS, SCOPE, f"{made}", Doc("xy"[which % 2]))
                    events.append(RowCreated(revision, row))
                    rows[row.oid] = row
                elif what == 1:
                    row = tx.update(old, Doc("xyz"[which % 3]))
                    events.append(RowUpdated(revision, row, old))
                    rows[row.oid] = row
                else:
                    tx.delete(old)
                    events.append(RowDeleted(revision, old))
                    del rows[old.oid]
            return [*events, UpdateCommitted(revision)], rows, made

        events, self.rows, self.made = self.store.update(function)
        self.history += events

    @rule(
        filters=st.integers(0, len(FILTERS) - 1),
        limit=st.sampled_from([1, 4, 30, 1000]),
        behind=st.integers(0, 20),
    )
    def watch(self, filters: int, limit: int, behind: int) -> None:
        self.begin(filters, limit, max(0, self.store.revision - behind))

    def begin(self, filters: int, limit: int, place: int) -> None:
        try:
            watch = self.store.watch(place, *FILTERS[filters], limit=limit)
        except Compacted:
            assert place < self.store.revision - KEEP_REVISIONS
            return
        self.consumers.append(Consumer(watch, filters, limit, place))

    @precondition(lambda self: self.consumers)
    @rule(which=st.integers(0, 9), resume=st.booleans())
    def take(self, which: int, resume: bool) -> None:
        consumer = self.consumers[which % len(self.consumers)]
        while consumer.watch.revision < self.store.revision:
            try:
                consumer.found += consumer.watch.take(10).events
            except Overflow as overflow:
                self.leave(consumer, resume=resume, place=overflow.last_rev)
                return
            except Compacted:
                assert consumer.watch.revision < self.store.revision - KEEP_REVISIONS
                self.leave(consumer, resume=False)
                return
        self.compare(consumer)

    @precondition(lambda self: self.consumers)
    @rule(which=st.integers(0, 9), resume=st.booleans())
    def close(self, which: int, resume: bool) -> None:
        self.leave(self.consumers[which % len(self.consumers)], resume=resume)

    @rule(resume=st.booleans())
    def restart(self, resume: bool) -> None:
        self.store.close()
        self.open()
        for consumer in list(self.consumers):
            self.leave(consumer, resume=resume)

    def leave(self, consumer: Consumer, *, resume: bool, place: int | None = None) -> None:
        assert place in (None, consumer.watch.revision)
        self.compare(consumer)
        consumer.watch.close()
        self.consumers.remove(consumer)
        if resume:
            self.begin(consumer.filters, consumer.limit, consumer.watch.revision)

    def compare(self, consumer: Consumer) -> None:
        """What it has is exactly what happened between its beginning and its revision."""
        assert consumer.found == [
            event
            for event in self.history
            if consumer.place < event.revision <= consumer.watch.revision
            and wanted(consumer.filters, event)
        ]


TestWatchAgainstAModel = WatchMachine.TestCase
TestWatchAgainstAModel.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
