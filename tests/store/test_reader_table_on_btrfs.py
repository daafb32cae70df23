"""On btrfs LMDB's reader table is in a subvolume of its own; a store is whole without it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from snapfs.model import FailedPrecondition, Unavailable
from snapfs.store import ReadStore, Store, migrations, readertable
from tests.store.kit import DOCS, SCOPE, TABLES, Doc
from tests.support.overlay.kernel import image_fs

pytestmark = pytest.mark.root


def subvolume(*command: str | Path) -> None:
    subprocess.run(["btrfs", "subvolume", *command], check=True, capture_output=True)


@pytest.fixture
def around(tmp_path: Path) -> Iterator[Path]:
    """A subvolume with a store in it, in which there is one document."""
    with image_fs(tmp_path, "btrfs") as mounted:
        subvolume("create", mounted / "around")
        with Store.open(mounted / "around" / "store", TABLES) as store:
            add(store, "first")
        yield mounted / "around"


def add(store: Store, name: str) -> None:
    store.update(lambda tx: tx.create(DOCS, SCOPE, name, Doc()))


def names(store: Store | ReadStore) -> list[str]:
    with store.view() as tx:
        return [row.name for row in tx.rows(DOCS, SCOPE)]


def test_the_table_is_apart_and_readers_and_writers_share_it(around: Path) -> None:
    table = around / "store" / "lock.mdb"
    assert table.stat().st_dev != (around / "store" / "data.mdb").stat().st_dev
    with Store.open(around / "store", TABLES) as store, store.view():
        before = table.stat().st_ino
        add(store, "second")
    with ReadStore.open(around / "store", TABLES) as reader:
        assert names(reader) == ["first", "second"]
    assert table.stat().st_ino == before


@pytest.mark.parametrize("first", [Store, ReadStore])
def test_a_snapshot_of_the_subvolume_is_a_whole_store(
    around: Path, first: type[Store | ReadStore]
) -> None:
    copy = around.parent / "copy"
    subvolume("snapshot", around, copy)
    with first.open(copy / "store", TABLES) as store:
        assert names(store) == ["first"]
    with Store.open(copy / "store", TABLES) as store, Store.open(around / "store", TABLES) as other:
        add(store, "here")
        add(other, "there")
        assert names(store) == ["first", "here"]
        assert names(other) == ["first", "there"]


def test_a_snapshot_is_migrated(around: Path) -> None:
    subvolume("snapshot", around, around.parent / "copy")
    copy = around.parent / "copy" / "store"
    migrations.run(copy, 1, 1 << 20, steps={1: lambda *_: None}, target=2)
    with pytest.raises(FailedPrecondition, match="of format 2"):
        Store.open(copy, TABLES)


def test_two_who_make_the_table_of_a_snapshot_at_once_make_one(
    around: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One comes after the other has seen the placeholder, and before that one removes it."""
    subvolume("snapshot", around, around.parent / "copy")
    store = around.parent / "copy" / "store"
    remove = Path.rmdir
    with ThreadPoolExecutor() as pool:
        others: list[Future[None]] = []

        def remove_later(path: Path) -> None:
            if not others:
                others.append(pool.submit(readertable.reserve, store))
                wait(others, timeout=0.5)  # it does not end where it is kept out until we are done
            remove(path)

        monkeypatch.setattr(Path, "rmdir", remove_later)
        readertable.reserve(store)
        others[0].result(20)
    assert (store / "lock.mdb").stat().st_size == readertable.FILE_BYTES


def test_a_read_only_snapshot_can_be_read(around: Path) -> None:
    copy = around.parent / "copy"
    subvolume("snapshot", "-r", around, copy)
    with ReadStore.open(copy / "store", TABLES) as reader:
        assert names(reader) == ["first"]
        assert reader.check() == []


def test_a_copy_elsewhere_is_a_whole_store(around: Path, tmp_path: Path) -> None:
    shutil.copytree(around / "store", tmp_path / "with", symlinks=True)
    shutil.copytree(
        around / "store", tmp_path / "without", symlinks=True, ignore=lambda *_: ["readers"]
    )
    for copy in ("with", "without"):
        with Store.open(tmp_path / copy, TABLES) as store:
            add(store, "second")
            assert names(store) == ["first", "second"]
        with ReadStore.open(tmp_path / copy, TABLES) as reader:
            assert names(reader) == ["first", "second"]


def test_a_table_that_is_there_stays_where_it_is(around: Path) -> None:
    """Others may have it open: an older release made it, or a reader did."""
    store = around / "store"
    (store / "lock.mdb").unlink()
    shutil.rmtree(store / "readers")
    (store / "lock.mdb").touch()
    with Store.open(store, TABLES) as opened:
        add(opened, "second")
    assert not (store / "lock.mdb").is_symlink()
    (store / "lock.mdb").unlink()
    with Store.open(store, TABLES) as opened:
        assert names(opened) == ["first", "second"]
    assert (store / "lock.mdb").is_symlink()


@pytest.mark.logs("store.second_reader_table")
@pytest.mark.parametrize("how", ["removed", "deleted"])
def test_a_writer_knows_its_table_from_one_in_a_new_subvolume(around: Path, how: str) -> None:
    path = around / "store"
    with Store.open(path, TABLES) as store:
        if how == "removed":
            shutil.rmtree(path / "readers")
        else:
            subvolume("delete", path / "readers")
        add(store, "second")
        readertable.settle(path)
        (path / "lock.mdb").touch()
        with pytest.raises(Unavailable, match="its reader table was replaced"):
            add(store, "third")
        assert names(store) == ["first", "second"]
    with Store.open(path, TABLES) as store:
        add(store, "third")
        assert names(store) == ["first", "second", "third"]


def test_a_subvolume_is_deleted_with_the_tables_first_and_its_snapshots_as_they_are(
    around: Path,
) -> None:
    subvolume("snapshot", around, around.parent / "copy")
    with pytest.raises(subprocess.CalledProcessError):
        subvolume("delete", around)
    with Store.open(around / "store", TABLES) as store:
        assert names(store) == ["first"]
    subvolume("delete", around / "store" / "readers", around)
    subvolume("delete", around.parent / "copy")
    assert os.listdir(around.parent) == []
