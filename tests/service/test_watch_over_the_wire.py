"""The store's watches as streams: events, places, refusals and ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from snapfs.model import Compacted, InvalidArgument, ResourceExhausted, Unavailable
from snapfs.service import grpc_server, store_server
from snapfs.service.store_client import StoreClient, Wanted
from snapfs.service.store_server import StoreServicer
from snapfs.service.store_wire import SeenEvent
from snapfs.store import Action, Row, Store, Table


class Thing(msgspec.Struct, frozen=True, array_like=True):
    text: str = ""
    ids: tuple[int, ...] = ()


THINGS = Table(1, "thing", Thing)
OTHERS = Table(2, "other", Thing)
KEEP_REVISIONS = 50


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "m", [THINGS, OTHERS], keep_revisions=KEEP_REVISIONS) as store:
        yield store


@pytest.fixture
def servicer(store: Store) -> StoreServicer:
    return StoreServicer(store)


@pytest.fixture
def client(tmp_path: Path, servicer: StoreServicer) -> Iterator[StoreClient]:
    served = grpc_server.build(tmp_path / "snapfs.sock", services=[servicer.register])
    with StoreClient(served.address, timeout_s=30) as client:
        yield client
    servicer.close()
    served.stop(grace_s=5)


def create(store: Store, name: str, table: Table[Thing] = THINGS, text: str = "") -> Row[Thing]:
    return store.update(lambda tx: tx.create(table, "s", name, Thing(text, (1, 2))))


def shown(event: SeenEvent) -> tuple[int, str, str, str]:
    return event.revision, str(event.action.name), event.row.table, event.row.name


def test_it_replays_from_a_revision_and_goes_on_live(store: Store, client: StoreClient) -> None:
    row = create(store, "a", text="old")
    store.update(lambda tx: tx.update(row, Thing("new")))
    stream = client.watch(1, include_old=True)
    assert next(stream) == (1, [])
    revision, [event] = next(stream)
    assert (revision, shown(event)) == (2, (2, "UPDATE", "thing", "a"))
    assert event.row.body == {"text": "new", "ids": []}
    assert event.old is not None
    assert event.old.body == {"text": "old", "ids": [1, 2]}
    assert (event.row.create_rev, event.row.mod_rev, event.row.oid) == (1, 2, row.oid)
    assert event.row.created_ns == row.created_ns
    store.update(lambda tx: tx.delete(row))
    assert [shown(event) for event in next(stream)[1]] == [(3, "DELETE", "thing", "a")]


def test_it_begins_now_unless_told_and_without_old_rows_unless_asked(
    store: Store, client: StoreClient
) -> None:
    row = create(store, "before")
    stream = client.watch()
    assert next(stream) == (1, [])
    store.update(lambda tx: tx.update(row, Thing("new")))
    _, [event] = next(stream)
    assert event.old is None


def test_filters_are_alternatives_and_each_wants_all_it_says(
    store: Store, client: StoreClient
) -> None:
    wanted = [
        Wanted("thing", (Action.DELETE,), scope="s", name="a"),
        Wanted("other", name_prefix="b"),
    ]
    stream = client.watch(0, wanted)
    next(stream)
    row = create(store, "a")
    create(store, "b")
    create(store, "a", OTHERS)
    create(store, "b", OTHERS)
    store.update(lambda tx: tx.delete(row))
    found = [shown(event) for _ in range(2) for event in next(stream)[1]]
    assert found == [(4, "CREATE", "other", "b"), (5, "DELETE", "thing", "a")]


def test_a_large_revision_comes_whole(store: Store, client: StoreClient) -> None:
    store.update(lambda tx: [tx.create(THINGS, "s", f"{n:03}", Thing()) for n in range(250)])
    stream = client.watch(0)
    next(stream)
    revision, events = next(stream)
    assert revision == 1
    assert [event.row.name for event in events] == [f"{n:03}" for n in range(250)]


def test_refusals_arrive_as_they_were_raised(store: Store, client: StoreClient) -> None:
    with pytest.raises(InvalidArgument, match="no table 'nothing' to watch; there are: other, th"):
        next(client.watch(0, [Wanted("nothing")]))
    with pytest.raises(InvalidArgument, match="still to come"):
        next(client.watch(9))
    for number in range(200):
        create(store, f"{number}")
    with pytest.raises(Compacted, match="read the rows anew"):
        next(client.watch(0))


def test_there_is_a_limit_and_an_ended_watch_makes_room(
    store: Store, client: StoreClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_server, "MAX_WATCHES", 2)
    streams = [client.watch(0) for _ in range(2)]
    for stream in streams:
        next(stream)
    with pytest.raises(ResourceExhausted, match="2 watches are open"):
        next(client.watch(0))
    streams[0].close()  # type: ignore[attr-defined]  # a generator
    for _ in range(1000):
        try:
            assert next(client.watch(0)) == (0, [])
        except ResourceExhausted:
            threading.Event().wait(0.01)
        else:
            return
    pytest.fail("the ended watch made no room")


def test_a_client_that_reads_slowly_misses_nothing(
    store: Store, client: StoreClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = store.watch
    monkeypatch.setattr(store, "watch", lambda *args: real(*args, limit=3))
    stream = client.watch(0)
    next(stream)
    for number in range(40):
        create(store, f"{number}", text="x" * 100_000)
    found = [event.row.name for _ in range(40) for event in next(stream)[1]]
    assert found == [f"{number}" for number in range(40)]


def test_a_service_that_stops_ends_its_watches_and_says_where_to_go_on(
    store: Store, client: StoreClient, servicer: StoreServicer
) -> None:
    stream = client.watch(None)
    next(stream)
    create(store, "a")
    next(stream)
    servicer.close()
    with pytest.raises(Unavailable, match="watch again from revision 1"):
        next(stream)
    with pytest.raises(Unavailable, match="is stopping"):
        next(client.watch(0))
