"""Mounts and snapshots as containerd's messages have them, and who calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import grpc

from snapfs.metadata import Context
from snapfs.model import (
    Active,
    Committed,
    DataLoss,
    FailedPrecondition,
    Kind,
    Mount,
    Snapshot,
    SnapshotId,
    View,
)
from snapfs.service.convert import time_ns, timestamp
from snapfs_containerd import mount_pb2, snapshots_pb2

NAMESPACE_HEADER = "containerd-namespace"
LEASE_HEADER = "containerd-lease"

_OF_KIND: Mapping[int, type[Snapshot]] = {
    Kind.VIEW.value: View,
    Kind.ACTIVE.value: Active,
    Kind.COMMITTED.value: Committed,
}


def caller(context: grpc.ServicerContext) -> Context:
    """Return in which namespace, and under which lease, a call is made."""
    namespace = named(context, NAMESPACE_HEADER)
    if not namespace:
        raise FailedPrecondition(f"the call names no namespace; send {NAMESPACE_HEADER}")
    return Context(namespace, named(context, LEASE_HEADER))


def named(context: grpc.ServicerContext, header: str) -> str:
    """Return what a call says in a header, "" for nothing."""
    found = (str(value) for key, value in context.invocation_metadata() or () if key == header)
    return next(found, "")


def mount_to_wire(mount: Mount) -> mount_pb2.Mount:
    return mount_pb2.Mount(
        type=mount.type, source=mount.source, target=mount.target, options=mount.options
    )


def mounts_from_wire(given: Iterable[mount_pb2.Mount]) -> list[Mount]:
    return [
        Mount(type=it.type, source=it.source, target=it.target, options=tuple(it.options))
        for it in given
    ]


def info_to_wire(snapshot: Snapshot) -> snapshots_pb2.Info:
    return snapshots_pb2.Info(
        name=snapshot.name,
        parent=snapshot.parent,
        kind=snapshots_pb2.Kind.ValueType(snapshot.kind.value),
        created_at=timestamp(snapshot.created_ns),
        updated_at=timestamp(snapshot.updated_ns),
        labels=snapshot.labels,
    )


def snapshot_from_wire(info: snapshots_pb2.Info) -> Snapshot:
    """Return a snapshot of another service, whose ids nobody tells."""
    kind = _OF_KIND.get(info.kind)
    if kind is None:
        raise DataLoss(f"snapshot {info.name!r} is of kind {info.kind}, which nobody knows")
    return kind(
        id=SnapshotId(0),
        name=info.name,
        parent=info.parent,
        labels=dict(info.labels),
        created_ns=time_ns(info.created_at),
        updated_ns=time_ns(info.updated_at),
    )
