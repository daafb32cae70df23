"""The tree of a set, as functions of a transaction: rows by id, ancestors, common points."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from snapfs.store import ReadTx, Row
from snapfs.volumes.errors import VolumeSnapshotNotFound
from snapfs.volumes.ids import VolumeSetId, VolumeSnapshotId
from snapfs.volumes.schema import (
    BASE_EDGE,
    BRANCHES,
    PARENT_EDGE,
    SNAPSHOTS,
    TIP_EDGE,
    BranchBody,
    SnapshotBody,
)

SnapshotRow: TypeAlias = Row[SnapshotBody]
BranchRow: TypeAlias = Row[BranchBody]


def find(tx: ReadTx, set_id: VolumeSetId, snapshot: VolumeSnapshotId) -> SnapshotRow:
    """Return the row of a snapshot, or raise VolumeSnapshotNotFound."""
    row = tx.get(SNAPSHOTS, set_id, snapshot)
    if row is None:
        raise VolumeSnapshotNotFound(f"volume snapshot {snapshot} does not exist in set {set_id}")
    return row


def by_oid(tx: ReadTx, oid: int) -> SnapshotRow:
    """Return the row of a snapshot that another row refers to."""
    row = tx.by_oid(SNAPSHOTS, oid)
    if row is None:
        raise VolumeSnapshotNotFound(f"volume snapshot row {oid} does not exist; run `snapfs fsck`")
    return row


def upward(tx: ReadTx, row: SnapshotRow) -> Iterator[SnapshotRow]:
    """Yield a snapshot and its ancestors, the root last."""
    yield row
    while row.body.parent:
        row = by_oid(tx, row.body.parent)
        yield row


def root(tx: ReadTx, row: SnapshotRow) -> SnapshotRow:
    """Return the root of the tree that a snapshot is in."""
    while row.body.parent:
        row = by_oid(tx, row.body.parent)
    return row


def is_ancestor(tx: ReadTx, older: SnapshotRow, newer: SnapshotRow) -> bool:
    """Say whether `newer` is `older` or grew from it; reads no more than the depth between."""
    while newer.body.depth > older.body.depth:
        newer = by_oid(tx, newer.body.parent)
    return newer.oid == older.oid


def common(tx: ReadTx, one: SnapshotRow, other: SnapshotRow) -> SnapshotRow | None:
    """Return the newest snapshot that both grew from, or None when they have different roots."""
    while one.oid != other.oid:
        if one.body.depth < other.body.depth:
            one, other = other, one
        if not one.body.parent:
            return None
        one = by_oid(tx, one.body.parent)
    return one


def children(tx: ReadTx, row: SnapshotRow) -> Iterator[SnapshotRow]:
    """Yield the direct children of a snapshot."""
    for oid in tx.referrers(row.oid, PARENT_EDGE):
        yield by_oid(tx, oid)


def has_children(tx: ReadTx, row: SnapshotRow) -> bool:
    return tx.has_referrers(row.oid, PARENT_EDGE)


def count_children(tx: ReadTx, row: SnapshotRow) -> int:
    return sum(1 for _ in tx.referrers(row.oid, PARENT_EDGE))


def branches_at(tx: ReadTx, row: SnapshotRow) -> list[BranchRow]:
    """Return the branches whose tip a snapshot is."""
    found = (tx.by_oid(BRANCHES, oid) for oid in tx.referrers(row.oid, TIP_EDGE))
    return [branch for branch in found if branch is not None]


def is_tip(tx: ReadTx, row: SnapshotRow) -> bool:
    return tx.has_referrers(row.oid, TIP_EDGE)


def has_volumes(tx: ReadTx, row: SnapshotRow) -> bool:
    """Say whether a volume's data grew from this snapshot directly."""
    return tx.has_referrers(row.oid, BASE_EDGE)


def by_short(tx: ReadTx, set_id: VolumeSetId, digits: str) -> list[SnapshotRow]:
    """Return the snapshots whose short id begins with `digits`."""
    return list(tx.find_prefix(SNAPSHOTS, "short", digits.encode(), scope=set_id))
