"""The anchors' service of snapfs.v1: translate, call the anchors, translate back."""

from __future__ import annotations

from collections.abc import Iterator

import grpc

from snapfs.anchors import Anchors
from snapfs.service import anchor_wire as wire
from snapfs.service import snapfs_v1_pb2 as pb
from snapfs.service import snapfs_v1_pb2_grpc
from snapfs.service.convert import batches, time_ns
from snapfs.service.status import answers

SERVICE = pb.DESCRIPTOR.services_by_name["Anchors"].full_name


def register(server: grpc.Server, anchors: Anchors) -> str:
    """Add the service to `server`; return its full name."""
    snapfs_v1_pb2_grpc.add_AnchorsServicer_to_server(AnchorsServicer(anchors), server)
    return SERVICE


class AnchorsServicer(snapfs_v1_pb2_grpc.AnchorsServicer):
    """snapfs.v1.Anchors over the anchors of one store."""

    def __init__(self, anchors: Anchors) -> None:
        self._anchors = anchors

    @answers
    def Put(
        self, request: pb.PutAnchorRequest, context: grpc.ServicerContext
    ) -> pb.PutAnchorResponse:
        put = self._anchors.put(
            request.name,
            wire.reference_from_wire(request.reference),
            at_ns=time_ns(request.at) if request.HasField("at") else None,
            author=request.author,
            reason=request.reason,
            expect_rev=request.expect_revision if request.HasField("expect_revision") else None,
        )
        return pb.PutAnchorResponse(entry=wire.entry_to_wire(put))

    @answers
    def Get(
        self, request: pb.GetAnchorRequest, context: grpc.ServicerContext
    ) -> pb.GetAnchorResponse:
        at_ns = time_ns(request.at) if request.HasField("at") else None
        put = self._anchors.get(request.name, at_ns=at_ns)
        return pb.GetAnchorResponse(entry=wire.entry_to_wire(put))

    @answers
    def List(
        self, request: pb.ListAnchorsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ListAnchorsResponse]:
        at_ns = time_ns(request.at) if request.HasField("at") else None
        for batch in batches(
            self._anchors.walk(request.prefix, at_ns=at_ns, deleted=request.deleted)
        ):
            yield pb.ListAnchorsResponse(entries=map(wire.entry_to_wire, batch))

    @answers
    def History(
        self, request: pb.AnchorHistoryRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.AnchorHistoryResponse]:
        found = self._anchors.history(
            request.name,
            at_ns=time_ns(request.at) if request.HasField("at") else None,
            count=request.count or None,
            repeats=request.repeats,
        )
        for batch in batches(found):
            yield pb.AnchorHistoryResponse(entries=map(wire.entry_to_wire, batch))

    @answers
    def Delete(
        self, request: pb.DeleteAnchorRequest, context: grpc.ServicerContext
    ) -> pb.DeleteAnchorResponse:
        deleted = self._anchors.delete(
            request.name,
            at_ns=time_ns(request.at) if request.HasField("at") else None,
            author=request.author,
            reason=request.reason,
            expect_rev=request.expect_revision if request.HasField("expect_revision") else None,
        )
        return pb.DeleteAnchorResponse(entry=wire.entry_to_wire(deleted))

    @answers
    def Expire(
        self, request: pb.ExpireAnchorsRequest, context: grpc.ServicerContext
    ) -> pb.ExpireAnchorsResponse:
        done = self._anchors.expire(
            time_ns(request.before), at_least=request.at_least, prefix=request.prefix
        )
        return pb.ExpireAnchorsResponse(anchors=done.anchors, entries=done.entries)
