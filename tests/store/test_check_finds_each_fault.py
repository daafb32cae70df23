"""check() reports every broken invariant of the schema page, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lmdb
import msgspec
import pytest

from snapfs.model import DataLoss
from snapfs.store import Problem, ReadStore, Store, checking, schema, tables
from snapfs.store.schema import Sub
from tests.store.kit import DOCS, FRIEND, PARENT, SCOPE, TABLES, Doc


class Raw:
    """The sub-databases of a closed store, to break them by hand."""

    def __init__(self, txn: lmdb.Transaction, env: lmdb.Environment) -> None:
        self._txn = txn
        self._dbs = {sub: env.open_db(sub.value, txn=txn) for sub in Sub}

    def get(self, sub: Sub, key: bytes) -> bytes:
        return self._txn.get(key, db=self._dbs[sub])

    def put(self, sub: Sub, key: bytes, value: bytes = b"") -> None:
        self._txn.put(key, value, db=self._dbs[sub])

    def delete(self, sub: Sub, key: bytes) -> None:
        assert self._txn.delete(key, db=self._dbs[sub])

    def seal(self, sub: Sub, key: bytes, payload: bytes) -> None:
        self.put(sub, key, schema.seal(key, payload))


BASE, CHILD, LATE = 1, 2, 3


def make(path: Path) -> None:
    """A base row, a child with everything that a row can have, and one that was made last."""
    with Store.open(path, TABLES) as store:
        store.update(lambda tx: tx.create(DOCS, SCOPE, "base", Doc()))
        body = Doc("text", parent=BASE, friend=BASE, tags=("t",), slug="s")
        store.update(lambda tx: tx.create(DOCS, SCOPE, "child", body))
        store.update(lambda tx: tx.expire_at(CHILD, 50))
        store.update(lambda tx: tx.put_intent(b"payload"))
        store.update(lambda tx: tx.create(DOCS, SCOPE, "late", Doc()))


def oid(number: int) -> bytes:
    return schema.U64.pack(number)


def flip(raw: Raw, sub: Sub, key: bytes) -> None:
    value = raw.get(sub, key)
    raw.put(sub, key, value[:-1] + bytes([value[-1] ^ 1]))


def row(raw: Raw, number: int, **changes: object) -> None:
    """Write a row anew, changed, with a right checksum."""
    _, packed = tables.decode_tag(number, raw.get(Sub.ROW, oid(number)))
    new = msgspec.structs.replace(tables.decode_row(DOCS, number, packed), **changes)
    raw.put(Sub.ROW, oid(number), DOCS.encode(new))


edge, name, tag = schema.edge_key, schema.name_key, schema.index_key

FAULTS: dict[str, tuple[Callable[[Raw], None], str, str]] = {
    "row's bits": (lambda r: flip(r, Sub.ROW, oid(LATE)), "row", "checksum"),
    "row elsewhere": (lambda r: r.put(Sub.ROW, oid(9), r.get(Sub.ROW, oid(1))), "row", "checksum"),
    "row's oid": (
        lambda r: r.seal(Sub.ROW, oid(LATE), r.get(Sub.ROW, oid(BASE))[4:]),
        "row",
        "says it is row 1",
    ),
    "revisions": (lambda r: row(r, LATE, mod_rev=99), "row", "out of order"),
    "oid counter": (
        lambda r: r.seal(Sub.SYS, schema.OID_KEY, oid(2)),
        "row",
        "its oid was never given",
    ),
    "scope": (lambda r: row(r, LATE, scope="lost"), "row", "'lost' has no number"),
    "name missing": (lambda r: r.delete(Sub.NAME, name(1, 1, b"late")), "row", "by its name"),
    "name of another": (
        lambda r: r.put(Sub.NAME, name(1, 1, b"other"), oid(LATE)),
        "name",
        "another name",
    ),
    "name of nothing": (
        lambda r: r.put(Sub.NAME, name(1, 1, b"x"), oid(9)),
        "name",
        "row 9, which",
    ),
    "index missing": (lambda r: r.delete(Sub.IDX, tag(1, 0, 1, b"t", 2)), "row", "index tag"),
    "index wrong": (lambda r: r.put(Sub.IDX, tag(1, 0, 1, b"u", 2)), "idx", "no such value"),
    "index of nothing": (lambda r: r.put(Sub.IDX, tag(1, 0, 1, b"t", 9)), "idx", "row 9, which"),
    "unique twice": (
        lambda r: (
            row(r, LATE, body=Doc(slug="s")),
            r.put(Sub.IDX, tag(1, 1, 1, b"s", LATE)),
        ),
        "idx",
        "a unique value has two rows",
    ),
    "edge missing": (lambda r: r.delete(Sub.EDGE, edge(0, 2, PARENT, 1)), "row", "edge of kind 1"),
    "edge one-sided": (lambda r: r.delete(Sub.EDGE, edge(1, 1, FRIEND, 2)), "edge", "direction"),
    "edge wrong": (
        lambda r: (
            r.put(Sub.EDGE, edge(0, 3, FRIEND, 1), schema.WEAK),
            r.put(Sub.EDGE, edge(1, 1, FRIEND, 3), schema.WEAK),
        ),
        "edge",
        "does not refer so",
    ),
    "edge of nothing": (
        lambda r: r.put(Sub.EDGE, edge(0, 9, PARENT, 1), schema.STRONG),
        "edge",
        "row 9, which does not exist",
    ),
    "target missing": (lambda r: r.delete(Sub.ROW, oid(BASE)), "row", "refers to row 1, which"),
    "event missing": (lambda r: r.delete(Sub.LOG, schema.log_key(2, 0)), "log", "(2, 0) should be"),
    "last event missing": (lambda r: r.delete(Sub.LOG, schema.log_key(5, 1)), "log", "ends before"),
    "event's bits": (lambda r: flip(r, Sub.LOG, schema.log_key(2, 0)), "log", "checksum"),
    "expiry missing": (lambda r: r.delete(Sub.EXP, schema.expiry_key(50, 2)), "row", "its expiry"),
    "expiry wrong": (lambda r: r.put(Sub.EXP, schema.expiry_key(51, 2)), "exp", "another time"),
    "expiry of nothing": (
        lambda r: r.put(Sub.EXP, schema.expiry_key(50, 9)),
        "exp",
        "row 9, which",
    ),
    "intent's bits": (lambda r: flip(r, Sub.INTENT, oid(1)), "intent", "checksum"),
    "intent counter": (
        lambda r: r.seal(Sub.INTENT, oid(7), b"p"),
        "intent",
        "its number was never given",
    ),
    "counter's bits": (lambda r: flip(r, Sub.SYS, schema.sequence_key("x")), "sys", "checksum"),
    "scope number": (
        lambda r: r.seal(Sub.SYS, schema.scope_key("other"), schema.U32.pack(1)),
        "sys",
        "used twice",
    ),
    "compacted": (
        lambda r: r.seal(Sub.SYS, schema.COMPACTED_KEY, oid(99)),
        "sys",
        "above the revision",
    ),
    "history": (lambda r: r.put(Sub.HIST, b"k", b"v"), "hist", "no history"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_found(path: Path, fault: str) -> None:
    make(path)
    break_it, where, what = FAULTS[fault]
    with lmdb.open(str(path), max_dbs=len(Sub)) as env, env.begin(write=True) as txn:
        raw = Raw(txn, env)
        raw.seal(Sub.SYS, schema.sequence_key("x"), oid(1))
        break_it(raw)
    with ReadStore.open(path, TABLES) as store:
        problems = store.check()
        assert any(p.where == where and what in p.what for p in problems), problems


def test_sound_store_has_no_problem(path: Path) -> None:
    make(path)
    with Store.open(path, TABLES) as store:
        assert store.check() == []


def test_list_of_problems_has_an_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "MAX_PROBLEMS", 3)
    make(path)
    with lmdb.open(str(path), max_dbs=len(Sub)) as env, env.begin(write=True) as txn:
        raw = Raw(txn, env)
        for number in range(50):
            raw.put(Sub.HIST, oid(number))
    with ReadStore.open(path, TABLES) as store:
        assert len(store.check()) == 3


def test_damaged_pages_are_a_problem_of_the_file(path: Path) -> None:
    make(path)
    data = path / "data.mdb"
    content = bytearray(data.read_bytes())
    for page in range(2, len(content) // 4096):
        content[4096 * page + 10] ^= 0xFF
    data.write_bytes(content)
    problems = checking.check_pages(path)
    assert problems
    assert all(isinstance(p, Problem) and p.where == "pages" for p in problems)
    data.write_bytes(b"")
    assert "data.mdb is damaged" in checking.check_pages(path)[0].what


def test_row_with_flipped_bits_is_not_read(path: Path) -> None:
    make(path)
    with lmdb.open(str(path), max_dbs=len(Sub)) as env, env.begin(write=True) as txn:
        flip(Raw(txn, env), Sub.ROW, oid(LATE))
    with Store.open(path, TABLES) as store, store.view() as tx:
        for read in (
            lambda: tx.get(DOCS, SCOPE, "late"),
            lambda: tx.by_oid(DOCS, LATE),
            lambda: list(tx.rows(DOCS, SCOPE)),
        ):
            with pytest.raises(DataLoss, match="checksum"):
                read()
        assert tx.get(DOCS, SCOPE, "base") is not None


def test_name_that_leads_elsewhere_is_not_followed(path: Path) -> None:
    make(path)
    with lmdb.open(str(path), max_dbs=len(Sub)) as env, env.begin(write=True) as txn:
        raw = Raw(txn, env)
        raw.put(Sub.NAME, name(1, 1, b"late"), oid(BASE))
        raw.put(Sub.NAME, name(1, 1, b"child"), oid(77))
    with Store.open(path, TABLES) as store, store.view() as tx:
        with pytest.raises(DataLoss, match="'late' leads to row 1, which is 'base'"):
            tx.get(DOCS, SCOPE, "late")
        with pytest.raises(DataLoss, match="'child' has no row 77"):
            tx.get(DOCS, SCOPE, "child")
        with pytest.raises(DataLoss, match="leads to row 77, which is another"):
            list(tx.rows(DOCS, SCOPE))
