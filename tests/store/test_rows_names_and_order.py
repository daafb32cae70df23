"""Creating, reading, changing, renaming and deleting rows; names of every length."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapfs.model import (
    AlreadyExists,
    Conflict,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from snapfs.store import Store
from tests.store.kit import DOCS, NOTES, SCOPE, TABLES, Doc, Note


def names_of(store: Store, prefix: str = "", after: str | None = None) -> list[str]:
    with store.view() as tx:
        return [row.name for row in tx.rows(DOCS, SCOPE, prefix=prefix, after=after)]


def test_created_row_is_read_back_by_name_and_by_oid(store: Store) -> None:
    row = store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Doc("one")))
    with store.view() as tx:
        assert tx.get(DOCS, SCOPE, "a") == row
        assert tx.by_oid(DOCS, row.oid) == row
    assert (row.oid, row.name, row.scope, row.body) == (1, "a", SCOPE, Doc("one"))
    assert row.create_rev == row.mod_rev == row.spec_rev == store.revision == 1


def test_what_is_not_there_is_none(store: Store) -> None:
    row = store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Doc()))
    with store.view() as tx:
        assert tx.get(DOCS, SCOPE, "b") is None
        assert tx.get(DOCS, "elsewhere", "a") is None
        assert tx.get(NOTES, SCOPE, "a") is None
        assert tx.get(DOCS, SCOPE, "") is None
        assert tx.by_oid(NOTES, row.oid) is None
        assert tx.by_oid(DOCS, -1) is None
        assert tx.by_oid(DOCS, 2**64) is None
        assert list(tx.rows(DOCS, "elsewhere")) == []
        assert list(tx.find(DOCS, "tag", b"x", scope="elsewhere")) == []


def test_empty_store_has_nothing_and_no_fault(store: Store) -> None:
    with store.view() as tx:
        assert list(tx.rows(DOCS, SCOPE)) == []
        assert list(tx.intents()) == []
        assert list(tx.events(0)) == []
        assert tx.revision == 0


def test_name_is_free_in_other_scopes_and_tables_only(store: Store) -> None:
    row = store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Doc()))
    store.update(lambda tx: tx.create(DOCS, "other", "a", Doc()))
    store.update(lambda tx: tx.create(NOTES, SCOPE, "a", Note(row.oid)))
    with pytest.raises(AlreadyExists, match="doc 'a' already exists"):
        store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Doc()))


def test_update_changes_the_body_and_the_revisions_it_says(store: Store) -> None:
    row = store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Doc("one")))
    spec = store.update(lambda tx: tx.update(row, Doc("two")))
    status = store.update(lambda tx: tx.update(spec, Doc("three"), spec=False))
    assert (spec.create_rev, spec.mod_rev, spec.spec_rev) == (1, 2, 2)
    assert (status.create_rev, status.mod_rev, status.spec_rev) == (1, 3, 2)
    with store.view() as tx:
        assert tx.get(DOCS, SCOPE, "a") == status


def test_times_come_from_the_clock_unless_created_is_given(path: Path) -> None:
    times = iter(range(100, 1000))
    with Store.open(path, TABLES, clock_ns=lambda: next(times)) as store:
        row = store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Doc()))
        changed = store.update(lambda tx: tx.update(row, Doc("x")))
        given_time = store.update(lambda tx: tx.update(row, Doc("y"), created_ns=5))
        other = store.update(lambda tx: tx.create(DOCS, SCOPE, "b", Doc(), created_ns=6))
    assert row.created_ns == row.updated_ns
    assert (changed.created_ns, changed.updated_ns > row.updated_ns) == (row.created_ns, True)
    assert given_time.created_ns == 5
    assert other.created_ns == 6
    assert other.updated_ns > given_time.updated_ns


def test_update_against_a_stale_revision_conflicts(store: Store) -> None:
    row = store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Doc("one")))
    store.update(lambda tx: tx.update(row, Doc("two"), expect_mod_rev=row.mod_rev))
    with pytest.raises(Conflict, match="at revision 2, not at 1") as refusal:
        store.update(lambda tx: tx.update(row, Doc("three"), expect_mod_rev=row.mod_rev))
    assert (refusal.value.expected, refusal.value.actual) == (1, 2)


def test_rename_keeps_the_oid_and_frees_the_old_name(store: Store) -> None:
    row = store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Doc("one")))
    store.update(lambda tx: tx.create(DOCS, SCOPE, "taken", Doc()))
    moved = store.update(lambda tx: tx.update(row, row.body, name="b"))
    assert (moved.oid, moved.name) == (row.oid, "b")
    with pytest.raises(AlreadyExists, match="'taken'"):
        store.update(lambda tx: tx.update(moved, moved.body, name="taken"))
    assert names_of(store) == ["b", "taken"]
    store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Doc()))


def test_names_can_be_swapped_within_an_update(store: Store) -> None:
    a = store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Doc("was a")))
    b = store.update(lambda tx: tx.create(DOCS, SCOPE, "b", Doc("was b")))

    def swap(tx) -> None:
        tx.update(a, a.body, name="tmp")
        tx.update(b, b.body, name="a")
        tx.update(a, a.body, name="b")

    store.update(swap)
    with store.view() as tx:
        assert tx.get(DOCS, SCOPE, "a").body == Doc("was b")
        assert tx.get(DOCS, SCOPE, "b").oid == a.oid


def test_deleted_row_is_gone_and_its_oid_is_not_used_again(store: Store) -> None:
    row = store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Doc("x", tags=("t",), slug="s")))
    store.update(lambda tx: tx.delete(row))
    with store.view() as tx:
        assert tx.get(DOCS, SCOPE, "a") is None
        assert tx.by_oid(DOCS, row.oid) is None
    for change in (lambda tx: tx.delete(row), lambda tx: tx.update(row, Doc())):
        with pytest.raises(NotFound, match="'a' does not exist any more"):
            store.update(change)
    again = store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Doc("x", slug="s")))
    assert again.oid == row.oid + 1


def test_oid_can_be_given_once(store: Store) -> None:
    store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Doc(), oid=40))
    assert store.update(lambda tx: tx.create(DOCS, SCOPE, "b", Doc())).oid == 41
    with pytest.raises(AlreadyExists, match="row 40"):
        store.update(lambda tx: tx.create(DOCS, SCOPE, "c", Doc(), oid=40))
    with pytest.raises(InvalidArgument):
        store.update(lambda tx: tx.create(DOCS, SCOPE, "c", Doc(), oid=0))


@pytest.mark.parametrize(
    "name", ["", "x" * (32 * 1024 + 1), "lone \udc80 surrogate"], ids=["empty", "long", "not utf-8"]
)
def test_bad_name_is_refused(store: Store, name: str) -> None:
    row = store.update(lambda tx: tx.create(DOCS, SCOPE, "good", Doc()))
    with pytest.raises(InvalidArgument, match="doc name"):
        store.update(lambda tx: tx.create(DOCS, SCOPE, name, Doc()))
    if name:
        with pytest.raises(InvalidArgument, match="doc name"):
            store.update(lambda tx: tx.update(row, Doc(), name=name))


def test_bad_body_is_refused(store: Store) -> None:
    row = store.update(lambda tx: tx.create(DOCS, SCOPE, "good", Doc()))
    with pytest.raises(InvalidArgument, match="may not be evil"):
        store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Doc("evil")))
    with pytest.raises(InvalidArgument, match="may not be evil"):
        store.update(lambda tx: tx.update(row, Doc("evil")))
    with pytest.raises(InvalidArgument, match="a doc has a Doc, not a Note"):
        store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Note(1)))  # type: ignore[arg-type]


def test_scope_longer_than_the_limit_is_refused(store: Store) -> None:
    store.update(lambda tx: tx.create(DOCS, "s" * 255, "a", Doc()))
    with pytest.raises(InvalidArgument, match="256 bytes"):
        store.update(lambda tx: tx.create(DOCS, "s" * 256, "a", Doc()))


def test_name_of_32_kib_works_and_is_told_from_its_neighbours(store: Store) -> None:
    longest = "n" * (32 * 1024)
    for name in (longest, longest[:-1], longest[:-1] + "m", longest[:400], longest[:401]):
        store.update(lambda tx, name=name: tx.create(DOCS, SCOPE, name, Doc(name[-1])))
    with store.view() as tx:
        assert tx.get(DOCS, SCOPE, longest).body == Doc("n")
        assert tx.get(DOCS, SCOPE, longest[:-1] + "m").body == Doc("m")
        assert tx.get(DOCS, SCOPE, longest[:-2]) is None
    with pytest.raises(AlreadyExists):
        store.update(lambda tx: tx.create(DOCS, SCOPE, longest, Doc()))


def test_rows_come_in_order_of_their_names_bytes(store: Store) -> None:
    names = ["b", "a", "ab", "a\0", "é", "z", "a/b", "a" * 400, "a" * 399, "Z", "\U0001f600"]
    store.update(lambda tx: [tx.create(DOCS, SCOPE, name, Doc()) for name in names])
    assert names_of(store) == sorted(names, key=str.encode)


def test_rows_begin_with_the_prefix_and_after_the_name(store: Store) -> None:
    names = [f"{letter}{number:03}" for letter in "abc" for number in range(200)]
    store.update(lambda tx: [tx.create(DOCS, SCOPE, name, Doc()) for name in names])
    assert names_of(store, prefix="b") == names[200:400]
    assert names_of(store, prefix="b", after="b100") == names[301:400]
    assert names_of(store, prefix="b", after="a100") == names[200:400]
    assert names_of(store, prefix="b", after="c") == []
    assert names_of(store, after="b0505") == names[251:]
    assert names_of(store, prefix="d") == []


def test_prefix_and_after_work_among_names_over_400_bytes(store: Store) -> None:
    head = "h" * 450
    names = {head + str(number) for number in range(150)}
    store.update(lambda tx: [tx.create(DOCS, SCOPE, name, Doc()) for name in sorted(names)])
    listed = names_of(store)
    assert set(listed) == names
    assert names_of(store, after=listed[70]) == listed[71:]
    assert set(names_of(store, prefix=head + "14")) == {n for n in names if n[450:452] == "14"}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.sets(
        st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1, max_size=6)
        | st.integers(395, 405).map(lambda length: "q" * length),
        max_size=12,
    ),
    data=st.data(),
)
def test_paging_sees_each_row_once(store: Store, names: set[str], data: st.DataObject) -> None:
    scope = f"scope {store.revision}"
    store.update(lambda tx: [tx.create(DOCS, scope, name, Doc()) for name in names])
    seen: list[str] = []
    size = data.draw(st.integers(1, 4))
    while True:
        with store.view() as tx:
            rows = tx.rows(DOCS, scope, after=seen[-1] if seen else None)
            page = [row.name for row, _ in zip(rows, range(size), strict=False)]
        seen += page
        if len(page) < size:
            break
    assert len(seen) == len(names)
    assert set(seen) == names
    short = [name for name in seen if len(name.encode()) <= 400]
    assert short == sorted(short, key=str.encode)


def test_rows_may_be_deleted_while_they_are_walked(store: Store) -> None:
    store.update(lambda tx: [tx.create(DOCS, SCOPE, f"{n:03}", Doc()) for n in range(200)])

    def purge(tx) -> int:
        count = 0
        for row in tx.rows(DOCS, SCOPE):
            tx.delete(row)
            count += 1
        return count

    assert store.update(purge) == 200
    assert names_of(store) == []


def test_update_on_a_row_of_an_unknown_table_is_refused(store: Store) -> None:
    row = store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Doc()))
    stranger = msgspec.structs.replace(row, table=99)
    with pytest.raises(InvalidArgument, match="not given to"):
        store.update(lambda tx: tx.delete(stranger))


def test_transaction_is_useless_after_its_end(store: Store) -> None:
    kept = []
    store.update(kept.append)
    with store.view() as tx:
        kept.append(tx)
    for tx in kept:
        with pytest.raises(Exception, match="used after its end"):
            tx.get(DOCS, SCOPE, "a")


def test_failed_operation_leaves_its_transaction_as_it_was(store: Store) -> None:
    first = store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Doc(slug="taken")))

    def careless(tx) -> None:
        for body in (Doc(slug="taken"), Doc(parent=99)):
            with pytest.raises((AlreadyExists, NotFound)):
                tx.create(DOCS, SCOPE, "b", body)
            other = tx.get(DOCS, SCOPE, "c") or tx.create(DOCS, SCOPE, "c", Doc())
            with pytest.raises((AlreadyExists, NotFound)):
                tx.update(other, body)
        tx.create(NOTES, SCOPE, "n", Note(first.oid))
        with pytest.raises(FailedPrecondition):
            tx.delete(first)

    store.update(careless)
    assert names_of(store) == ["a", "c"]
