"""snapfs.v1 messages from our records and back; nothing is lost either way."""

from __future__ import annotations

import os
from pathlib import Path
from typing import assert_never

from snapfs.model import (
    Active,
    Committed,
    Internal,
    Kind,
    LaneName,
    Mount,
    Quota,
    Snapshot,
    SnapshotId,
    Unbound,
    Usage,
    View,
)
from snapfs.service import snapfs_v1_pb2 as pb
from snapfs.service.convert import time_ns, timestamp
from snapfs.service.records import (
    Change,
    ChangeKind,
    DaemonRecord,
    LaneRecord,
    Problem,
    QuotaRecord,
    Record,
    Requests,
)
from snapfs.service.snapshotter import ChangedPath, FoundProblem

_CHANGE_TO_WIRE = {
    ChangeKind.ADDED: pb.CHANGE_KIND_ADDED,
    ChangeKind.CHANGED: pb.CHANGE_KIND_CHANGED,
    ChangeKind.DELETED: pb.CHANGE_KIND_DELETED,
}
_CHANGE_FROM_WIRE = {number: kind for kind, number in _CHANGE_TO_WIRE.items()}


def mount_to_wire(mount: Mount) -> pb.Mount:
    return pb.Mount(
        type=mount.type, source=mount.source, target=mount.target, options=mount.options
    )


def mount_from_wire(mount: pb.Mount) -> Mount:
    return Mount(
        type=mount.type,
        source=mount.source,
        target=mount.target,
        options=tuple(mount.options),
    )


def usage_to_wire(usage: Usage) -> pb.Usage:
    return pb.Usage(size_bytes=usage.size_bytes, inodes=usage.inodes)


def quota_to_wire(quota: Quota) -> pb.Quota:
    return pb.Quota(size_bytes=quota.size_bytes, inodes=quota.inodes)


def quota_from_wire(quota: pb.Quota) -> Quota:
    return Quota(
        size_bytes=quota.size_bytes if quota.HasField("size_bytes") else None,
        inodes=quota.inodes if quota.HasField("inodes") else None,
    )


def unbound_to_wire(unbound: Unbound) -> pb.Unbound:
    return pb.Unbound(files=unbound.files, paths=unbound.paths)


def quota_record_from_wire(answer: pb.QuotaResponse | pb.SetQuotaResponse) -> QuotaRecord:
    return QuotaRecord(
        limits=quota_from_wire(answer.quota),
        used=usage_from_wire(answer.usage),
        unbound=Unbound(answer.unbound.files, tuple(answer.unbound.paths)),
    )


def usage_from_wire(usage: pb.Usage) -> Usage:
    return Usage(size_bytes=usage.size_bytes, inodes=usage.inodes)


def record_to_wire(record: Record) -> pb.Snapshot:
    snapshot = record.snapshot
    return pb.Snapshot(
        id=snapshot.id,
        name=snapshot.name,
        kind=pb.Kind.ValueType(snapshot.kind.value),
        parent=snapshot.parent,
        parent_ids=snapshot.parent_ids,
        labels=snapshot.labels,
        created_at=timestamp(snapshot.created_ns),
        updated_at=timestamp(snapshot.updated_ns),
        usage=None if record.usage is None else usage_to_wire(record.usage),
        layer_path=str(record.layer),
        mounted_at=[os.fsencode(target) for target in record.mounted_at],
        digest=snapshot.digest if isinstance(snapshot, Committed) else b"",
        lane="" if isinstance(snapshot, Committed) else snapshot.lane,
    )


def record_from_wire(message: pb.Snapshot) -> Record:
    return Record(
        snapshot=_snapshot_from_wire(message),
        usage=usage_from_wire(message.usage) if message.HasField("usage") else None,
        layer=Path(message.layer_path),
        mounted_at=tuple(Path(os.fsdecode(target)) for target in message.mounted_at),
    )


def _snapshot_from_wire(message: pb.Snapshot) -> Snapshot:
    number = SnapshotId(message.id)
    parent_ids = tuple(map(SnapshotId, message.parent_ids))
    labels = dict(message.labels)
    created_ns, updated_ns = time_ns(message.created_at), time_ns(message.updated_at)
    match _kind_from_wire(message.kind):
        case Kind.ACTIVE:
            return Active(
                id=number,
                name=message.name,
                parent=message.parent,
                parent_ids=parent_ids,
                labels=labels,
                created_ns=created_ns,
                updated_ns=updated_ns,
                lane=LaneName(message.lane),
            )
        case Kind.VIEW:
            return View(
                id=number,
                name=message.name,
                parent=message.parent,
                parent_ids=parent_ids,
                labels=labels,
                created_ns=created_ns,
                updated_ns=updated_ns,
                lane=LaneName(message.lane),
            )
        case Kind.COMMITTED:
            return Committed(
                id=number,
                name=message.name,
                parent=message.parent,
                parent_ids=parent_ids,
                labels=labels,
                created_ns=created_ns,
                updated_ns=updated_ns,
                usage=usage_from_wire(message.usage),
                digest=message.digest,
            )
        case never:
            assert_never(never)


def _kind_from_wire(number: int) -> Kind:
    try:
        return Kind(number)
    except ValueError:
        raise Internal(
            f"the service sent snapshot kind {number}, which this client does not know; "
            "use the client of the service's version"
        ) from None


def change_to_wire(change: ChangedPath) -> pb.Change:
    return pb.Change(kind=_CHANGE_TO_WIRE[ChangeKind(change.kind)], path=change.path)


def change_from_wire(change: pb.Change) -> Change:
    return Change(_CHANGE_FROM_WIRE[change.kind], change.path)


def problem_to_wire(problem: FoundProblem) -> pb.Problem:
    return pb.Problem(
        kind=problem.kind,
        subject=problem.subject,
        message=problem.message,
        repaired=problem.repaired,
    )


def problem_from_wire(problem: pb.Problem) -> Problem:
    return Problem(
        kind=problem.kind,
        subject=problem.subject,
        message=problem.message,
        repaired=problem.repaired,
    )


def status_to_wire(record: DaemonRecord) -> pb.StatusResponse:
    return pb.StatusResponse(
        version=record.version,
        pid=record.pid,
        started_at=timestamp(record.started_ns),
        root=str(record.root),
        state=str(record.state),
        unpack=record.unpack,
        revision=record.revision,
        active=record.active,
        views=record.views,
        committed=record.committed,
        pending_removals=record.pending_removals,
        warnings=record.warnings,
        lanes=map(_lane_to_wire, record.lanes),
    )


def status_from_wire(message: pb.StatusResponse) -> DaemonRecord:
    return DaemonRecord(
        version=message.version,
        pid=message.pid,
        started_ns=time_ns(message.started_at),
        root=Path(message.root),
        state=Path(message.state),
        unpack=message.unpack,
        revision=message.revision,
        active=message.active,
        views=message.views,
        committed=message.committed,
        pending_removals=message.pending_removals,
        warnings=tuple(message.warnings),
        lanes=tuple(map(_lane_from_wire, message.lanes)),
    )


def _lane_to_wire(lane: LaneRecord) -> pb.Lane:
    return pb.Lane(
        name=lane.name,
        mountpoint=str(lane.mountpoint),
        state=lane.state,
        worker_pid=lane.worker_pid or 0,
        restarts=lane.restarts,
        mode=lane.mode,
        features=dict(lane.features),
        counts=dict(lane.counts),
        requests={
            name: pb.Requests(fast=it.fast, python=it.python) for name, it in lane.requests.items()
        },
    )


def _lane_from_wire(lane: pb.Lane) -> LaneRecord:
    return LaneRecord(
        name=lane.name,
        mountpoint=Path(lane.mountpoint),
        mode=lane.mode,
        state=lane.state,
        worker_pid=lane.worker_pid or None,
        restarts=lane.restarts,
        features=dict(lane.features),
        counts=dict(lane.counts),
        requests={name: Requests(it.fast, it.python) for name, it in lane.requests.items()},
    )
