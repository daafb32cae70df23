"""Whatever is done to a store, it answers as a dictionary would and keeps its invariants."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from snapfs.model import AlreadyExists, FailedPrecondition, NotFound
from snapfs.store import ReadTx, RowCreated, RowDeleted, RowUpdated, Store, UpdateCommitted
from tests.store.kit import DOCS, FRIEND, PARENT, TABLES, Doc

KEEP_REVISIONS = 12
NAMES = st.sampled_from(["a", "b", "c\0d", "n" * 400, "n" * 401, "n" * 402, "é" * 300])
SCOPES = st.sampled_from(["one", "two"])
TEXTS = st.text("xyz", max_size=3)
TAGS = st.lists(st.sampled_from(["red", "blue", "r" * 450]), max_size=3).map(tuple)
SLUGS = st.sampled_from(["", "", "s", "t" * 420])


@dataclass(frozen=True)
class Item:
    """What the model knows of a row."""

    oid: int
    scope: str
    name: str
    body: Doc
    create_rev: int
    mod_rev: int
    expires_ns: int | None = None


@dataclass
class Model:
    items: dict[int, Item] = field(default_factory=dict)
    intents: dict[int, bytes] = field(default_factory=dict)
    revision: int = 0
    oids: int = 0
    intent_count: int = 0
    sequences: dict[str, int] = field(default_factory=dict)
    events: list[tuple[Any, ...]] = field(default_factory=list)

    def copy(self) -> Model:
        return replace(
            self,
            items=dict(self.items),
            intents=dict(self.intents),
            sequences=dict(self.sequences),
            events=list(self.events),
        )

    def named(self, scope: str, name: str) -> Item | None:
        found = [i for i in self.items.values() if (i.scope, i.name) == (scope, name)]
        return found[0] if found else None

    def slug_is_taken(self, scope: str, slug: str, oid: int) -> bool:
        return bool(slug) and any(
            i.scope == scope and i.body.slug == slug and i.oid != oid for i in self.items.values()
        )


class Abandoned(Exception):
    """The end of an update that must leave nothing."""


Step = Callable[[Any, Model], None]


class StoreMachine(RuleBasedStateMachine):
    @initialize()
    def make(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.model = Model()
        self.open()

    def open(self) -> None:
        self.store = Store.open(
            self.root / "m", TABLES, map_size_bytes=1 << 18, keep_revisions=KEEP_REVISIONS
        )

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.root)

    def oid(self, index: int) -> int:
        oids = sorted(self.model.items)
        return oids[index % len(oids)] if oids else 0

    def run(self, steps: list[Step], *, abandon: bool = False) -> None:
        """Apply steps to store and model alike, as one update; the model is pure in re-runs."""

        def function(tx: Any) -> Model:
            model = self.model.copy()
            model.revision += 1
            before = len(model.events)
            for step in steps:
                step(tx, model)
            if abandon:
                raise Abandoned
            if len(model.events) > before:
                model.events.append(("commit", model.revision))
                return model
            return self.model

        try:
            self.model = self.store.update(function)
        except Abandoned:
            assert abandon

    @rule(
        scope=SCOPES,
        name=NAMES,
        text=TEXTS,
        tags=TAGS,
        slug=SLUGS,
        parent=st.integers(-3, 8),
        friend=st.integers(-3, 8),
        abandon=st.integers(0, 9).map(lambda n: n == 0),
    )
    def create(
        self, scope: str, name: str, text: str, tags: Any, slug: str, parent: int, friend: int,
        abandon: bool,
    ) -> None:  # fmt: skip
        body = Doc(
            text,
            self.oid(parent) if parent >= 0 else 0,
            self.oid(friend) if friend >= 0 else 0,
            tags,
            slug,
        )
        self.run([lambda tx, model: self.do_create(tx, model, scope, name, body)], abandon=abandon)

    def do_create(self, tx: Any, model: Model, scope: str, name: str, body: Doc) -> None:
        if model.named(scope, name) or model.slug_is_taken(scope, body.slug, 0):
            refused(AlreadyExists, tx.create, DOCS, scope, name, body)
            return
        row = tx.create(DOCS, scope, name, body)
        model.oids += 1
        assert row.oid == model.oids
        model.items[row.oid] = Item(row.oid, scope, name, body, model.revision, model.revision)
        model.events.append(("create", model.revision, row.oid, body))

    @rule(scope=SCOPES, name=NAMES)
    def create_on_nothing(self, scope: str, name: str) -> None:
        body = Doc(parent=10_000)
        expected = AlreadyExists if self.model.named(scope, name) else NotFound
        self.run([lambda tx, _: refused(expected, tx.create, DOCS, scope, name, body)])

    @precondition(lambda self: self.model.items)
    @rule(
        index=st.integers(0, 20),
        name=st.none() | NAMES,
        text=TEXTS,
        tags=TAGS,
        slug=SLUGS,
        parent=st.integers(-3, 8),
        abandon=st.integers(0, 9).map(lambda n: n == 0),
    )
    def update(
        self, index: int, name: str | None, text: str, tags: Any, slug: str, parent: int,
        abandon: bool,
    ) -> None:  # fmt: skip
        oid = self.oid(index)
        body = Doc(text, self.oid(parent) if parent >= 0 else 0, 0, tags, slug)
        self.run([lambda tx, model: self.do_update(tx, model, oid, name, body)], abandon=abandon)

    def do_update(self, tx: Any, model: Model, oid: int, name: str | None, body: Doc) -> None:
        item = model.items[oid]
        row = tx.by_oid(DOCS, oid)
        wanted = item.name if name is None else name
        other = model.named(item.scope, wanted)
        if (other and other.oid != oid) or model.slug_is_taken(item.scope, body.slug, oid):
            refused(AlreadyExists, tx.update, row, body, name=name)
            return
        new = tx.update(row, body, name=name)
        assert new.name == wanted
        model.items[oid] = replace(item, name=wanted, body=body, mod_rev=model.revision)
        model.events.append(("update", model.revision, oid, body))

    @precondition(lambda self: self.model.items)
    @rule(index=st.integers(0, 20), abandon=st.integers(0, 9).map(lambda n: n == 0))
    def delete(self, index: int, abandon: bool) -> None:
        oid = self.oid(index)
        self.run([lambda tx, model: self.do_delete(tx, model, oid)], abandon=abandon)

    def do_delete(self, tx: Any, model: Model, oid: int) -> None:
        row = tx.by_oid(DOCS, oid)
        if any(i.body.parent == oid and i.oid != oid for i in model.items.values()):
            refused(FailedPrecondition, tx.delete, row)
            return
        tx.delete(row)
        item = model.items.pop(oid)
        model.events.append(("delete", model.revision, oid, item.body))

    @precondition(lambda self: self.model.items)
    @rule(index=st.integers(0, 20), time_ns=st.none() | st.integers(0, 100))
    def expire(self, index: int, time_ns: int | None) -> None:
        oid = self.oid(index)

        def step(tx: Any, model: Model) -> None:
            tx.expire_at(oid, time_ns)
            item = model.items[oid]
            model.items[oid] = replace(item, expires_ns=time_ns, mod_rev=model.revision)
            model.events.append(("update", model.revision, oid, item.body))

        self.run([step])

    @rule(payload=st.binary(max_size=20))
    def put_intent(self, payload: bytes) -> None:
        def step(tx: Any, model: Model) -> None:
            model.intent_count += 1
            assert tx.put_intent(payload) == model.intent_count
            model.intents[model.intent_count] = payload
            model.events.append(())  # no event of a row, but the revision has a commit

        self.run([step])
        self.model.events.remove(())

    @rule(number=st.integers(1, 8))
    def clear_intent(self, number: int) -> None:
        if number in self.model.intents:

            def step(tx: Any, model: Model) -> None:
                tx.clear_intent(number)
                del model.intents[number]
                model.events.append(())

            self.run([step])
            self.model.events.remove(())
        else:
            self.run([lambda tx, _: refused(NotFound, tx.clear_intent, number)])

    @rule(scope=SCOPES)
    def sequence(self, scope: str) -> None:
        def step(tx: Any, model: Model) -> None:
            model.sequences[scope] = model.sequences.get(scope, 0) + 1
            assert tx.sequence(scope) == model.sequences[scope]
            model.events.append(())

        self.run([step])
        self.model.events.remove(())

    @rule(
        changes=st.lists(
            st.tuples(st.sampled_from(["create", "update", "delete"]), NAMES, st.integers(0, 20)),
            max_size=5,
        ),
        abandon=st.booleans(),
    )
    def several_at_once(self, changes: list[tuple[str, str, int]], abandon: bool) -> None:
        def step_of(kind: str, name: str, index: int) -> Step:
            def step(tx: Any, model: Model) -> None:
                oids = sorted(model.items)
                if kind == "create" or not oids:
                    self.do_create(tx, model, "one", name, Doc(name[:1]))
                elif kind == "update":
                    self.do_update(tx, model, oids[index % len(oids)], name, Doc(tags=("red",)))
                else:
                    self.do_delete(tx, model, oids[index % len(oids)])

            return step

        self.run([step_of(*change) for change in changes], abandon=abandon)

    @rule(size=st.integers(100_000, 300_000))
    def grow(self, size: int) -> None:
        name = f"large {self.model.oids}"
        body = Doc("x" * size)
        self.run([lambda tx, model: self.do_create(tx, model, "one", name, body)])

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.open()

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "store"):
            return
        assert self.store.check() == []
        with self.store.view() as tx:
            assert tx.revision == self.model.revision
            self.agrees_on_rows(tx)
            self.agrees_on_indexes_and_edges(tx)
            self.agrees_on_events(tx)
            assert dict(tx.intents()) == self.model.intents
            for scope in ("one", "two"):
                assert tx.last_sequence(scope) == self.model.sequences.get(scope, 0)

    def agrees_on_rows(self, tx: ReadTx) -> None:
        for scope in ("one", "two"):
            items = [item for item in self.model.items.values() if item.scope == scope]
            rows = list(tx.rows(DOCS, scope))
            assert sorted(row.name for row in rows) == sorted(item.name for item in items)
            short = [row.name.encode() for row in rows if len(row.name.encode()) <= 400]
            assert short == sorted(short)
            for item in items:
                row = tx.get(DOCS, scope, item.name)
                assert row is not None
                assert row == tx.by_oid(DOCS, item.oid)
                assert (row.oid, row.body, row.create_rev, row.mod_rev, row.expires_ns) == (
                    (item.oid, item.body, item.create_rev, item.mod_rev, item.expires_ns)
                )
        due = [(i.expires_ns, i.oid) for i in self.model.items.values() if i.expires_ns is not None]
        assert list(tx.expired(50)) == [oid for time_ns, oid in sorted(due) if time_ns <= 50]

    def agrees_on_indexes_and_edges(self, tx: ReadTx) -> None:
        items = self.model.items.values()
        for scope in ("one", "two"):
            for tag in ("red", "blue", "r" * 450):
                found = [row.oid for row in tx.find(DOCS, "tag", tag.encode(), scope=scope)]
                assert found == sorted(
                    i.oid for i in items if i.scope == scope and tag in i.body.tags
                )
        for item in items:
            parents = sorted(i.oid for i in items if i.body.parent == item.oid)
            friends = sorted(i.oid for i in items if i.body.friend == item.oid)
            assert list(tx.referrers(item.oid, PARENT)) == parents
            assert list(tx.referrers(item.oid, FRIEND)) == friends
            assert tx.has_referrers(item.oid) == bool(parents or friends)

    def agrees_on_events(self, tx: ReadTx) -> None:
        seen: list[tuple[Any, ...]] = []
        for event in tx.events(tx.compacted_revision):
            match event:
                case UpdateCommitted(revision):
                    seen.append(("commit", revision))
                case RowCreated(revision, row):
                    seen.append(("create", revision, row.oid, row.body))
                case RowUpdated(revision, row, _):
                    seen.append(("update", revision, row.oid, row.body))
                case RowDeleted(revision, row):
                    seen.append(("delete", revision, row.oid, row.body))
        assert seen == [event for event in self.model.events if event[1] > tx.compacted_revision]
        assert tx.revision - tx.compacted_revision >= min(tx.revision, KEEP_REVISIONS)


def refused(kind: type[Exception], operation: Callable[..., Any], *args: Any, **named: Any) -> None:
    try:
        operation(*args, **named)
    except kind:
        return
    raise AssertionError(f"{operation} was not refused")


TestStore = pytest.mark.slow(StoreMachine.TestCase)
TestStore.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
