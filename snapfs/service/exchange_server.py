"""snapfs.v1.Exchange: what this store answers to others that sync with it.

Whoever may connect may change volume sets and bring and take their data, and nothing else: see
docs/sync.md, Who may connect.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress

import grpc

from snapfs.anchors import History
from snapfs.model import InvalidArgument, Unavailable
from snapfs.service import exchange_wire as wire
from snapfs.service import sync_v1_pb2 as pb
from snapfs.service import sync_v1_pb2_grpc
from snapfs.service.patience import IDLE_S, Patience
from snapfs.service.status import answers
from snapfs.sync.peer import Peer
from snapfs.sync.planning import Change
from snapfs.sync.replica import Replica
from snapfs.transfer import Landing, Offer, Packed
from snapfs.volumes import Note
from snapfs.volumes.ids import BranchId, VolumeSetId, VolumeSnapshotId

SERVICE = pb.DESCRIPTOR.services_by_name["Exchange"].full_name


def register(server: grpc.Server, replica: Replica, idle_s: float = IDLE_S) -> str:
    """Add the service to `server`; return its full name.

    Who does nothing for `idle_s` in the middle of a stream is cut off.
    """
    sync_v1_pb2_grpc.add_ExchangeServicer_to_server(ExchangeServicer(replica, idle_s), server)
    return SERVICE


class ExchangeServicer(sync_v1_pb2_grpc.ExchangeServicer):
    """A replica for others."""

    def __init__(self, replica: Replica, idle_s: float) -> None:
        self._replica = replica
        self._idle_s = idle_s
        self._peer: Peer = replica

    @answers
    def Hello(self, request: pb.Parcel, context: grpc.ServicerContext) -> pb.Parcel:
        return pb.Parcel(records=[wire.encode(self._peer.hello())])

    @answers
    def Sets(self, request: pb.Parcel, context: grpc.ServicerContext) -> Iterator[pb.Parcel]:
        yield from self._given(wire.pack(map(wire.encode, self._peer.sets())), context)

    @answers
    def Describe(self, request: pb.Parcel, context: grpc.ServicerContext) -> Iterator[pb.Parcel]:
        tree = self._peer.describe(VolumeSetId(request.set_id))
        yield from self._given(wire.pack(map(wire.encode, tree.items), kind=tree.store), context)

    @answers
    def Apply(self, request: pb.Parcel, context: grpc.ServicerContext) -> pb.Parcel:
        changes = list(wire.decode_all(Change, [request]))
        why = Note(author=request.parent, reason=request.kind)
        done = self._peer.apply(VolumeSetId(request.set_id), changes, why)
        return pb.Parcel(records=map(wire.encode, done))

    @answers
    def Attach(self, request: pb.Parcel, context: grpc.ServicerContext) -> pb.Parcel:
        tips = [VolumeSnapshotId(_text(raw)) for raw in request.records]
        self._peer.attach(VolumeSetId(request.set_id), tips)
        return pb.Parcel()

    @answers
    def Facts(self, request: pb.Parcel, context: grpc.ServicerContext) -> Iterator[pb.Parcel]:
        branches = [BranchId(_text(raw)) for raw in request.records]
        found = self._peer.facts(VolumeSetId(request.set_id), branches)
        yield from self._given(wire.pack(map(wire.encode, found)), context)

    @answers
    def MergeFacts(self, request: pb.Parcel, context: grpc.ServicerContext) -> pb.Parcel:
        self._peer.merge_facts(list(wire.decode_all(History, [request])))
        return pb.Parcel()

    @answers
    def Offer(self, request: pb.Parcel, context: grpc.ServicerContext) -> pb.Parcel:
        offer = self._peer.offer(VolumeSetId(request.set_id), VolumeSnapshotId(request.snapshot))
        return pb.Parcel(records=[wire.encode(offer)])

    @answers
    def Manifest(self, request: pb.Parcel, context: grpc.ServicerContext) -> Iterator[pb.Parcel]:
        snapshot = VolumeSnapshotId(request.snapshot)
        parts = self._peer.manifest(VolumeSetId(request.set_id), snapshot)
        yield from self._given((pb.Parcel(records=[part]) for part in parts), context)

    @answers
    def Chunks(self, request: pb.Parcel, context: grpc.ServicerContext) -> Iterator[pb.Parcel]:
        snapshot, wanted = VolumeSnapshotId(request.snapshot), list(request.records)
        found = self._peer.chunks(VolumeSetId(request.set_id), snapshot, wanted)
        yield from self._given(wire.pack(map(wire.encode, found)), context)

    @answers
    def Receive(
        self, requests: Iterator[pb.Parcel], context: grpc.ServicerContext
    ) -> Iterator[pb.Parcel]:
        with Patience(context.cancel, self._idle_s) as patience:
            yield from patience.given(self._receive(patience.taken(requests)))

    def _receive(self, requests: Iterator[pb.Parcel]) -> Iterator[pb.Parcel]:
        first = next(_from_client(requests), None)
        if first is None:
            raise _left()
        if first.kind != wire.OFFER:
            raise InvalidArgument("a layer begins with its offer")
        with self._replica.landing(
            VolumeSetId(first.set_id),
            VolumeSnapshotId(first.snapshot),
            VolumeSnapshotId(first.parent) if first.parent else None,
            wire.only(Offer, first),
        ) as landing:
            if landing is None:
                yield pb.Parcel(kind=wire.HAVE)
            else:
                yield from _take(landing, requests)

    def _given(
        self, parcels: Iterable[pb.Parcel], context: grpc.ServicerContext
    ) -> Iterator[pb.Parcel]:
        with Patience(context.cancel, self._idle_s) as patience:
            yield from patience.given(parcels)


def _take(landing: Landing, requests: Iterator[pb.Parcel]) -> Iterator[pb.Parcel]:
    yield pb.Parcel(kind=wire.MANIFEST)
    parts = (part for parcel in _until_end(requests) for part in parcel.records)
    yield from wire.pack(landing.take_manifest(parts), kind=wire.WANTED)
    yield pb.Parcel(kind=wire.END)
    for packed in wire.decode_all(Packed, _until_end(requests)):
        landing.put(packed)
    landing.finish()
    yield pb.Parcel(kind=wire.DONE)


def _until_end(requests: Iterable[pb.Parcel]) -> Iterator[pb.Parcel]:
    for parcel in _from_client(requests):
        if parcel.kind == wire.END:
            return
        yield parcel
    raise _left()


def _from_client(requests: Iterable[pb.Parcel]) -> Iterator[pb.Parcel]:
    """Yield what comes; what gRPC says of a client that is gone has no word to it."""
    with suppress(grpc.RpcError):
        for request in requests:  # noqa: UP028 - `yield from` would close them with this
            yield request


def _left() -> Unavailable:
    return Unavailable("the other side left in the middle of a layer")


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise InvalidArgument("an id is not text") from None
