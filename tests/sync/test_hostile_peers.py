"""What other stores say that no store should: refused, and told, and nothing waits for ever."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from snapfs.model import InvalidArgument, ResourceExhausted
from snapfs.service import exchange_client, exchange_server, grpc_server, sync_v1_pb2_grpc
from snapfs.service import exchange_wire as wire
from snapfs.service import sync_v1_pb2 as pb
from snapfs.service.remote_server import RemotesServicer
from snapfs.sync import remotes
from snapfs.sync.items import BRANCH, NO_CELL, SET, Cell, Item
from snapfs.sync.peer import Answer
from snapfs.sync.planning import Change
from snapfs.transfer import Offer
from snapfs.volumes.ids import VolumeSetId
from tests.sync.kit import WHY, Host, new_id

MakeHost = Callable[[str], Host]

DEADLINE_S = 30


def apply(host: Host, set_id: VolumeSetId, change: Change) -> Answer:
    (answer,) = host.replica.apply(set_id, [change], WHY)
    return answer


class Listening:
    """The context of a call whose client is there."""

    def is_active(self) -> bool:
        return True


@pytest.mark.logs("sync.failed")
def test_a_client_is_told_of_an_error_that_nobody_foresaw(host: MakeHost) -> None:
    ann, bob = host("ann"), host("bob")
    set_id = ann.new_set()
    ann.do(lambda tx: remotes.add(tx, "bob", "unix:///bob"))

    class Nonsense:
        def __getattr__(self, name: str) -> object:
            return {}["nonsense"] if name == "describe" else getattr(bob.replica, name)

    @contextmanager
    def connect(_remote: object) -> Iterator[Any]:
        yield Nonsense()

    servicer = RemotesServicer(ann.engine, connect, DEADLINE_S)
    request = pb.SyncRequest(set=set_id, direction="sync", policy="theirs")
    told: queue.SimpleQueue[list[pb.SyncResponse]] = queue.SimpleQueue()

    def call() -> None:
        told.put(list(servicer.Sync(request, Listening())))  # type: ignore[arg-type]

    threading.Thread(target=call, daemon=True).start()
    (answer,) = told.get(timeout=DEADLINE_S)
    assert answer.report.error.startswith("unexpected KeyError")


def test_a_branch_without_name_or_tip_is_refused(host: MakeHost) -> None:
    bob = host("bob")
    set_id = bob.new_set()
    item = Item(BRANCH, new_id(), {"name": Cell("main", ())})
    answer = apply(bob, set_id, Change(item, {"name": NO_CELL}))
    assert (answer.state, "has no tip" in answer.message) == ("refused", True)


def test_what_nobody_looked_at_is_not_changed(host: MakeHost) -> None:
    bob = host("bob")
    set_id = bob.new_set()
    bob.edit_set(set_id, description="bob's")
    item = Item(SET, set_id, {"description": Cell("eve's", (("eve", 1),))})
    assert apply(bob, set_id, Change(item, {})).state == "refused"
    assert bob.set(set_id).description == "bob's"


@pytest.mark.parametrize("number", [-1, 0, 1 << 63])
def test_a_version_that_no_store_can_have_made_is_refused(host: MakeHost, number: int) -> None:
    bob = host("bob")
    set_id = bob.new_set()
    seen = bob.replica.describe(set_id).by_key[f"set/{set_id}"].cells["description"]
    item = Item(SET, set_id, {"description": Cell("eve's", (("eve", number),))})
    assert apply(bob, set_id, Change(item, {"description": seen})).state == "refused"


def test_a_number_of_this_store_that_is_ahead_of_it_holds_no_edit_back(host: MakeHost) -> None:
    """It was restored from a backup, or somebody made it up."""
    ann, bob, eve = host("ann"), host("bob"), host("eve")
    set_id = ann.new_set()
    ann.sync(bob, set_id)
    seen = bob.replica.describe(set_id).by_key[f"set/{set_id}"].cells["description"]
    ahead = ((ann.replica.hello().store, 1 << 40),)
    item = Item(SET, set_id, {"description": Cell("of later", ahead)})
    assert apply(bob, set_id, Change(item, {"description": seen})).state == "done"
    eve.pull(bob, set_id)
    ann.pull(bob, set_id)
    ann.edit_set(set_id, description="ann's")
    assert eve.sync(ann, set_id).conflicts == []
    assert eve.set(set_id).description == "ann's"


def test_a_description_without_end_is_not_held(host: MakeHost) -> None:
    without_end = itertools.repeat(pb.Parcel(records=[bytes(1 << 20)]))
    with pytest.raises(ResourceExhausted, match="more than 8 MiB"):
        list(wire.bounded(without_end, 8 << 20))


def test_a_list_of_wanted_chunks_without_end_is_not_held() -> None:
    asking = pb.Parcel(kind=wire.WANTED, records=[bytes(32)] * 100)
    end = pb.Parcel(kind=wire.END)
    assert len(exchange_client.digests([asking, end, asking], 1 << 20)) == 100
    with pytest.raises(InvalidArgument, match="more chunks than the layer has"):
        exchange_client.digests(itertools.repeat(asking), 1 << 20)
    with pytest.raises(InvalidArgument, match="no digest"):
        exchange_client.digests([pb.Parcel(kind=wire.WANTED, records=[b"x"])], 1 << 20)


@pytest.mark.logs("peer.idle")
def test_who_stops_in_the_middle_of_a_layer_is_cut_off(host: MakeHost, tmp_path: Path) -> None:
    bob = host("bob")
    set_id = bob.new_set()
    listening = partial(exchange_server.register, replica=bob.replica, idle_s=0.4)
    server = grpc_server.build(tmp_path / "sock", services=[listening], max_workers=1)
    never: queue.SimpleQueue[pb.Parcel] = queue.SimpleQueue()
    offer = wire.encode(Offer(bytes(32), (), 1 << 20))
    first = pb.Parcel(kind=wire.OFFER, set_id=set_id, snapshot=new_id(), records=[offer])
    try:
        with grpc.insecure_channel(f"unix:{tmp_path}/sock") as channel:
            stub = sync_v1_pb2_grpc.ExchangeStub(channel)
            for said in ([], [first]):
                answers = stub.Receive(
                    itertools.chain(said, iter(never.get, None)), timeout=DEADLINE_S
                )
                with pytest.raises(grpc.RpcError) as failed:
                    list(answers)
                assert failed.value.code() == grpc.StatusCode.CANCELLED
            assert stub.Hello(pb.Parcel(), timeout=DEADLINE_S).records  # the one worker is free
            never.put(pb.Parcel())
            never.put(pb.Parcel())
    finally:
        server.stop(grace_s=0)
