"""The contents' service of snapfs.v1: translate, call, translate back."""

from __future__ import annotations

import os
from collections.abc import Iterator

import grpc

from snapfs.metadata import Content, Context, Metadata, Wish, Writer
from snapfs.model import InvalidArgument
from snapfs.service import content_v1_pb2 as pb
from snapfs.service import content_v1_pb2_grpc, metadata_v1_pb2
from snapfs.service import content_wire as wire
from snapfs.service.metadata_wire import content_to_wire
from snapfs.service.status import answers

SERVICE = pb.DESCRIPTOR.services_by_name["Contents"].full_name


def register(server: grpc.Server, metadata: Metadata) -> str:
    """Add the service to `server`; return its full name."""
    content_v1_pb2_grpc.add_ContentsServicer_to_server(ContentsServicer(metadata), server)
    return SERVICE


class ContentsServicer(content_v1_pb2_grpc.ContentsServicer):
    """snapfs.v1.Contents over one root."""

    def __init__(self, metadata: Metadata) -> None:
        self._content = metadata.content

    @answers
    def Get(
        self, request: pb.GetContentRequest, context: grpc.ServicerContext
    ) -> metadata_v1_pb2.Content:
        return content_to_wire(self._content.info(request.namespace, request.digest))

    @answers
    def Read(
        self, request: pb.ReadContentRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ReadContentResponse]:
        fd = self._content.open(request.namespace, request.digest)
        with os.fdopen(fd, "rb") as file:
            file.seek(request.offset)
            while data := file.read(wire.CHUNK_BYTES):
                yield pb.ReadContentResponse(data=data)

    @answers
    def Write(
        self, request_iterator: Iterator[pb.WriteContentRequest], context: grpc.ServicerContext
    ) -> metadata_v1_pb2.Content:
        first = next(request_iterator, None)
        if first is None or not first.HasField("begin"):
            raise InvalidArgument("the first message must say what is written; set `begin`")
        begin = first.begin
        with self._content.writer(
            Context(begin.namespace, begin.lease),
            begin.ref,
            expected=begin.expected,
            total_bytes=begin.total_bytes,
        ) as writer:
            if not writer.virtual:
                writer.truncate(begin.offset)
            made = _write(writer, first) or _write_all(writer, request_iterator)
        return content_to_wire(made)

    @answers
    def Label(
        self, request: pb.LabelContentRequest, context: grpc.ServicerContext
    ) -> metadata_v1_pb2.Content:
        labels = {key: value for key, value in request.labels.items() if value}
        paths = [f"labels.{key}" for key in request.labels]
        if not paths:
            raise InvalidArgument("no label is given; give one")
        made = self._content.update(request.namespace, request.digest, labels, paths)
        return content_to_wire(made)

    @answers
    def Remove(
        self, request: pb.RemoveContentRequest, context: grpc.ServicerContext
    ) -> pb.RemoveContentResponse:
        self._content.delete(request.namespace, request.digest)
        return pb.RemoveContentResponse()

    @answers
    def GetIngest(self, request: pb.GetIngestRequest, context: grpc.ServicerContext) -> pb.Ingest:
        return wire.ingest_to_wire(self._content.status(request.namespace, request.ref))

    @answers
    def ListIngests(
        self, request: pb.ListIngestsRequest, context: grpc.ServicerContext
    ) -> pb.ListIngestsResponse:
        found = self._content.statuses(request.namespace, list(request.filters))
        return pb.ListIngestsResponse(ingests=map(wire.ingest_to_wire, found))

    @answers
    def AbortIngest(
        self, request: pb.AbortIngestRequest, context: grpc.ServicerContext
    ) -> pb.AbortIngestResponse:
        self._content.abort(request.namespace, request.ref)
        return pb.AbortIngestResponse()


def _write_all(writer: Writer, requests: Iterator[pb.WriteContentRequest]) -> Content:
    for request in requests:
        made = _write(writer, request)
        if made is not None:
            return made
    raise InvalidArgument("the stream ended before a commit; what was written is kept")


def _write(writer: Writer, request: pb.WriteContentRequest) -> Content | None:
    """Write what a message has; return the content when it commits."""
    if request.data and not writer.virtual:
        writer.write(request.data)
    if not request.HasField("commit"):
        return None
    commit = request.commit
    return writer.commit(Wish(commit.size_bytes, commit.digest, dict(commit.labels)))
