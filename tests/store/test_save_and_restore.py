"""A store goes through one stream into any other, whole or not at all, and copies keep in step."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapfs.model import (
    AlreadyExists,
    Compacted,
    Conflict,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    SnapfsError,
)
from snapfs.store import (
    Overflow,
    ReadStore,
    Restored,
    Row,
    RowCreated,
    RowDeleted,
    RowUpdated,
    Store,
    UpdateCommitted,
)
from tests.store.kit import DOCS, NOTES, SCOPE, TABLES, Doc, Note


def saved(store: Store) -> io.BytesIO:
    out = io.BytesIO()
    assert store.save(out) == store.revision
    out.seek(0)
    return out


def rows(store: Store) -> list[Row[Any]]:
    """Return all rows of all tables, in order of oid."""
    with store.view() as tx:
        found = [tx.by_oid(table, oid) for oid in range(1, 60) for table in TABLES]
    return [row for row in found if row is not None]


def contents(store: Store) -> list[tuple[Any, ...]]:
    """Return what rows are but for their revisions."""
    return [
        (r.oid, r.table, r.scope, r.name, r.body, r.created_ns, r.expires_ns) for r in rows(store)
    ]


def create(store: Store, name: str, body: Doc | None = None) -> Row[Doc]:
    return store.update(lambda tx: tx.create(DOCS, SCOPE, name, body or Doc()))


@pytest.fixture
def other(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "other", TABLES)


@pytest.fixture(autouse=True)
def _other_is_sound(other: Store) -> Any:
    yield
    assert other.check() == []
    other.close()


def fill(store: Store) -> None:
    base = create(store, "base", Doc("b", tags=("red",), slug="base"))
    create(store, "child", Doc("c", parent=base.oid, friend=999))
    store.update(lambda tx: tx.create(NOTES, "elsewhere", "note", Note(base.oid)))
    store.update(lambda tx: tx.expire_at(base.oid, 77))
    gone = create(store, "gone")
    store.update(lambda tx: tx.delete(gone))
    store.update(lambda tx: (tx.sequence("ids"), tx.sequence("ids"), tx.put_intent(b"local")))


def test_a_new_store_becomes_a_copy_with_its_revisions(store: Store, other: Store) -> None:
    fill(store)
    assert other.restore(saved(store)) == Restored(7, 3, 0, 0, verbatim=True)
    assert rows(other) == rows(store)
    assert other.revision == store.revision
    with other.view() as tx:
        assert list(tx.expired(77)) == [1]
        assert list(tx.intents()) == []
    assert other.update(lambda tx: tx.sequence("ids")) == 3
    assert create(other, "next").oid == 5


def test_a_copy_of_a_copy_is_equal_byte_for_byte_but_for_its_uuid(
    store: Store, other: Store, tmp_path: Path
) -> None:
    fill(store)
    first = saved(store)
    other.restore(first)
    with Store.open(tmp_path / "third", TABLES) as third:
        third.restore(saved(other))
        assert rows(third) == rows(store)
        assert len(saved(third).getvalue()) == len(first.getvalue())


def test_over_other_content_it_becomes_updates_creates_and_deletes_with_events(
    store: Store, other: Store
) -> None:
    same, changed = create(store, "same"), create(store, "changed")
    other.restore(saved(store))
    store.update(lambda tx: tx.update(changed, Doc("new")))
    new = [create(store, name) for name in ("one", "two")]
    extra = other.update(lambda tx: tx.create(DOCS, SCOPE, "extra", Doc(), oid=40))
    before = other.revision
    with other.watch(None) as watch:
        assert other.restore(saved(store)) == Restored(before + 1, 2, 1, 1, verbatim=False)
        events = watch.take(10).events
    assert [(type(e), e.row.oid) for e in events if not isinstance(e, UpdateCommitted)] == [
        (RowUpdated, changed.oid),
        (RowCreated, new[0].oid),
        (RowCreated, new[1].oid),
        (RowDeleted, extra.oid),
    ]
    assert events[-1] == UpdateCommitted(before + 1)
    assert contents(other) == contents(store)
    with other.view() as tx:
        assert tx.by_oid(DOCS, same.oid) == same
        row = tx.by_oid(DOCS, changed.oid)
        assert row is not None
        assert (row.create_rev, row.mod_rev) == (changed.create_rev, before + 1)
        assert list(tx.events(before)) == events


def test_restoring_what_is_there_already_changes_nothing(store: Store) -> None:
    fill(store)
    revision = store.revision
    assert store.restore(saved(store)) == Restored(revision, 0, 0, 0, verbatim=False)
    assert store.revision == revision


def test_names_and_unique_values_may_be_exchanged(store: Store, other: Store) -> None:
    a, b = create(store, "a", Doc(slug="s")), create(store, "b", Doc(slug="t"))
    other.restore(saved(store))

    def exchange(tx: Any) -> None:
        tx.update(a, Doc(slug=""), name="c")
        tx.update(b, Doc(slug="s"), name="a")
        tx.update(a, Doc(slug="t"), name="b")

    store.update(exchange)
    assert other.restore(saved(store)).updated == 2
    assert contents(other) == contents(store)


def test_an_oid_may_be_of_another_table_there(store: Store, other: Store) -> None:
    create(store, "first")
    store.update(lambda tx: tx.create(NOTES, SCOPE, "n", Note(1)))
    create(other, "first")
    create(other, "second")
    restored = other.restore(saved(store))
    assert (restored.created, restored.deleted) == (1, 1)
    assert contents(other)[1] == contents(store)[1]


def test_counters_never_go_back(store: Store, other: Store) -> None:
    create(store, "a")
    for name in "abc":
        create(other, name)
        other.update(lambda tx: tx.sequence("ids"))
    other.restore(saved(store))
    assert create(other, "new").oid == 4
    assert other.update(lambda tx: tx.sequence("ids")) == 4


def test_one_table_is_restored_without_the_others(store: Store, other: Store) -> None:
    doc = create(store, "doc", Doc("old"))
    store.update(lambda tx: tx.create(NOTES, SCOPE, "note", Note(doc.oid)))
    stream = saved(store)
    store.update(lambda tx: tx.update(doc, Doc("new")))
    store.update(lambda tx: tx.create(NOTES, SCOPE, "later", Note(doc.oid)))
    assert store.restore(stream, [DOCS]).updated == 1
    with store.view() as tx:
        assert [row.body.text for row in tx.rows(DOCS, SCOPE)] == ["old"]
        assert [row.name for row in tx.rows(NOTES, SCOPE)] == ["later", "note"]
    stream.seek(0)
    with pytest.raises(NotFound, match="refers to row 1, which does not exist"):
        other.restore(stream, [NOTES])
    assert rows(other) == []


def test_one_table_cannot_take_rows_away_that_others_refer_to(store: Store) -> None:
    stream = saved(store)
    doc = create(store, "doc")
    store.update(lambda tx: tx.create(NOTES, SCOPE, "note", Note(doc.oid)))
    with pytest.raises(FailedPrecondition, match="in use by note 'note'"):
        store.restore(stream, [DOCS])
    assert len(rows(store)) == 2


def test_one_table_cannot_take_the_oids_of_another(store: Store, other: Store) -> None:
    create(store, "doc")
    create(other, "a")
    other.update(lambda tx: tx.create(NOTES, SCOPE, "n", Note(1)))
    create(store, "second")
    with pytest.raises(AlreadyExists, match="restore all tables together"):
        other.restore(saved(store), [DOCS])


def test_a_live_watch_of_a_new_store_learns_that_the_log_has_a_gap(
    store: Store, other: Store
) -> None:
    fill(store)
    with other.watch(0) as watch:
        other.restore(saved(store))
        with pytest.raises(Overflow) as caught:
            watch.take(10)
    with pytest.raises(Compacted):
        other.watch(caught.value.last_rev)
    with other.watch(None) as watch:
        row = create(other, "next")
        assert watch.take(10).events == [RowCreated(8, row), UpdateCommitted(8)]


def test_a_restore_grows_the_map(store: Store, tmp_path: Path) -> None:
    for number in range(50):
        create(store, f"{number}", Doc("x" * 20_000))
    with Store.open(tmp_path / "small", TABLES, map_size_bytes=1 << 18) as small:
        small.restore(saved(store))
        assert rows(small) == rows(store)
        assert small.check() == []


class Pipe(io.RawIOBase):
    """A source that cannot seek and gives a few bytes at a time."""

    def __init__(self, raw: bytes) -> None:
        self._source = io.BytesIO(raw)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._source.read(min(size, 7) if size > 0 else size)


def test_a_stream_may_come_through_a_pipe(store: Store, other: Store) -> None:
    fill(store)
    other.restore(Pipe(saved(store).getvalue()))  # type: ignore[arg-type]  # read is all it needs
    assert rows(other) == rows(store)


def test_a_reader_saves_beside_the_writer_while_it_writes(store: Store, other: Store) -> None:
    ends = threading.Event()

    def write() -> None:
        number = 0
        while not ends.is_set():
            number += 1
            store.batch([lambda tx: tx.create(DOCS, f"{number}", "a", Doc())])  # noqa: B023
            store.batch([lambda tx: tx.create(DOCS, f"{number}", "b", Doc())])  # noqa: B023

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while store.revision < 20:
            pass
        out = io.BytesIO()
        with ReadStore.open(store.path, TABLES) as reader:
            revision = reader.save(out)
    finally:
        ends.set()
        writer.join()
    out.seek(0)
    assert other.restore(out).created == revision


def refusals(raw: bytes) -> list[tuple[type[SnapfsError], bytes]]:
    return [
        (InvalidArgument, b""),
        (InvalidArgument, b"PK\x03\x04 something else"),
        (InvalidArgument, b"x" * 100),
        (FailedPrecondition, raw.replace(b"store 1\n", b"store 2\n", 1)),
        (DataLoss, raw.split(b"\n", maxsplit=1)[0] + b"\n"),
    ]


def test_what_is_not_a_whole_saved_store_is_refused_and_changes_nothing(
    store: Store, other: Store
) -> None:
    fill(store)
    raw = saved(store).getvalue()
    create(other, "kept")
    before = rows(other)
    for error, stream in refusals(raw):
        with pytest.raises(error):
            other.restore(io.BytesIO(stream))
    for end in range(len(raw)):
        with pytest.raises((DataLoss, InvalidArgument)):
            other.restore(io.BytesIO(raw[:end]))
    for place in range(0, len(raw), 3):
        flipped = bytearray(raw)
        flipped[place] ^= 1 << place % 8
        with pytest.raises((DataLoss, InvalidArgument, FailedPrecondition)):
            other.restore(io.BytesIO(bytes(flipped)))
    assert rows(other) == before


def test_rows_of_an_unknown_table_are_refused(store: Store, tmp_path: Path) -> None:
    fill(store)
    with Store.open(tmp_path / "fewer", [DOCS]) as fewer:
        with pytest.raises(FailedPrecondition, match="rows of table 2"):
            fewer.restore(saved(store))
        assert fewer.revision == 0


def test_a_copy_keeps_in_step_by_applying_changes(store: Store, other: Store) -> None:
    fill(store)
    other.restore(saved(store))
    row = create(store, "later", Doc(slug="x"))
    store.update(lambda tx: tx.update(row, Doc(slug="y"), name="renamed"))
    store.update(lambda tx: tx.expire_at(row.oid, 5))
    store.update(lambda tx: tx.put_intent(b"here"))
    store.batch([lambda tx, n=n: tx.create(DOCS, SCOPE, f"{n}", Doc()) for n in range(5)])  # type: ignore[misc]
    store.update(lambda tx: tx.delete(row))
    with other.watch(None) as watch:
        changes = list(store.proposer.changes_between(other.revision, store.revision))
        assert other.apply(changes) == store.revision
        seen = []
        while watch.revision < store.revision:
            seen += watch.take(10).events
    assert rows(other) == rows(store)
    with store.view() as here, other.view() as there:
        assert list(there.events(7)) == list(here.events(7)) == seen


def test_changes_out_of_step_are_refused(store: Store, other: Store) -> None:
    create(store, "a")
    changes = list(store.proposer.changes_between(0, 1))
    other.apply(changes)
    with pytest.raises(Conflict, match="revision 1 and the store is at 1"):
        other.apply(changes)
    create(store, "b")
    create(store, "c")
    with pytest.raises(Conflict, match="once and in order"):
        other.apply(store.proposer.changes_between(2, 3))
    other.apply(store.proposer.changes_between(1, 3))
    assert rows(other) == rows(store)


def test_a_change_that_finds_another_row_is_refused(store: Store, other: Store) -> None:
    create(store, "a", Doc("one"))
    other.apply(store.proposer.changes_between(0, 1))
    with store.view() as tx:
        row = tx.get(DOCS, SCOPE, "a")
    assert row is not None
    other.update(lambda tx: tx.update(row, Doc("mine")))
    store.update(lambda tx: tx.update(row, Doc("theirs")))
    store.update(lambda tx: tx.update(row, Doc("theirs again")))
    with pytest.raises(Conflict, match="not what the change found"):
        other.apply(store.proposer.changes_between(2, 3))
    assert [row.body.text for row in rows(other)] == ["mine"]


Step = tuple[str, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["create", "update", "rename", "delete"]),
        st.integers(0, 5),
        st.integers(0, 5),
    ),
    max_size=14,
)


@settings(max_examples=60, deadline=None)
@given(here=STEPS, there=STEPS, later=STEPS)
def test_any_store_becomes_any_other_and_keeps_in_step(
    tmp_path_factory: pytest.TempPathFactory,
    here: list[Step],
    there: list[Step],
    later: list[Step],
) -> None:
    root = tmp_path_factory.mktemp("s")
    with Store.open(root / "a", TABLES) as a, Store.open(root / "b", TABLES) as b:
        for store, steps in ((a, here), (b, there)):
            _take(store, steps)
        with Store.open(root / "copy", TABLES) as copy:
            copy.restore(saved(a))
            assert rows(copy) == rows(a)
            b.restore(saved(a))
            assert contents(b) == contents(a)
            revision = a.revision
            _take(a, later)
            copy.apply(a.proposer.changes_between(revision, a.revision))
            assert rows(copy) == rows(a)
            assert copy.check() == []
        assert b.check() == []


def _take(store: Store, steps: list[Step]) -> None:
    for what, name, other in steps:
        try:
            store.update(_step(what, f"{name}", f"{other}"))
        except (AlreadyExists, FailedPrecondition, AttributeError):
            continue


def _step(what: str, name: str, other: str) -> Callable[[Any], object]:
    def step(tx: Any) -> None:
        row, target = tx.get(DOCS, SCOPE, name), tx.get(DOCS, SCOPE, other)
        body = Doc(parent=target.oid if target else 0, slug=other, tags=(name, other))
        match what:
            case "create":
                tx.create(DOCS, SCOPE, name, body)
            case "update":
                tx.update(row, body)
            case "rename":
                tx.update(row, body, name=other)
            case _:
                tx.delete(row)

    return step
