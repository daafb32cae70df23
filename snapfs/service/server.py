"""The snapfs.v1 server: translate, call the snapshotter, translate back. Holds no rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar, assert_never

import grpc
import structlog

from snapfs import model
from snapfs.model import (
    Active,
    Committed,
    Labels,
    NotFound,
    SnapfsError,
    Snapshot,
    SnapshotId,
    View,
)
from snapfs.service import mounted, snapfs_v1_pb2, snapfs_v1_pb2_grpc, wire
from snapfs.service.convert import batches
from snapfs.service.records import DaemonRecord, Record
from snapfs.service.snapshotter import Administered
from snapfs.service.status import answers

SERVICE = snapfs_v1_pb2.DESCRIPTOR.services_by_name["Snapfs"].full_name

_log = structlog.get_logger(__name__)

_MOUNT_TABLE = Path("/proc/self/mountinfo")

AboutQuota = TypeVar("AboutQuota", snapfs_v1_pb2.QuotaResponse, snapfs_v1_pb2.SetQuotaResponse)
"""What says how much a snapshot may take, and takes."""


def register(
    server: grpc.Server,
    snapshotter: Administered,
    *,
    describe: Callable[[], DaemonRecord],
    root: Path,
    state: Path,
) -> str:
    """Add the service to `server`; return its full name.

    `describe` says what the daemon is doing; `root` and `state` are the daemon's directories.
    """
    servicer = SnapfsServicer(
        snapshotter, describe=describe, layers=root / "layers", lanes=state / "mnt"
    )
    snapfs_v1_pb2_grpc.add_SnapfsServicer_to_server(servicer, server)
    return SERVICE


class SnapfsServicer(snapfs_v1_pb2_grpc.SnapfsServicer):
    """snapfs.v1 over one snapshotter."""

    def __init__(
        self,
        snapshotter: Administered,
        *,
        describe: Callable[[], DaemonRecord],
        layers: Path,
        lanes: Path,
    ) -> None:
        self._snapshotter = snapshotter
        self._describe = describe
        self._layers = layers
        self._lanes = lanes

    @answers
    def Prepare(
        self, request: snapfs_v1_pb2.PrepareRequest, context: grpc.ServicerContext
    ) -> snapfs_v1_pb2.PrepareResponse:
        mounts = self._snapshotter.prepare(request.key, request.parent, dict(request.labels))
        return snapfs_v1_pb2.PrepareResponse(mounts=map(wire.mount_to_wire, mounts))

    @answers
    def View(
        self, request: snapfs_v1_pb2.ViewRequest, context: grpc.ServicerContext
    ) -> snapfs_v1_pb2.ViewResponse:
        mounts = self._snapshotter.view(request.key, request.parent, dict(request.labels))
        return snapfs_v1_pb2.ViewResponse(mounts=map(wire.mount_to_wire, mounts))

    @answers
    def Mounts(
        self, request: snapfs_v1_pb2.MountsRequest, context: grpc.ServicerContext
    ) -> snapfs_v1_pb2.MountsResponse:
        mounts = self._snapshotter.mounts(request.key)
        return snapfs_v1_pb2.MountsResponse(mounts=map(wire.mount_to_wire, mounts))

    @answers
    def Commit(
        self, request: snapfs_v1_pb2.CommitRequest, context: grpc.ServicerContext
    ) -> snapfs_v1_pb2.CommitResponse:
        committed = self._snapshotter.commit(
            request.key, request.name, dict(request.labels), parent=request.parent
        )
        return snapfs_v1_pb2.CommitResponse(snapshot=self._answer(committed, measure=True))

    @answers
    def Remove(
        self, request: snapfs_v1_pb2.RemoveRequest, context: grpc.ServicerContext
    ) -> snapfs_v1_pb2.RemoveResponse:
        self._snapshotter.remove(request.name)
        return snapfs_v1_pb2.RemoveResponse()

    @answers
    def Info(
        self, request: snapfs_v1_pb2.InfoRequest, context: grpc.ServicerContext
    ) -> snapfs_v1_pb2.InfoResponse:
        snapshot = self._snapshotter.stat(request.name)
        return snapfs_v1_pb2.InfoResponse(snapshot=self._answer(snapshot, measure=True))

    @answers
    def List(
        self, request: snapfs_v1_pb2.ListRequest, context: grpc.ServicerContext
    ) -> Iterator[snapfs_v1_pb2.ListResponse]:
        targets = self._targets()
        for batch in batches(self._snapshotter.walk(list(request.filters))):
            records = (self._record(it, targets, measure=request.measure) for it in batch)
            yield snapfs_v1_pb2.ListResponse(snapshots=map(wire.record_to_wire, records))

    @answers
    def Update(
        self, request: snapfs_v1_pb2.UpdateRequest, context: grpc.ServicerContext
    ) -> snapfs_v1_pb2.UpdateResponse:
        labels: Labels = dict(request.labels)
        snapshot = self._snapshotter.update(request.name, labels, tuple(request.update_mask.paths))
        return snapfs_v1_pb2.UpdateResponse(snapshot=self._answer(snapshot, measure=False))

    @answers
    def Usage(
        self, request: snapfs_v1_pb2.UsageRequest, context: grpc.ServicerContext
    ) -> snapfs_v1_pb2.UsageResponse:
        usage = self._snapshotter.usage(request.name)
        return snapfs_v1_pb2.UsageResponse(usage=wire.usage_to_wire(usage))

    @answers
    def Quota(
        self, request: snapfs_v1_pb2.QuotaRequest, context: grpc.ServicerContext
    ) -> snapfs_v1_pb2.QuotaResponse:
        quota = self._snapshotter.quota(request.name)
        return self._about_quota(snapfs_v1_pb2.QuotaResponse, request.name, quota)

    @answers
    def SetQuota(
        self, request: snapfs_v1_pb2.SetQuotaRequest, context: grpc.ServicerContext
    ) -> snapfs_v1_pb2.SetQuotaResponse:
        quota = self._snapshotter.set_quota(
            request.name,
            size_bytes=request.size_bytes if request.HasField("size_bytes") else None,
            inodes=request.inodes if request.HasField("inodes") else None,
        )
        return self._about_quota(snapfs_v1_pb2.SetQuotaResponse, request.name, quota)

    @answers
    def Diff(
        self, request: snapfs_v1_pb2.DiffRequest, context: grpc.ServicerContext
    ) -> Iterator[snapfs_v1_pb2.DiffResponse]:
        for batch in batches(self._snapshotter.diff(request.name)):
            yield snapfs_v1_pb2.DiffResponse(changes=map(wire.change_to_wire, batch))

    @answers
    def Status(
        self, request: snapfs_v1_pb2.StatusRequest, context: grpc.ServicerContext
    ) -> snapfs_v1_pb2.StatusResponse:
        return wire.status_to_wire(self._describe())

    @answers
    def Fsck(
        self, request: snapfs_v1_pb2.FsckRequest, context: grpc.ServicerContext
    ) -> snapfs_v1_pb2.FsckResponse:
        report = self._snapshotter.fsck(request.repair)
        return snapfs_v1_pb2.FsckResponse(problems=map(wire.problem_to_wire, report.problems))

    @answers
    def Cleanup(
        self, request: snapfs_v1_pb2.CleanupRequest, context: grpc.ServicerContext
    ) -> snapfs_v1_pb2.CleanupResponse:
        self._snapshotter.cleanup()
        return snapfs_v1_pb2.CleanupResponse()

    def _about_quota(self, response: type[AboutQuota], name: str, quota: model.Quota) -> AboutQuota:
        return response(
            quota=wire.quota_to_wire(quota),
            usage=wire.usage_to_wire(self._snapshotter.usage(name)),
            unbound=wire.unbound_to_wire(self._snapshotter.unbound(name)),
        )

    def _answer(self, snapshot: Snapshot, *, measure: bool) -> snapfs_v1_pb2.Snapshot:
        return wire.record_to_wire(self._record(snapshot, self._targets(), measure=measure))

    def _record(
        self,
        snapshot: Snapshot,
        targets: Mapping[SnapshotId, tuple[Path, ...]],
        *,
        measure: bool,
    ) -> Record:
        return Record(
            snapshot=snapshot,
            usage=self._usage(snapshot, measure=measure),
            layer=self._layers / str(snapshot.id) / "fs",
            mounted_at=targets.get(snapshot.id, ()),
        )

    def _usage(self, snapshot: Snapshot, *, measure: bool) -> model.Usage | None:
        match snapshot:
            case Committed():
                return snapshot.usage
            case View():
                return model.Usage()
            case Active():
                return self._measure(snapshot) if measure else None
        assert_never(snapshot)

    def _measure(self, snapshot: Active) -> model.Usage | None:
        try:
            return self._snapshotter.usage(snapshot.name)
        except NotFound:  # removed or committed since it was read
            return None
        except SnapfsError as error:  # one that cannot be measured must not hide the others
            _log.warning("snapshot.not_measured", key=snapshot.name, error=str(error))
            return None

    def _targets(self) -> Mapping[SnapshotId, tuple[Path, ...]]:
        entries = mounted.parse(_MOUNT_TABLE.read_bytes())
        return mounted.by_snapshot(entries, lanes=self._lanes, layers=self._layers)
