"""Readers beside a writer: never waiting, always consistent, following its growth."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from snapfs.model import DataLoss, FailedPrecondition, Unavailable
from snapfs.store import ReadStore, Store, environment, writer
from tests.store.kit import DOCS, NOTES, SCOPE, TABLES, Doc, child


def test_reader_sees_each_commit_and_follows_the_map(path: Path) -> None:
    with Store.open(path, TABLES, map_size_bytes=1 << 20) as store:
        with child("read", str(path)) as reader:
            assert reader.stdin is not None
            assert reader.stdout is not None
            for number in range(12):
                store.update(
                    lambda tx, n=number: tx.create(DOCS, SCOPE, str(n), Doc("x" * 400_000))
                )
                print("look", file=reader.stdin, flush=True)
                assert reader.stdout.readline() == f"{number + 1} {number + 1}\n"
            reader.stdin.close()
            assert reader.wait(20) == 0
        assert store.stats().map_size_bytes > 4 << 20


def test_reader_is_consistent_while_another_process_writes(path: Path) -> None:
    Store.open(path, TABLES).close()
    with child("write", str(path)) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdout.readline()
        with ReadStore.open(path, TABLES) as reader:
            revision = 0
            while revision < 300:
                with reader.view() as tx:
                    assert tx.revision >= revision
                    revision = tx.revision
                    rows = list(tx.rows(DOCS, SCOPE))
                    assert len(rows) == revision
                    assert all(tx.get(DOCS, SCOPE, row.name) == row for row in rows[::10])
            assert reader.check() == []
        other.stdin.close()
        other.stdout.close()
        other.wait(20)


def test_reader_works_without_a_writer(path: Path) -> None:
    with Store.open(path, TABLES) as store:
        row = store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Doc()))
    with ReadStore.open(path, TABLES) as reader, reader.view() as tx:
        assert tx.get(DOCS, SCOPE, "a") == row
        assert not hasattr(tx, "create")


def test_reader_may_know_fewer_tables(path: Path) -> None:
    with Store.open(path, TABLES) as store:
        store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Doc()))
    with ReadStore.open(path, [NOTES]) as reader:
        assert reader.check() == []
        with reader.view() as tx:
            assert tx.by_oid(NOTES, 1) is None
            assert len(list(tx.events(0))) == 1


def test_reader_of_nothing_is_told_to_wait_and_makes_nothing(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(Unavailable, match=f"no store in {path} yet"):
            ReadStore.open(path, TABLES)
    assert list(tmp_path.iterdir()) == []


def test_reader_refuses_a_strangers_directory(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").touch()
    with pytest.raises(FailedPrecondition, match=r"holds other files \(letter.txt\)"):
        ReadStore.open(tmp_path, TABLES)


def test_reader_refuses_a_damaged_file(path: Path) -> None:
    Store.open(path, TABLES).close()
    data = path / "data.mdb"
    data.write_bytes(data.read_bytes()[:9000])
    with pytest.raises(DataLoss, match=str(data)):
        ReadStore.open(path, TABLES)


def test_readers_in_the_writers_process_share_its_map(path: Path) -> None:
    with Store.open(path, TABLES) as store:
        first, second = ReadStore.open(path, TABLES), ReadStore.open(path, TABLES)
        store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Doc()))
        first.close()
        first.close()
        with second.view() as tx:
            assert tx.get(DOCS, SCOPE, "a") is not None
    with second.view() as tx:
        assert tx.get(DOCS, SCOPE, "a") is not None
    with pytest.raises(FailedPrecondition, match="open for reading in this process"):
        Store.open(path, TABLES)
    second.close()
    assert environment._open_here == {}
    Store.open(path, TABLES).close()


def test_reader_makes_no_second_table_beside_a_writer(path: Path) -> None:
    table = path / "lock.mdb"
    with Store.open(path, TABLES) as store:
        store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Doc()))
        table.unlink()
        refused = child("read", str(path), stderr=subprocess.PIPE)
        _, said = refused.communicate("", timeout=20)
        assert "FailedPrecondition" in said
        assert "its reader table" in said
        assert not table.exists()
        store.update(lambda tx: tx.create(DOCS, SCOPE, "b", Doc()))
    with ReadStore.open(path, TABLES) as reader, reader.view() as tx:
        assert [row.name for row in tx.rows(DOCS, SCOPE)] == ["a", "b"]


@pytest.mark.logs("store.second_reader_table")
def test_writer_ends_its_updates_when_readers_have_another_table(path: Path) -> None:
    """Else it would use pages again that they read, as it cannot find them in its own."""
    table = path / "lock.mdb"
    with Store.open(path, TABLES) as store:
        store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Doc("x" * 1000)))
        table.unlink()
        table.touch()
        with child("read", str(path)) as reader:
            assert reader.stdin is not None
            assert reader.stdout is not None
            for _ in range(3):
                with pytest.raises(Unavailable, match="its reader table was replaced"):
                    store.update(lambda tx: tx.create(DOCS, SCOPE, "b", Doc()))
                print("look", file=reader.stdin, flush=True)
                assert reader.stdout.readline() == "1 1\n"
            reader.stdin.close()
            assert reader.wait(20) == 0
        with store.view() as tx:
            assert tx.get(DOCS, SCOPE, "b") is None
    with Store.open(path, TABLES) as store:
        store.update(lambda tx: tx.create(DOCS, SCOPE, "b", Doc()))


def test_slots_of_dead_readers_are_freed_at_open(path: Path) -> None:
    with Store.open(path, TABLES) as store:
        with child("stay", str(path)) as reader:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "0\n"
            reader.kill()
        assert store._environment.clear_stale_readers() == 1
        with child("stay", str(path)) as reader:
            assert reader.stdout is not None
            reader.stdout.readline()
            reader.kill()
    with Store.open(path, TABLES) as store:
        store.update(lambda tx: tx.sequence("x"))  # the writer thread is past its first look
        assert store._environment.clear_stale_readers() == 0


@pytest.mark.parametrize("is_busy", [False, True])
def test_slots_of_dead_readers_are_freed_whether_or_not_the_writer_is_idle(
    path: Path, monkeypatch: pytest.MonkeyPatch, is_busy: bool
) -> None:
    cleared = threading.Event()
    clear = environment.Environment.clear_stale_readers

    def watched(self: environment.Environment) -> int:
        count = clear(self)
        if count:
            cleared.set()
        return count

    monkeypatch.setattr(writer, "READER_CHECK_S", 0.5 if is_busy else 0.02)
    monkeypatch.setattr(environment.Environment, "clear_stale_readers", watched)
    with Store.open(path, TABLES) as store:
        with child("stay", str(path)) as reader:
            assert reader.stdout is not None
            reader.stdout.readline()
            reader.kill()
        end = time.monotonic() + 20
        while is_busy and not cleared.is_set() and time.monotonic() < end:
            store.update(lambda tx: tx.sequence("x"))
        assert cleared.wait(0 if is_busy else 20)


def test_pages_are_used_again_beside_an_idle_reader(path: Path) -> None:
    with Store.open(path, TABLES, keep_revisions=1) as store:
        row = store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Doc("x" * 1000)))
        with child("read", str(path)) as reader:
            assert reader.stdin is not None
            for number in range(400):
                store.update(lambda tx, n=number: tx.update(row, Doc(str(n) * 1000)))
            reader.stdin.close()
            reader.wait(20)
        assert store.stats().file_size_bytes < 1 << 20


@pytest.mark.root
def test_reader_is_told_that_it_may_not_read(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("changing the user needs root")
    Store.open(path, TABLES).close()
    with child("stranger", str(path)) as reader:
        answer, _ = reader.communicate(timeout=20)
    assert answer.startswith("PermissionDenied")
    assert "run as its owner" in answer
