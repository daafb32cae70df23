"""A disk that fails ends the updates and says so; figures tell how the store is."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import lmdb
import pytest

from snapfs.model import DataLoss, Unavailable
from snapfs.store import Stats, Store
from snapfs.store.environment import Environment, Txn
from tests.store.kit import DOCS, SCOPE, TABLES, Doc


class FailingTxn:
    """LMDB's write transaction as it is when the disk refuses its fsync."""

    def __init__(self, txn: Txn) -> None:
        self.txn = txn

    def commit(self) -> None:
        self.txn.abort()
        error = lmdb.Error("mdb_txn_commit: Input/output error")
        error.code = errno.EIO  # type: ignore[misc]
        raise error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.txn, name)


@pytest.mark.logs("store.broken")
def test_failed_fsync_ends_the_updates_until_the_store_is_opened_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begin_write, begin_child = Environment.begin_write, Environment.begin_child
    with Store.open(path, TABLES) as store:
        store.update(lambda tx: tx.create(DOCS, SCOPE, "kept", Doc()))
        with monkeypatch.context() as patch:
            patch.setattr(Environment, "begin_write", lambda self: FailingTxn(begin_write(self)))
            patch.setattr(
                Environment, "begin_child", lambda self, parent: begin_child(self, parent.txn)
            )
            patch.setattr("snapfs.store.retention.trim", lambda *_: None)
            with pytest.raises(DataLoss, match=f"the disk under the store {path} fails"):
                store.update(lambda tx: tx.create(DOCS, SCOPE, "lost", Doc()))
        with pytest.raises(Unavailable, match="takes no updates since a write failed"):
            store.update(lambda tx: tx.create(DOCS, SCOPE, "later", Doc()))
        with store.view() as tx:
            assert [row.name for row in tx.rows(DOCS, SCOPE)] == ["kept"]
    assert "store.broken" in caplog.text
    with Store.open(path, TABLES) as store:
        store.update(lambda tx: tx.create(DOCS, SCOPE, "later", Doc()))
        assert store.check() == []


def test_damage_that_the_core_meets_fails_the_update_and_not_the_writer(path: Path) -> None:
    with Store.open(path, TABLES) as store:
        for _ in range(20):
            store.update(lambda tx: tx.sequence("x"))
    with lmdb.open(str(path), max_dbs=9) as env, env.begin(write=True) as txn:
        txn.put(b"\0", b"", db=env.open_db(b"log", txn=txn))
    with Store.open(path, TABLES, keep_revisions=5) as store:
        for _ in range(2):
            with pytest.raises(DataLoss, match="is not 12 bytes long"):
                store.update(lambda tx: tx.sequence("x"))
        assert store.revision == 20


def test_stats_count_what_there_is(path: Path) -> None:
    with Store.open(path, TABLES, map_size_bytes=1 << 21) as store:
        row = store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Doc()))
        store.update(lambda tx: tx.create(DOCS, SCOPE, "b", Doc()))
        store.update(lambda tx: tx.put_intent(b""))
        store.update(lambda tx: tx.delete(row))
        with store.view():
            stats = store.stats()
        assert stats == Stats(
            revision=4,
            compacted_revision=0,
            rows=1,
            intents=1,
            events=7,
            map_size_bytes=1 << 21,
            file_size_bytes=stats.file_size_bytes,
            readers=stats.readers,
        )
        assert 0 < stats.file_size_bytes < 1 << 21
        assert stats.readers >= 2
