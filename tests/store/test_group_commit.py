"""Updates share a commit and nothing else: each fails alone and is answered once, when durable."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from snapfs.model import DeadlineExceeded, FailedPrecondition, Unavailable
from snapfs.store import Store, UpdateCommitted
from tests.store.kit import DOCS, SCOPE, TABLES, Doc

WAIT_S = 20.0


class Blocker:
    """Holds the writer thread in an update until released, so that others gather behind it."""

    def __init__(self, store: Store) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()
        self._thread = threading.Thread(target=store.update, args=(self._wait,))

    def _wait(self, _: object) -> None:
        self.begun.set()
        assert self.go.wait(WAIT_S)

    def __enter__(self) -> Blocker:
        self._thread.start()
        assert self.begun.wait(WAIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.go.set()
        self._thread.join(WAIT_S)


def waiting(store: Store) -> int:
    return len(store._writer.queue._waiting)


def gather(store: Store, pool: ThreadPoolExecutor, updates: list) -> list:
    """Queue the updates in order while the writer is held; return their futures."""
    futures = []
    with Blocker(store):
        for count, update in enumerate(updates, 1):
            futures.append(pool.submit(store.update, update))
            deadline = threading.Event()
            while waiting(store) < count:
                deadline.wait(0.001)
    return futures


def test_failed_update_leaves_its_neighbours_and_nothing_of_itself(store: Store) -> None:
    def bad(tx) -> None:
        tx.create(DOCS, SCOPE, "bad", Doc(tags=("t",)))
        tx.put_intent(b"never")
        tx.sequence("s")
        raise ZeroDivisionError

    def good(name: str):
        return lambda tx: tx.create(DOCS, SCOPE, name, Doc())

    with ThreadPoolExecutor(8) as pool:
        a, failed, b = gather(store, pool, [good("a"), bad, good("b")])
        with pytest.raises(ZeroDivisionError):
            failed.result(WAIT_S)
        assert [a.result(WAIT_S).mod_rev, b.result(WAIT_S).mod_rev] == [1, 2]
    with store.view() as tx:
        assert [row.name for row in tx.rows(DOCS, SCOPE)] == ["a", "b"]
        assert list(tx.intents()) == []
        assert tx.last_sequence("s") == 0
        assert [e.revision for e in tx.events(0) if isinstance(e, UpdateCommitted)] == [1, 2]


def test_updates_of_a_group_share_one_transaction_and_see_each_other(store: Store) -> None:
    def first_id() -> int:
        with store.view() as tx:
            return tx._txn.id()

    before = first_id()
    store.update(lambda tx: tx.create(DOCS, SCOPE, "counter", Doc("0")))

    def increment(tx) -> int:
        row = tx.get(DOCS, SCOPE, "counter")
        return int(tx.update(row, Doc(str(int(row.body.text) + 1))).body.text)

    with ThreadPoolExecutor(16) as pool:
        futures = gather(store, pool, [increment] * 16)
        assert [future.result(WAIT_S) for future in futures] == list(range(1, 17))
    assert store.revision == 17
    assert first_id() == before + 2


def test_every_update_from_many_threads_takes_effect_once(store: Store) -> None:
    store.update(lambda tx: tx.create(DOCS, SCOPE, "counter", Doc("0")))

    def increment(tx) -> int:
        row = tx.get(DOCS, SCOPE, "counter")
        return tx.update(row, Doc(str(int(row.body.text) + 1))).mod_rev

    with ThreadPoolExecutor(16) as pool:
        revisions = list(pool.map(lambda _: store.update(increment), range(400)))
    assert sorted(revisions) == list(range(2, 402))
    with store.view() as tx:
        assert tx.get(DOCS, SCOPE, "counter").body == Doc("400")


def test_views_see_nothing_before_the_commit_and_go_on_during_it(store: Store) -> None:
    store.update(lambda tx: tx.create(DOCS, SCOPE, "old", Doc()))
    written, go = threading.Event(), threading.Event()

    def slow(tx) -> None:
        tx.create(DOCS, SCOPE, "new", Doc())
        written.set()
        assert go.wait(WAIT_S)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(store.update, slow)
        assert written.wait(WAIT_S)
        with store.view() as tx:
            assert [row.name for row in tx.rows(DOCS, SCOPE)] == ["old"]
            go.set()
            future.result(WAIT_S)
            assert [row.name for row in tx.rows(DOCS, SCOPE)] == ["old"]
        with store.view() as tx:
            assert [row.name for row in tx.rows(DOCS, SCOPE)] == ["new", "old"]


def test_update_that_could_not_begin_in_time_is_dropped(store: Store) -> None:
    with Blocker(store), pytest.raises(DeadlineExceeded, match="did not begin"):
        store.update(lambda tx: tx.create(DOCS, SCOPE, "late", Doc()), timeout_s=0.01)
    store.update(lambda tx: tx.create(DOCS, SCOPE, "next", Doc()))
    with store.view() as tx:
        assert tx.get(DOCS, SCOPE, "late") is None


def test_update_that_has_begun_is_waited_for_beyond_its_timeout(store: Store) -> None:
    def slow(tx) -> str:
        threading.Event().wait(0.1)
        return tx.create(DOCS, SCOPE, "slow", Doc()).name

    assert store.update(slow, timeout_s=0.02) == "slow"


def test_update_inside_an_update_is_refused(store: Store) -> None:
    with pytest.raises(FailedPrecondition, match="inside an update"):
        store.update(lambda _: store.update(lambda tx: None))


def test_close_finishes_what_waits_and_refuses_what_comes(path: Path) -> None:
    store = Store.open(path, TABLES)
    with ThreadPoolExecutor(8) as pool:
        futures = gather(
            store,
            pool,
            [lambda tx, n=n: tx.create(DOCS, SCOPE, str(n), Doc()).oid for n in range(5)],
        )
        store.close()
        assert sorted(future.result(WAIT_S) for future in futures) == [1, 2, 3, 4, 5]
    store.close()
    with pytest.raises(Unavailable, match="the store is closed"):
        store.update(lambda tx: None)
    with pytest.raises(Unavailable, match="closed"), store.view():
        pass
    with Store.open(path, TABLES) as store:
        assert len(store.update(lambda tx: list(tx.rows(DOCS, SCOPE)))) == 5


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_update_that_ends_the_writer_thread_leaves_nobody_waiting(path: Path) -> None:
    store = Store.open(path, TABLES)

    def leave(_: object) -> None:
        raise SystemExit

    with ThreadPoolExecutor(4) as pool:
        futures = gather(store, pool, [leave, lambda tx: tx.create(DOCS, SCOPE, "a", Doc())])
        for future in futures:
            assert future.exception(WAIT_S) is not None
    with pytest.raises(Unavailable):
        store.update(lambda tx: None)
    store.close()
    with Store.open(path, TABLES) as store:
        assert store.revision == 0
        assert store.check() == []
