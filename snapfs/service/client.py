"""The client of snapfs.v1: typed calls that raise the same SnapfsError the service raised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from snapfs.model import Labels, Mount, Usage
from snapfs.service import snapfs_v1_pb2 as pb
from snapfs.service import snapfs_v1_pb2_grpc, wire
from snapfs.service.connection import Connection
from snapfs.service.records import Change, DaemonRecord, Problem, QuotaRecord, Record


class Client(Connection):
    """snapfs.v1 over one connection."""

    def __init__(self, address: Path, *, timeout_s: float = 60) -> None:
        super().__init__(address, timeout_s=timeout_s)
        self._stub = snapfs_v1_pb2_grpc.SnapfsStub(self._channel)

    def prepare(self, key: str, parent: str = "", labels: Labels | None = None) -> list[Mount]:
        """Make a writable snapshot over `parent`; return how to mount it."""
        request = pb.PrepareRequest(key=key, parent=parent, labels=labels)
        return [wire.mount_from_wire(it) for it in self._call(self._stub.Prepare, request).mounts]

    def view(self, key: str, parent: str = "", labels: Labels | None = None) -> list[Mount]:
        """Make a read-only look at `parent`; return how to mount it."""
        request = pb.ViewRequest(key=key, parent=parent, labels=labels)
        return [wire.mount_from_wire(it) for it in self._call(self._stub.View, request).mounts]

    def mounts(self, key: str) -> list[Mount]:
        """Return how to mount an active snapshot or a view."""
        answer = self._call(self._stub.Mounts, pb.MountsRequest(key=key))
        return [wire.mount_from_wire(it) for it in answer.mounts]

    def commit(self, key: str, name: str, labels: Labels | None = None, parent: str = "") -> Record:
        """Turn the active snapshot `key` into the committed one `name`; durable on return."""
        request = pb.CommitRequest(key=key, name=name, labels=labels, parent=parent)
        return wire.record_from_wire(self._call(self._stub.Commit, request).snapshot)

    def remove(self, name: str) -> None:
        """Remove a snapshot without children; its directory may be deleted later."""
        self._call(self._stub.Remove, pb.RemoveRequest(name=name))

    def info(self, name: str) -> Record:
        """Return one snapshot, measured."""
        answer = self._call(self._stub.Info, pb.InfoRequest(name=name))
        return wire.record_from_wire(answer.snapshot)

    def list(self, filters: Sequence[str] = (), *, measure: bool = False) -> Iterator[Record]:
        """Yield the snapshots that match any filter; `measure` walks active ones for usage."""
        request = pb.ListRequest(filters=filters, measure=measure)
        for answer in self._stream(self._stub.List, request):
            yield from map(wire.record_from_wire, answer.snapshots)

    def update(self, name: str, labels: Labels, fieldpaths: Sequence[str] = ()) -> Record:
        """Set labels: all of them, or those that `fieldpaths` (`labels.KEY`) name."""
        request = pb.UpdateRequest(name=name, labels=labels)
        request.update_mask.paths.extend(fieldpaths)
        return wire.record_from_wire(self._call(self._stub.Update, request).snapshot)

    def usage(self, name: str) -> Usage:
        """Return a snapshot's own data, parents excluded."""
        answer = self._call(self._stub.Usage, pb.UsageRequest(name=name))
        return wire.usage_from_wire(answer.usage)

    def quota(self, name: str) -> QuotaRecord:
        """Return what an active snapshot may take, and takes."""
        answer = self._call(self._stub.Quota, pb.QuotaRequest(name=name))
        return wire.quota_record_from_wire(answer)

    def set_quota(
        self, name: str, *, size_bytes: int | None = None, inodes: int | None = None
    ) -> QuotaRecord:
        """Change what an active snapshot may take: None leaves a limit, 0 takes it away."""
        request = pb.SetQuotaRequest(name=name, size_bytes=size_bytes, inodes=inodes)
        return wire.quota_record_from_wire(self._call(self._stub.SetQuota, request))

    def diff(self, name: str) -> Iterator[Change]:
        """Yield the paths of a snapshot that differ from its parent's."""
        for answer in self._stream(self._stub.Diff, pb.DiffRequest(name=name)):
            yield from map(wire.change_from_wire, answer.changes)

    def status(self) -> DaemonRecord:
        """Return what the daemon says of itself."""
        return wire.status_from_wire(self._call(self._stub.Status, pb.StatusRequest()))

    def fsck(self, *, repair: bool = False) -> tuple[Problem, ...]:
        """Compare metadata and layer directories; return what was found, and mended."""
        answer = self._call(self._stub.Fsck, pb.FsckRequest(repair=repair))
        return tuple(map(wire.problem_from_wire, answer.problems))

    def cleanup(self) -> None:
        """Delete now what removals left for later."""
        self._call(self._stub.Cleanup, pb.CleanupRequest())
