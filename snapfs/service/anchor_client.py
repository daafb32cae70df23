"""The client of the anchors' service: typed calls that raise the SnapfsError that was raised."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from snapfs.anchors import Deleted, Entry, Expired, Put, Ref
from snapfs.service import anchor_wire as wire
from snapfs.service import snapfs_v1_pb2 as pb
from snapfs.service import snapfs_v1_pb2_grpc
from snapfs.service.connection import Connection


class AnchorClient(Connection):
    """snapfs.v1.Anchors over one connection; the calls are those of anchors.Anchors."""

    def __init__(self, address: Path, *, timeout_s: float = 60) -> None:
        super().__init__(address, timeout_s=timeout_s)
        self._stub = snapfs_v1_pb2_grpc.AnchorsStub(self._channel)

    def put(
        self,
        name: str,
        ref: Ref,
        *,
        at_ns: int | None = None,
        author: str = "",
        reason: str = "",
        expect_rev: int | None = None,
    ) -> Put:
        """Let `name` stand for `ref` from `at_ns` on, or from now on; durable on return."""
        request = pb.PutAnchorRequest(
            name=name,
            reference=wire.reference_to_wire(ref),
            at=wire.moment_to_wire(at_ns),
            author=author,
            reason=reason,
            expect_revision=expect_rev,
        )
        return wire.put_from_wire(self._call(self._stub.Put, request).entry)

    def get(self, name: str, *, at_ns: int | None = None) -> Put:
        """Return what `name` stood for at a time, or stands for now."""
        request = pb.GetAnchorRequest(name=name, at=wire.moment_to_wire(at_ns))
        return wire.put_from_wire(self._call(self._stub.Get, request).entry)

    def walk(
        self, prefix: str = "", *, at_ns: int | None = None, deleted: bool = False
    ) -> Iterator[Entry]:
        """Yield what each name of a prefix stood for at a time, or stands for last."""
        request = pb.ListAnchorsRequest(
            prefix=prefix, at=wire.moment_to_wire(at_ns), deleted=deleted
        )
        for answer in self._stream(self._stub.List, request):
            yield from wire.entries_from_wire(answer.entries)

    def history(
        self,
        name: str,
        *,
        at_ns: int | None = None,
        count: int | None = None,
        repeats: bool = False,
    ) -> Iterator[Entry]:
        """Yield the entries of a name, newest first."""
        request = pb.AnchorHistoryRequest(
            name=name, at=wire.moment_to_wire(at_ns), count=count or 0, repeats=repeats
        )
        for answer in self._stream(self._stub.History, request):
            yield from wire.entries_from_wire(answer.entries)

    def delete(
        self,
        name: str,
        *,
        at_ns: int | None = None,
        author: str = "",
        reason: str = "",
        expect_rev: int | None = None,
    ) -> Deleted:
        """Let `name` stand for nothing from `at_ns` on, or from now on; durable on return."""
        request = pb.DeleteAnchorRequest(
            name=name,
            at=wire.moment_to_wire(at_ns),
            author=author,
            reason=reason,
            expect_revision=expect_rev,
        )
        return wire.deleted_from_wire(self._call(self._stub.Delete, request).entry)

    def expire(self, before_ns: int, *, at_least: int = 1, prefix: str = "") -> Expired:
        """Take away the entries before a time, but for what was in force then."""
        request = pb.ExpireAnchorsRequest(
            before=wire.moment_to_wire(before_ns), at_least=at_least, prefix=prefix
        )
        answer = self._call(self._stub.Expire, request)
        return Expired(answer.anchors, answer.entries)
