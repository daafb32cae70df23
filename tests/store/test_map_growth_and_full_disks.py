"""The map grows without a lost or a repeated effect; a limit or a full disk refuses and no more."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from snapfs.model import ResourceExhausted, Unavailable
from snapfs.store import ReadStore, Store, environment
from tests.store.kit import DOCS, REPOSITORY, SCOPE, TABLES, Doc
from tests.store.test_group_commit import WAIT_S, gather

MIB = 1 << 20


def test_map_grows_from_tiny_and_every_update_takes_effect_once(path: Path) -> None:
    runs: list[str] = []

    def create(name: str):
        def function(tx):
            runs.append(name)
            tx.put_intent(name.encode())
            return tx.create(DOCS, SCOPE, name, Doc("x" * 20_000)).mod_rev

        return function

    with Store.open(path, TABLES, map_size_bytes=MIB) as store:
        names = [str(number) for number in range(300)]
        with ThreadPoolExecutor(16) as pool:
            revisions = list(pool.map(lambda name: store.update(create(name)), names))
        assert sorted(revisions) == list(range(1, 301))
        assert store.stats().map_size_bytes >= 8 * MIB
        assert len(runs) > 300  # some ran again
        with store.view() as tx:
            assert sorted(row.name for row in tx.rows(DOCS, SCOPE)) == sorted(names)
            assert sorted(p.decode() for _, p in tx.intents()) == sorted(names)
        assert store.check() == []


def test_error_of_an_update_in_a_group_that_ran_again_comes_once(path: Path) -> None:
    runs = []

    def bad(tx) -> None:
        runs.append("bad")
        raise ZeroDivisionError

    with Store.open(path, TABLES, map_size_bytes=MIB) as store, ThreadPoolExecutor(4) as pool:
        failed, big = gather(
            store, pool, [bad, lambda tx: tx.create(DOCS, SCOPE, "big", Doc("x" * 3 * MIB))]
        )
        with pytest.raises(ZeroDivisionError):
            failed.result(WAIT_S)
        assert big.result(WAIT_S).name == "big"
        assert len(runs) > 1


def test_full_map_is_noticed_though_the_update_swallows_the_error(path: Path) -> None:
    def careless(tx) -> None:
        for number in range(100):
            try:
                tx.create(DOCS, SCOPE, str(number), Doc("x" * 50_000))
            except Exception:  # noqa: BLE001  # as careless as code can be
                return

    with Store.open(path, TABLES, map_size_bytes=MIB) as store:
        store.update(careless)
        with store.view() as tx:
            assert len(list(tx.rows(DOCS, SCOPE))) == 100


def test_update_beyond_the_limit_fails_alone_and_the_store_stays_usable(path: Path) -> None:
    with (
        Store.open(path, TABLES, map_size_bytes=MIB, max_map_size_bytes=2 * MIB) as store,
        ThreadPoolExecutor(4) as pool,
    ):
        a, big, b = gather(
            store,
            pool,
            [
                lambda tx: tx.create(DOCS, SCOPE, "a", Doc()),
                lambda tx: tx.create(DOCS, SCOPE, "big", Doc("x" * 4 * MIB)),
                lambda tx: tx.create(DOCS, SCOPE, "b", Doc()),
            ],
        )
        with pytest.raises(ResourceExhausted, match="reached its limit of 2097152 bytes"):
            big.result(WAIT_S)
        assert (a.result(WAIT_S).name, b.result(WAIT_S).name) == ("a", "b")
        row = a.result()
        store.update(lambda tx: tx.delete(row))
        assert store.check() == []
    with Store.open(path, TABLES) as store:
        store.update(lambda tx: tx.create(DOCS, SCOPE, "big", Doc("x" * 4 * MIB)))


def test_growth_waits_for_views_and_gives_up_on_one_that_stays(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "RESIZE_WAIT_S", 0.05)
    with Store.open(path, TABLES, map_size_bytes=MIB) as store:
        with store.view() as tx:
            with pytest.raises(Unavailable, match="a read transaction that stays open"):
                store.update(lambda w: w.create(DOCS, SCOPE, "big", Doc("x" * 2 * MIB)))
            store.update(lambda w: w.create(DOCS, SCOPE, "small", Doc()))
            assert list(tx.rows(DOCS, SCOPE)) == []
        store.update(lambda w: w.create(DOCS, SCOPE, "big", Doc("x" * 2 * MIB)))


def test_views_of_many_threads_go_on_while_the_map_grows(path: Path) -> None:
    done = threading.Event()

    def look(store: Store) -> int:
        looks = 0
        while not done.is_set():
            with store.view() as tx:
                for row in tx.rows(DOCS, SCOPE):
                    assert tx.by_oid(DOCS, row.oid) == row
            looks += 1
        return looks

    with (
        Store.open(path, TABLES, map_size_bytes=MIB) as store,
        ThreadPoolExecutor(3) as pool,
    ):
        readers = [pool.submit(look, store) for _ in range(3)]
        for number in range(40):
            store.update(lambda tx, n=number: tx.create(DOCS, SCOPE, str(n), Doc("x" * 200_000)))
        done.set()
        assert all(reader.result(WAIT_S) > 0 for reader in readers)
        assert store.stats().map_size_bytes > 8 * MIB


def test_reader_that_shares_the_writers_map_follows_its_growth(path: Path) -> None:
    with (
        Store.open(path, TABLES, map_size_bytes=MIB) as store,
        ReadStore.open(path, TABLES) as reader,
    ):
        store.update(lambda tx: tx.create(DOCS, SCOPE, "big", Doc("x" * 3 * MIB)))
        with reader.view() as tx:
            assert len(tx.get(DOCS, SCOPE, "big").body.text) == 3 * MIB


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    target = tmp_path / "disk"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", target], check=True)
    yield target
    subprocess.run(["umount", target], check=True)


def fill(store: Store, kept: list[int]) -> None:
    """Create rows until the store refuses, noting the oids of those it took."""
    for number in range(1000):
        row = store.update(lambda tx, n=number: tx.create(DOCS, SCOPE, str(n), Doc("x" * 20_000)))
        kept.append(row.oid)


@pytest.mark.root
def test_full_disk_refuses_and_the_store_stays_usable(small_disk: Path) -> None:
    with Store.open(small_disk / "metadata", TABLES) as store:
        kept: list[int] = []
        with pytest.raises(ResourceExhausted, match=r"no space for the store .*free some"):
            fill(store, kept)
        with store.view() as tx:
            assert sorted(row.oid for row in tx.rows(DOCS, SCOPE)) == kept
        assert store.check() == []
        subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
        store.update(lambda tx: tx.create(DOCS, SCOPE, "after", Doc("x" * 20_000)))
        assert store.check() == []


@pytest.mark.root
def test_full_disk_takes_nothing_new_and_lets_everything_be_deleted(small_disk: Path) -> None:
    with Store.open(small_disk / "metadata", TABLES) as store:
        rows = [
            store.update(lambda tx, n=number: tx.create(DOCS, SCOPE, f"old{n}", Doc("x" * 2000)))
            for number in range(100)
        ]
    fill_up(small_disk / "filler")
    with Store.open(small_disk / "metadata", TABLES) as store:
        with pytest.raises(ResourceExhausted, match=r"what is left is for removals; free some"):
            fill(store, [])
        for row in rows:
            store.update(lambda tx, it=row: tx.delete(it))
    with Store.open(small_disk / "metadata", TABLES) as store:
        assert store.check() == []
        (small_disk / "filler").unlink()
        store.update(lambda tx: tx.create(DOCS, SCOPE, "after", Doc()))


def fill_up(path: Path) -> None:
    """Write a file until the disk is full to the last page."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"x" * 4096):
            pass


@pytest.mark.root
def test_store_is_not_half_made_on_a_full_disk(small_disk: Path) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (4 * MIB - 16384))
    with pytest.raises(ResourceExhausted):
        Store.open(small_disk / "metadata", TABLES)
    filler.unlink()
    with Store.open(small_disk / "metadata", TABLES) as store:
        assert store.check() == []


LIMITED = """
import sys, signal
from pathlib import Path
from snapfs.model import ResourceExhausted
from snapfs.store import Store
from tests.store.kit import *
with Store.open(Path(sys.argv[1]), TABLES) as store:
    try:
        for number in range(1000):
            store.update(lambda tx: tx.create(DOCS, SCOPE, str(number), Doc("x" * 20_000)))
    except ResourceExhausted:
        assert store.check() == []
        print("refused")
"""


def test_limit_on_the_size_of_files_refuses_like_a_full_disk(path: Path) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 * MIB, 3 * MIB))

    done = subprocess.run(
        [sys.executable, "-c", LIMITED, path],
        cwd=REPOSITORY,
        preexec_fn=limit,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "refused\n"
