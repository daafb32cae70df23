"""A store of an older format is brought up at open; changed tables get their derived rows anew."""

from __future__ import annotations

from pathlib import Path

import lmdb
import msgspec
import pytest

from snapfs.model import AlreadyExists, DataLoss, FailedPrecondition, NotFound
from snapfs.store import Index, ReadStore, Reference, Store, Table, migrations, schema
from snapfs.store.schema import Sub
from tests.store.kit import DOCS, FRIEND, NOTES, PARENT, SCOPE, TABLES, Doc, Note

MIB = 1 << 20


def format_of(path: Path) -> int | None:
    with lmdb.open(str(path), max_dbs=9) as env, env.begin() as txn:
        sys = env.open_db(Sub.SYS.value, txn=txn)
        value = txn.get(schema.FORMAT_KEY, db=sys)
    return schema.parse_format(schema.unseal(Sub.SYS, schema.FORMAT_KEY, value))


def add_db(env: lmdb.Environment, txn: lmdb.Transaction) -> None:
    env.open_db(b"added", txn=txn)


def fill_db(env: lmdb.Environment, txn: lmdb.Transaction) -> None:
    db = env.open_db(b"added", txn=txn)
    for number in range(100):
        txn.put(schema.U64.pack(number), b"x" * 50_000, db=db)


def fail(env: lmdb.Environment, txn: lmdb.Transaction) -> None:
    raise ZeroDivisionError


def test_steps_run_in_order_and_the_map_grows_for_them(path: Path) -> None:
    Store.open(path, TABLES).close()
    migrations.run(path, 1, MIB, steps={1: add_db, 2: fill_db}, target=3)
    assert format_of(path) == 3
    with lmdb.open(str(path), max_dbs=10) as env, env.begin() as txn:
        assert txn.stat(env.open_db(b"added", txn=txn))["entries"] == 100


def test_failed_step_leaves_the_store_as_it_was(path: Path) -> None:
    Store.open(path, TABLES).close()
    with pytest.raises(ZeroDivisionError):
        migrations.run(path, 1, MIB, steps={1: add_db, 2: fail}, target=3)
    assert format_of(path) == 1
    with Store.open(path, TABLES) as store:
        assert store.check() == []


def test_store_older_than_every_step_is_refused(path: Path) -> None:
    Store.open(path, TABLES).close()
    with pytest.raises(FailedPrecondition, match="is of format 1, which this snapfs cannot bring"):
        migrations.run(path, 1, MIB, steps={2: add_db}, target=3)


def test_store_of_the_present_format_is_left_alone(path: Path) -> None:
    Store.open(path, TABLES).close()
    before = (path / "data.mdb").read_bytes()
    migrations.run(path, 1, MIB)
    Store.open(path, TABLES).close()
    assert (path / "data.mdb").read_bytes() == before


def reshaped(**changes: object) -> Table[Doc]:
    shape = {"indexes": DOCS.indexes, "references": DOCS.references} | changes
    return Table(1, "doc", Doc, **shape)  # type: ignore[arg-type]


TEXT = Index[Doc]("text", lambda doc: [doc.text.encode()])
UNIQUE_TEXT = Index[Doc]("text", lambda doc: [doc.text.encode()], unique=True)


def fill(path: Path, count: int = 150) -> int:
    with Store.open(path, TABLES) as store:
        base = store.update(lambda tx: tx.create(DOCS, SCOPE, "base", Doc("same")))

        def create(tx) -> None:
            for n in range(count):
                tags = ("t",) * (n % 2)
                tx.create(DOCS, SCOPE, str(n), Doc("same", base.oid, friend=base.oid, tags=tags))

        store.update(create)
    return base.oid


def test_new_index_has_the_old_rows(path: Path) -> None:
    fill(path)
    table = reshaped(indexes=(TEXT, *DOCS.indexes))
    with Store.open(path, [table, NOTES], map_size_bytes=MIB) as store:
        assert store.check() == []
        with store.view() as tx:
            assert len(list(tx.find(table, "text", b"same", scope=SCOPE))) == 151
            assert len(list(tx.find(table, "tag", b"t", scope=SCOPE))) == 75
    with Store.open(path, TABLES) as store:
        assert store.check() == []


def test_new_unique_index_that_the_rows_break_is_refused(path: Path) -> None:
    fill(path)
    with pytest.raises(AlreadyExists, match="its text b'same' is taken by"):
        Store.open(path, [reshaped(indexes=(UNIQUE_TEXT,)), NOTES])
    with Store.open(path, TABLES) as store:
        assert store.check() == []


def test_changed_references_are_made_anew(path: Path) -> None:
    base = fill(path)
    strong = Reference[Doc](FRIEND, lambda doc: [doc.friend] if doc.friend else [])
    table = reshaped(references=(strong,))
    with Store.open(path, [table, NOTES]) as store:
        assert store.check() == []
        with store.view() as tx:
            assert not tx.has_referrers(base, PARENT)
            assert len(list(tx.referrers(base, FRIEND))) == 150
        with pytest.raises(FailedPrecondition, match="in use by"):
            store.update(lambda tx: tx.delete(tx.by_oid(table, base)))


def test_new_strong_reference_to_nothing_is_refused(path: Path) -> None:
    with Store.open(path, TABLES) as store:
        base = store.update(lambda tx: tx.create(DOCS, SCOPE, "base", Doc()))
        store.update(lambda tx: tx.create(DOCS, SCOPE, "friend", Doc(friend=base.oid)))
        store.update(lambda tx: tx.delete(base))
    strong = Reference[Doc](FRIEND, lambda doc: [doc.friend] if doc.friend else [])
    with pytest.raises(NotFound, match="'friend' refers to row 1"):
        Store.open(path, [reshaped(references=(strong,)), NOTES])


def test_rows_of_an_unknown_table_refuse_a_writer_and_not_a_reader(path: Path) -> None:
    base = fill(path, 1)
    Store.open(path, [DOCS]).close()  # there is no note yet
    with Store.open(path, TABLES) as store:
        store.update(lambda tx: tx.create(NOTES, SCOPE, "n", Note(base)))
    with pytest.raises(FailedPrecondition, match=r"rows of table note \(2\), which this program"):
        Store.open(path, [DOCS])
    with ReadStore.open(path, [DOCS]) as store:
        assert store.check() == []


def test_rows_that_do_not_decode_any_more_refuse_the_reshaping(path: Path) -> None:
    class Other(msgspec.Struct, frozen=True):
        text: int

    fill(path, 1)
    other = Table(1, "doc", Other, indexes=(Index("text", lambda o: [bytes([o.text])]),))
    with pytest.raises(DataLoss, match="of table doc does not decode"):
        Store.open(path, [other, NOTES])
