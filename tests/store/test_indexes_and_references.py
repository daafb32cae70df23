"""What the core keeps for rows: indexes, edges, expiries; and the refusals that rest on them."""

from __future__ import annotations

import pytest

from snapfs.model import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from snapfs.store import EdgeTable, Store
from tests.store.kit import DOCS, FRIEND, NOTES, PARENT, SCOPE, Doc, Note


def tagged(store: Store, tag: str) -> list[str]:
    with store.view() as tx:
        return [row.name for row in tx.find(DOCS, "tag", tag.encode(), scope=SCOPE)]


def test_rows_are_found_by_each_of_their_values(store: Store) -> None:
    a = store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Doc(tags=("red", "blue"))))
    store.update(lambda tx: tx.create(DOCS, SCOPE, "b", Doc(tags=("red",))))
    store.update(lambda tx: tx.create(DOCS, "other", "c", Doc(tags=("red",))))
    assert tagged(store, "red") == ["a", "b"]
    assert tagged(store, "blue") == ["a"]
    store.update(lambda tx: tx.update(a, Doc(tags=("blue", "green"))))
    assert (tagged(store, "red"), tagged(store, "green")) == (["b"], ["a"])
    store.update(lambda tx: tx.delete(a))
    assert tagged(store, "green") == []


def test_values_with_zero_bytes_and_long_values_are_told_apart(store: Store) -> None:
    values = ["a", "a\0", "a\0\0", "a\0" * 9, "", "l" * 400, "l" * 401, "l" * 3000, "l" * 3001]
    for number, value in enumerate(values):
        store.update(lambda tx, n=number, v=value: tx.create(DOCS, SCOPE, str(n), Doc(tags=(v,))))
    for number, value in enumerate(values):
        assert tagged(store, value) == [str(number)]


def test_unknown_index_is_refused(store: Store) -> None:
    store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Doc()))
    with store.view() as tx, pytest.raises(InvalidArgument, match="no index 'colour'"):
        list(tx.find(DOCS, "colour", b"red", scope=SCOPE))


def test_unique_value_is_taken_once_in_a_scope(store: Store) -> None:
    a = store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Doc(slug="s")))
    b = store.update(lambda tx: tx.create(DOCS, SCOPE, "b", Doc(slug="t")))
    store.update(lambda tx: tx.create(DOCS, "other", "a", Doc(slug="s")))
    store.update(lambda tx: tx.update(a, Doc("changed", slug="s")))
    for change in (
        lambda tx: tx.create(DOCS, SCOPE, "c", Doc(slug="s")),
        lambda tx: tx.update(b, Doc(slug="s")),
    ):
        with pytest.raises(AlreadyExists, match="its slug b's' is taken by 'a'"):
            store.update(change)
    store.update(lambda tx: tx.update(a, Doc()))
    store.update(lambda tx: tx.update(b, Doc(slug="s")))


def test_referrers_are_known_from_both_ends(store: Store) -> None:
    base = store.update(lambda tx: tx.create(DOCS, SCOPE, "base", Doc()))
    children = [
        store.update(lambda tx, n=n: tx.create(DOCS, SCOPE, n, Doc(parent=base.oid))) for n in "ab"
    ]
    friend = store.update(lambda tx: tx.create(DOCS, SCOPE, "friend", Doc(friend=base.oid)))
    with store.view() as tx:
        assert list(tx.referrers(base.oid, PARENT)) == [row.oid for row in children]
        assert list(tx.referrers(base.oid, FRIEND)) == [friend.oid]
        assert list(tx.references(children[0].oid, PARENT)) == [base.oid]
        assert tx.has_referrers(base.oid)
        assert tx.has_referrers(base.oid, FRIEND)
        assert not tx.has_referrers(friend.oid)


def test_delete_refuses_a_row_with_strong_referrers_and_names_them(store: Store) -> None:
    base = store.update(lambda tx: tx.create(DOCS, SCOPE, "base", Doc()))
    doc = store.update(lambda tx: tx.create(DOCS, SCOPE, "child", Doc(parent=base.oid)))
    note = store.update(lambda tx: tx.create(NOTES, SCOPE, "n", Note(base.oid)))
    with pytest.raises(FailedPrecondition, match="'base' is in use by doc 'child', note 'n'"):
        store.update(lambda tx: tx.delete(base))
    store.update(lambda tx: tx.update(doc, Doc()))
    store.update(lambda tx: tx.delete(note))
    store.update(lambda tx: tx.delete(base))


def test_weak_reference_does_not_hold_its_target(store: Store) -> None:
    base = store.update(lambda tx: tx.create(DOCS, SCOPE, "base", Doc()))
    friend = store.update(lambda tx: tx.create(DOCS, SCOPE, "friend", Doc(friend=base.oid)))
    store.update(lambda tx: tx.delete(base))
    store.update(lambda tx: tx.update(friend, Doc("on its own")))


def test_strong_reference_needs_its_target(store: Store) -> None:
    with pytest.raises(NotFound, match="refers to row 77, which does not exist"):
        store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Doc(parent=77)))
    with pytest.raises(InvalidArgument, match="refers to row -1"):
        store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Doc(friend=-1)))


def test_row_that_refers_to_itself_can_be_deleted(store: Store) -> None:
    row = store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Doc()))
    row = store.update(lambda tx: tx.update(row, Doc(parent=row.oid)))
    store.update(lambda tx: tx.delete(row))


def test_expired_rows_are_listed_soonest_first(store: Store) -> None:
    rows = [store.update(lambda tx, n=n: tx.create(DOCS, SCOPE, n, Doc())) for n in "abc"]
    for row, time_ns in zip(rows, (300, 100, 200), strict=True):
        store.update(lambda tx, row=row, time_ns=time_ns: tx.expire_at(row.oid, time_ns))

    def expired(now_ns: int) -> list[int]:
        with store.view() as tx:
            return list(tx.expired(now_ns))

    assert expired(99) == []
    assert expired(200) == [rows[1].oid, rows[2].oid]
    store.update(lambda tx: tx.expire_at(rows[1].oid, None))
    store.update(lambda tx: tx.expire_at(rows[2].oid, 400))
    store.update(lambda tx: tx.update(rows[0], Doc("keeps its expiry")))
    assert expired(1000) == [rows[0].oid, rows[2].oid]
    store.update(lambda tx: tx.delete(rows[0]))
    assert expired(1000) == [rows[2].oid]


def test_bad_expiry_is_refused(store: Store) -> None:
    row = store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Doc()))
    with pytest.raises(InvalidArgument, match="not a time"):
        store.update(lambda tx: tx.expire_at(row.oid, -1))
    with pytest.raises(NotFound, match="row 99"):
        store.update(lambda tx: tx.expire_at(99, 1))


def test_a_table_of_edges_says_what_a_reader_of_edges_says(store: Store) -> None:
    def make(name: str, **doc: int) -> int:
        return store.update(lambda tx: tx.create(DOCS, SCOPE, name, Doc(**doc))).oid

    base = make("base")
    children = [make(f"child{number}", parent=base, friend=base) for number in range(3)]
    below = make("below", parent=children[1], friend=children[0])
    with store.view() as tx:
        edges = tx.edges()
        both = EdgeTable(edges.forward(), (FRIEND,), (PARENT,))
        friends = EdgeTable(edges.forward(), (FRIEND,), ())
        for oid in range(below + 2):
            assert list(both.out(oid)) == edges.out(oid)
            assert list(both.into(oid, PARENT)) == edges.into(oid, PARENT)
            assert list(friends.out(oid)) == [it for it in edges.out(oid) if it[0] == FRIEND]
