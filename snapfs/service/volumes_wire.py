"""The volumes' part of snapfs.v1: messages from records and back; nothing is lost either way."""

from __future__ import annotations

from snapfs.model import Usage
from snapfs.service import volumes_v1_pb2 as pb
from snapfs.service.convert import time_ns, timestamp
from snapfs.volumes import (
    Branch,
    Described,
    Manner,
    Taken,
    Volume,
    VolumeSet,
    VolumeSnapshot,
)
from snapfs.volumes.ids import BranchId, VolumeId, VolumeSetId, VolumeSnapshotId
from snapfs.volumes.queries import Query, Sort


def snapshot_to_wire(it: VolumeSnapshot) -> pb.VolumeSnapshot:
    return pb.VolumeSnapshot(
        id=it.id,
        set_id=it.set_id,
        parent=it.parent or "",
        name=it.name,
        description=it.description,
        attributes=dict(it.attributes),
        creator=it.creator,
        owner=it.owner,
        created_at=timestamp(it.created_ns),
        modified_at=timestamp(it.modified_ns),
        size_bytes=it.size_bytes,
        blob=it.blob,
        depth=it.depth,
        children=it.children,
        branches=it.branches,
        revision=it.revision,
    )


def snapshot_from_wire(message: pb.VolumeSnapshot) -> VolumeSnapshot:
    return VolumeSnapshot(
        id=VolumeSnapshotId(message.id),
        set_id=VolumeSetId(message.set_id),
        parent=VolumeSnapshotId(message.parent) if message.parent else None,
        name=message.name,
        description=message.description,
        attributes=dict(message.attributes),
        creator=message.creator,
        owner=message.owner,
        created_ns=time_ns(message.created_at),
        modified_ns=time_ns(message.modified_at),
        size_bytes=message.size_bytes,
        blob=message.blob,
        depth=message.depth,
        children=message.children,
        branches=tuple(message.branches),
        revision=message.revision,
    )


def branch_to_wire(it: Branch) -> pb.Branch:
    return pb.Branch(
        id=it.id,
        set_id=it.set_id,
        name=it.name,
        tip=it.tip,
        has_child=it.has_child,
        created_at=timestamp(it.created_ns),
        modified_at=timestamp(it.modified_ns),
        revision=it.revision,
    )


def branch_from_wire(message: pb.Branch) -> Branch:
    return Branch(
        id=BranchId(message.id),
        set_id=VolumeSetId(message.set_id),
        name=message.name,
        tip=VolumeSnapshotId(message.tip),
        has_child=message.has_child,
        created_ns=time_ns(message.created_at),
        modified_ns=time_ns(message.modified_at),
        revision=message.revision,
    )


def set_to_wire(it: VolumeSet) -> pb.VolumeSet:
    last = it.last_snapshot_ns
    return pb.VolumeSet(
        id=it.id,
        name=it.name,
        prefix=it.prefix,
        description=it.description,
        attributes=dict(it.attributes),
        creator=it.creator,
        owner=it.owner,
        created_at=timestamp(it.created_ns),
        modified_at=timestamp(it.modified_ns),
        size_bytes=it.size_bytes,
        snapshots=it.snapshots,
        branches=it.branches,
        last_snapshot_at=None if last is None else timestamp(last),
        revision=it.revision,
    )


def set_from_wire(message: pb.VolumeSet) -> VolumeSet:
    has_last = message.HasField("last_snapshot_at")
    return VolumeSet(
        id=VolumeSetId(message.id),
        name=message.name,
        prefix=message.prefix,
        description=message.description,
        attributes=dict(message.attributes),
        creator=message.creator,
        owner=message.owner,
        created_ns=time_ns(message.created_at),
        modified_ns=time_ns(message.modified_at),
        size_bytes=message.size_bytes,
        snapshots=message.snapshots,
        branches=message.branches,
        last_snapshot_ns=time_ns(message.last_snapshot_at) if has_last else None,
        revision=message.revision,
    )


_SORTS = {
    Sort.NAME: pb.ListSetsRequest.SORT_NAME,
    Sort.TIME: pb.ListSetsRequest.SORT_TIME,
    Sort.SIZE: pb.ListSetsRequest.SORT_SIZE,
}
_SORTED_BY = {number: sort for sort, number in _SORTS.items()}


def query_to_wire(query: Query) -> pb.ListSetsRequest:
    """Return what lists sets; ids are not asked for over the wire."""
    return pb.ListSetsRequest(
        match=query.match,
        owner=query.owner,
        attributes=dict(query.attributes or {}),
        sort=_SORTS[query.sort],
        descending=query.descending,
        offset=query.offset,
        limit=query.limit,
    )


def query_from_wire(message: pb.ListSetsRequest) -> Query:
    return Query(
        match=message.match,
        owner=message.owner,
        attributes=dict(message.attributes) or None,
        sort=_SORTED_BY.get(message.sort, Sort.NAME),
        descending=message.descending,
        offset=message.offset,
        limit=message.limit if message.HasField("limit") else None,
    )


def given(request: pb.EditSetRequest | pb.EditSnapshotRequest, field: str) -> str | None:
    """Return a field that is to be changed; None for one that was left out."""
    return getattr(request, field) if request.HasField(field) else None  # type: ignore[arg-type]


def volume_to_wire(it: Volume) -> pb.Volume:
    return pb.Volume(
        id=it.id,
        name=it.name,
        set_id=it.set_id,
        base=it.base or "",
        branch=it.branch or "",
        next_branch=it.next_branch,
        mount_path=it.mount_path,
        is_mounted=it.is_mounted,
        attributes=dict(it.attributes),
        size_bytes=it.size_bytes,
        key=it.key,
        created_at=timestamp(it.created_ns),
        revision=it.revision,
    )


def volume_from_wire(message: pb.Volume) -> Volume:
    return Volume(
        id=VolumeId(message.id),
        name=message.name,
        set_id=VolumeSetId(message.set_id),
        base=VolumeSnapshotId(message.base) if message.base else None,
        branch=BranchId(message.branch) if message.branch else None,
        next_branch=message.next_branch,
        mount_path=message.mount_path,
        is_mounted=message.is_mounted,
        attributes=dict(message.attributes),
        size_bytes=message.size_bytes if message.HasField("size_bytes") else None,
        key=message.key,
        created_ns=time_ns(message.created_at),
        revision=message.revision,
    )


def described_to_wire(it: Described) -> pb.VolumeResponse:
    return pb.VolumeResponse(
        volume=volume_to_wire(it.volume),
        set=set_to_wire(it.set),
        branch_name=it.branch,
        used_bytes=it.usage.size_bytes,
        used_inodes=it.usage.inodes,
        mounted_at=it.mounted_at,
    )


def described_from_wire(message: pb.VolumeResponse) -> Described:
    return Described(
        volume=volume_from_wire(message.volume),
        set=set_from_wire(message.set),
        branch=message.branch_name,
        usage=Usage(message.used_bytes, message.used_inodes),
        mounted_at=message.mounted_at,
    )


def taken_to_wire(it: Taken) -> pb.SnapshotVolumeResponse:
    return pb.SnapshotVolumeResponse(
        snapshot=snapshot_to_wire(it.snapshot),
        branch=branch_to_wire(it.branch),
        pause_ns=it.pause_ns,
        files=it.files,
        copied_bytes=it.copied_bytes,
    )


def taken_from_wire(message: pb.SnapshotVolumeResponse) -> Taken:
    return Taken(
        snapshot=snapshot_from_wire(message.snapshot),
        branch=branch_from_wire(message.branch),
        pause_ns=message.pause_ns,
        files=message.files,
        copied_bytes=message.copied_bytes,
    )


def manner_to_wire(it: Manner) -> pb.Manner:
    return pb.Manner(signal=it.signal, pause=it.pause)


def manner_from_wire(message: pb.Manner) -> Manner:
    return Manner(signal=message.signal, pause=message.pause)
