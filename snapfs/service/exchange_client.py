"""Another store over a connection, as a peer for syncs."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import cast

import grpc

from snapfs.anchors import History
from snapfs.closing import Closing
from snapfs.model import DataLoss, FailedPrecondition, InvalidArgument, Unavailable
from snapfs.service import exchange_wire as wire
from snapfs.service import sync_v1_pb2 as pb
from snapfs.service import sync_v1_pb2_grpc
from snapfs.service.status import error_of, was_answered
from snapfs.service.ways import Connected
from snapfs.sync.items import Item, Tree
from snapfs.sync.peer import PROTOCOL, Answer, Hello, SetName, Wanted
from snapfs.sync.planning import Change
from snapfs.transfer import Offer, Packed
from snapfs.transfer.manifest import DIGEST_BYTES
from snapfs.volumes import Note
from snapfs.volumes.ids import BranchId, VolumeSetId, VolumeSnapshotId

AHEAD = 4
"""Parcels that wait to be sent."""
LOOK_S = 1.0
"""How often a sender that waits looks whether anybody still receives."""
WANTED_AT_ONCE = 8192
"""Chunks that one call asks for."""


class ExchangePeer(Closing):
    """A `peer.Peer` at the other end of a connection.

    Calls that look at layers or move them have no deadline of their own, since they take as long as
    the data does: the connection's pings find out when nobody is there any more.
    """

    def __init__(self, name: str, connected: Connected, *, timeout_s: float) -> None:
        """`name` is what messages call it; `timeout_s` is for one short call."""
        self._name = name
        self._connected = connected
        self._stub = sync_v1_pb2_grpc.ExchangeStub(connected.channel)
        self._timeout_s = timeout_s

    def close(self) -> None:
        """End the connection; twice is fine."""
        self._connected.close()

    def hello(self) -> Hello:
        """Say who answers; FailedPrecondition when it speaks another protocol."""
        with self._errors():
            answer = self._stub.Hello(pb.Parcel(), timeout=self._timeout_s, wait_for_ready=False)
        found = wire.only(Hello, answer)
        if found.protocol != PROTOCOL:
            raise FailedPrecondition(
                f"remote {self._name!r} is of version {found.version}, which syncs otherwise; "
                "upgrade the older one"
            )
        return found

    def sets(self) -> list[SetName]:
        """Return every set there is, and those that were deleted."""
        with self._errors():
            return list(wire.decode_all(SetName, _bounded(self._stub.Sets(pb.Parcel()))))

    def describe(self, set_id: VolumeSetId) -> Tree:
        """Return what there is of a set."""
        store, items = "", list[Item]()
        with self._errors():
            for parcel in _bounded(self._stub.Describe(pb.Parcel(set_id=set_id))):
                store = parcel.kind
                items.extend(wire.decode_all(Item, [parcel]))
        return Tree(store, set_id, tuple(items))

    def apply(self, set_id: VolumeSetId, changes: Sequence[Change], why: Note) -> list[Answer]:
        """Do changes; say of each what became of it."""
        request = pb.Parcel(
            set_id=set_id, parent=why.author, kind=why.reason, records=map(wire.encode, changes)
        )
        with self._errors():
            answers = list(wire.decode_all(Answer, [self._stub.Apply(request)]))
        if len(answers) != len(changes):
            raise DataLoss(
                f"remote {self._name!r} answers {len(answers)} of {len(changes)} changes"
            )
        return answers

    def attach(self, set_id: VolumeSetId, tips: Sequence[VolumeSnapshotId]) -> None:
        """Say of the snapshots that lead to these that their data is there."""
        with self._errors():
            self._stub.Attach(pb.Parcel(set_id=set_id, records=[it.encode() for it in tips]))

    def facts(self, set_id: VolumeSetId, branches: Sequence[BranchId]) -> list[History]:
        """Return the histories of branches."""
        request = pb.Parcel(set_id=set_id, records=[it.encode() for it in branches])
        with self._errors():
            return list(wire.decode_all(History, _bounded(self._stub.Facts(request))))

    def merge_facts(self, histories: Sequence[History]) -> None:
        """Add to the histories of branches what this store knows of them."""
        for parcel in wire.pack(map(wire.encode, histories)):
            with self._errors():
                self._stub.MergeFacts(parcel)

    def offer(self, set_id: VolumeSetId, snapshot: VolumeSnapshotId) -> Offer:
        """Return what the data of a snapshot is."""
        with self._errors():
            answer = self._stub.Offer(pb.Parcel(set_id=set_id, snapshot=snapshot))
        return wire.only(Offer, answer)

    def manifest(self, set_id: VolumeSetId, snapshot: VolumeSnapshotId) -> Iterator[bytes]:
        """Yield the manifest of a snapshot's data."""
        with self._errors():
            for parcel in self._stub.Manifest(pb.Parcel(set_id=set_id, snapshot=snapshot)):
                yield from parcel.records

    def chunks(
        self, set_id: VolumeSetId, snapshot: VolumeSnapshotId, wanted: list[bytes]
    ) -> Iterator[Packed]:
        """Yield chunks of a snapshot's data."""
        for start in range(0, len(wanted), WANTED_AT_ONCE):
            records = wanted[start : start + WANTED_AT_ONCE]
            request = pb.Parcel(set_id=set_id, snapshot=snapshot, records=records)
            with self._errors():
                yield from wire.decode_all(Packed, self._stub.Chunks(request))

    def receive(
        self,
        set_id: VolumeSetId,
        snapshot: VolumeSnapshotId,
        parent: VolumeSnapshotId | None,
        offer: Offer,
        manifest: Iterable[bytes],
        chunks: Wanted,
    ) -> None:
        """Send the data of a snapshot; it is durable and verified there on return."""
        first = pb.Parcel(
            kind=wire.OFFER,
            set_id=set_id,
            snapshot=snapshot,
            parent=parent or "",
            records=[wire.encode(offer)],
        )
        with self._errors(), _Sending(self._stub) as sending:
            sending.put(first)
            if sending.take().kind == wire.HAVE:
                return
            for part in manifest:
                sending.put(pb.Parcel(kind=wire.MANIFEST, records=[part]))
            sending.put(pb.Parcel(kind=wire.END))
            # No layer has more digests than its manifest has room for.
            wanted = sending.wanted(offer.manifest_bytes)
            for parcel in wire.pack(map(wire.encode, chunks(wanted)), kind=wire.CHUNKS):
                sending.put(parcel)
            sending.put(pb.Parcel(kind=wire.END))
            sending.take()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as failure:
            if was_answered(failure):
                raise error_of(failure) from failure
            reason = self._connected.reason() or str(error_of(failure)).rpartition("error: ")[2]
            raise Unavailable(
                f"remote {self._name!r} does not answer ({reason.strip()}); what was done so far "
                "stays, so sync again when it does"
            ) from failure


def _bounded(parcels: Iterable[pb.Parcel]) -> Iterator[pb.Parcel]:
    return wire.bounded(parcels, wire.MAX_DESCRIPTION_BYTES)


def digests(parcels: Iterable[pb.Parcel], at_most_bytes: int) -> list[bytes]:
    """Return the digests of the parcels up to the first that has none.

    Raises InvalidArgument for what is no digest, and for more of them.
    """
    found: list[bytes] = []
    for parcel in takewhile(lambda it: it.kind == wire.WANTED, parcels):
        found.extend(parcel.records)
        if any(len(it) != DIGEST_BYTES for it in parcel.records):
            raise InvalidArgument("the other side asks for a chunk by what is no digest")
        if len(found) * DIGEST_BYTES > at_most_bytes:
            raise InvalidArgument("the other side asks for more chunks than the layer has")
    return found


class _Sending:
    """A call in both directions: what waits to be sent, and what has been answered."""

    def __init__(self, stub: sync_v1_pb2_grpc.ExchangeStub) -> None:
        self._waiting: queue.Queue[pb.Parcel | None] = queue.Queue(AHEAD)
        self._answers = stub.Receive(iter(self._waiting.get, None))
        self._call = cast("grpc.Call", self._answers)

    def put(self, parcel: pb.Parcel | None) -> None:
        """Send; when nobody receives any more, the next `take` says why."""
        while self._call.is_active():
            try:
                self._waiting.put(parcel, timeout=LOOK_S)
            except queue.Full:
                continue
            return
        self.take()

    def take(self) -> pb.Parcel:
        """Return the next answer."""
        answer = next(iter(self._answers), None)
        if answer is None:
            raise Unavailable("the other side ended a transfer early; sync again")
        return answer

    def wanted(self, at_most_bytes: int) -> list[bytes]:
        """Return the digests that the other side asks for; InvalidArgument for more of them."""
        return digests(iter(self.take, None), at_most_bytes)

    def __enter__(self) -> _Sending:
        return self

    def __exit__(self, *_error: object) -> None:
        self._call.cancel()  # type: ignore[no-untyped-call]  # so in the stubs
        while True:  # let the sender of requests end, whatever waits
            try:
                self._waiting.put_nowait(None)
            except queue.Full:
                self._waiting.get_nowait()
            else:
                return
