"""The client of contents: typed calls that raise the SnapfsError that was raised."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from snapfs.metadata import Content, Ingest
from snapfs.metadata.words import check_digest
from snapfs.model import DataLoss, FailedPrecondition, Labels, NotFound
from snapfs.service import content_v1_pb2 as pb
from snapfs.service import content_v1_pb2_grpc
from snapfs.service import content_wire as wire
from snapfs.service.connection import Connection
from snapfs.service.metadata_wire import content_from_wire

TRANSFER_TIMEOUT_S = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """What is pushed, and what becomes of it."""

    ref: str
    lease: str = ""
    expected: str = ""
    total_bytes: int = 0
    labels: Labels


class ContentClient(Connection):
    """snapfs.v1.Contents of one namespace over one connection."""

    def __init__(self, address: Path, namespace: str, *, timeout_s: float = 60) -> None:
        super().__init__(address, timeout_s=timeout_s)
        self.namespace = namespace
        self._stub = content_v1_pb2_grpc.ContentsStub(self._channel)

    def get(self, digest: str) -> Content:
        request = pb.GetContentRequest(namespace=self.namespace, digest=digest)
        return content_from_wire(self._call(self._stub.Get, request))

    def read(self, digest: str) -> Iterator[bytes]:
        """Yield the bytes of content; DataLoss at the end when they are not those of its digest."""
        request = pb.ReadContentRequest(namespace=self.namespace, digest=check_digest(digest))
        hash_ = hashlib.new(digest.partition(":")[0], usedforsecurity=False)
        with self._errors():
            for answer in self._stub.Read(request, timeout=TRANSFER_TIMEOUT_S):
                hash_.update(answer.data)
                yield answer.data
        if f"{hash_.name}:{hash_.hexdigest()}" != digest:
            raise DataLoss(
                f"content {digest} has other bytes by now; move its file, below content/blobs of "
                "the root, away and push or import it again"
            )

    def push(
        self,
        file: BinaryIO,
        wanted: Push,
        report: Callable[[int], None] = lambda _bytes: None,
    ) -> Content:
        """Write a file as content, going on where an earlier push of the reference stopped.

        `report` hears how many bytes are there. Raises AlreadyExists when the namespace has it,
        FailedPrecondition when the bytes are not those that were expected.
        """
        hash_ = hashlib.sha256()
        offset = _skip(file, hash_, self._offset(wanted.ref))
        begin = pb.WriteBegin(
            namespace=self.namespace,
            ref=wanted.ref,
            lease=wanted.lease,
            expected=wanted.expected,
            total_bytes=wanted.total_bytes,
            offset=offset,
        )

        def requests() -> Iterator[pb.WriteContentRequest]:
            done = offset
            yield pb.WriteContentRequest(begin=begin)
            while data := file.read(wire.CHUNK_BYTES):
                hash_.update(data)
                done += len(data)
                yield pb.WriteContentRequest(data=data)
                report(done)
            commit = pb.WriteCommit(
                digest=wanted.expected or f"sha256:{hash_.hexdigest()}",
                size_bytes=done,
                labels=wanted.labels,
            )
            yield pb.WriteContentRequest(commit=commit)

        with self._errors():
            made = self._stub.Write(requests(), timeout=TRANSFER_TIMEOUT_S)
        return content_from_wire(made)

    def label(self, digest: str, labels: Labels) -> Content:
        """Set labels; an empty value deletes one."""
        request = pb.LabelContentRequest(namespace=self.namespace, digest=digest, labels=labels)
        return content_from_wire(self._call(self._stub.Label, request))

    def remove(self, digest: str) -> None:
        request = pb.RemoveContentRequest(namespace=self.namespace, digest=digest)
        self._call(self._stub.Remove, request)

    def ingests(self, filters: Sequence[str] = ()) -> list[Ingest]:
        request = pb.ListIngestsRequest(namespace=self.namespace, filters=filters)
        answer = self._call(self._stub.ListIngests, request)
        return [wire.ingest_from_wire(it) for it in answer.ingests]

    def abort(self, ref: str) -> None:
        request = pb.AbortIngestRequest(namespace=self.namespace, ref=ref)
        self._call(self._stub.AbortIngest, request)

    def _offset(self, ref: str) -> int:
        """Return how far an earlier push of a reference came."""
        request = pb.GetIngestRequest(namespace=self.namespace, ref=ref)
        try:
            return int(self._call(self._stub.GetIngest, request).offset_bytes)
        except NotFound:
            return 0


def _skip(file: BinaryIO, hash_: hashlib._Hash, size_bytes: int) -> int:
    """Read what has been pushed already; return how much that was."""
    left = size_bytes
    while left:
        data = file.read(min(left, wire.CHUNK_BYTES))
        if not data:
            raise FailedPrecondition(
                f"the ingest has {size_bytes} bytes and this file {size_bytes - left}; it is of "
                "another file: abort it, or give another --ref"
            )
        hash_.update(data)
        left -= len(data)
    return size_bytes
