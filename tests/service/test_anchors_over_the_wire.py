"""The anchors' service and its client are what they stand before: answers, refusals, streams."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs.anchors import TABLES, Anchors, Deleted, Entry, Put, Ref
from snapfs.model import Conflict, InvalidArgument, NotFound
from snapfs.service import anchor_server, anchor_wire, grpc_server
from snapfs.service.anchor_client import AnchorClient
from snapfs.store import Store

SECOND = 1_000_000_000
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
common = {
    "name": texts,
    "at_ns": st.integers(0, 2**64 - 1),
    "author": texts,
    "reason": texts,
    "revision": st.integers(0, 2**64 - 1),
}
entries: st.SearchStrategy[Entry] = st.one_of(
    st.builds(Deleted, **common), st.builds(Put, **common, ref=st.builds(Ref, texts, texts))
)


@given(entries)
def test_entries_survive(entry: Entry) -> None:
    message = anchor_wire.entry_to_wire(entry)
    assert anchor_wire.entry_from_wire(message.FromString(message.SerializeToString())) == entry


@pytest.fixture
def anchors(tmp_path: Path) -> Iterator[Anchors]:
    with Store.open(tmp_path / "metadata", TABLES) as store:
        yield Anchors(store)


@pytest.fixture
def client(tmp_path: Path, anchors: Anchors) -> Iterator[AnchorClient]:
    register = partial(anchor_server.register, anchors=anchors)
    served = grpc_server.build(tmp_path / "snapfs.sock", services=[register])
    with AnchorClient(served.address, timeout_s=30) as client:
        yield client
    served.stop(grace_s=0)


def test_what_is_put_is_got_with_all_that_was_said(client: AnchorClient, anchors: Anchors) -> None:
    put = client.put("n", Ref("t", "A"), at_ns=5, author="ann", reason="why")
    assert put == anchors.get("n")
    assert client.get("n") == put
    assert (put.at_ns, put.author, put.reason) == (5, "ann", "why")
    assert client.get("n", at_ns=5) == put


def test_time_zero_is_a_time_and_not_none(client: AnchorClient) -> None:
    assert client.put("n", Ref("t", "A"), at_ns=0).at_ns == 0
    client.put("n", Ref("t", "B"))
    assert client.get("n", at_ns=0).ref == Ref("t", "A")


def test_refusals_arrive_as_they_were_raised(client: AnchorClient) -> None:
    with pytest.raises(NotFound, match="anchor 'n' does not exist; put it first"):
        client.get("n")
    put = client.put("n", Ref("t", "A"), expect_rev=0)
    with pytest.raises(Conflict) as caught:
        client.put("n", Ref("t", "B"), expect_rev=0)
    assert (caught.value.expected, caught.value.actual) == (0, put.revision)
    with pytest.raises(InvalidArgument, match="reference type"):
        client.put("n", Ref("", ""))
    with pytest.raises(NotFound):
        list(client.history("none"))


def test_deleted_names_and_expired_entries_are_gone(client: AnchorClient) -> None:
    for value, second in (("A", 1), ("B", 2), ("C", 3)):
        client.put("n", Ref("t", value), at_ns=second * SECOND)
    done = client.expire(2 * SECOND)
    assert (done.anchors, done.entries) == (1, 1)
    gone = client.delete("n", author="ann", expect_rev=client.get("n").revision)
    assert [each.ref and each.ref.value for each in client.history("n")] == [None, "C", "B"]
    assert [each.ref for each in client.history("n", count=1)] == [None]
    assert list(client.walk()) == []
    assert list(client.walk(deleted=True)) == [gone]


def test_long_lists_come_whole(client: AnchorClient) -> None:
    for number in range(250):
        client.put("n", Ref("t", str(number)), at_ns=number)
        client.put(f"m{number:03}", Ref("t", "x"))
    assert len(list(client.history("n"))) == 250
    assert [each.name for each in client.walk("m")] == [f"m{number:03}" for number in range(250)]
