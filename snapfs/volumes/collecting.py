"""Which snapshots nothing has any more, as functions of a transaction.

A snapshot is kept by a child, by a branch that ends there, by a volume that grew from it, and by
every entry of an anchor that names it and has not expired. So a reset or the removal of a branch
deletes nothing that others use, and what it does let go stays until its history expires.
"""

from __future__ import annotations

from collections.abc import Iterator

from snapfs.anchors import TARGET_EDGE
from snapfs.model import FailedPrecondition
from snapfs.store import ReadTx, WriteTx
from snapfs.volumes import ancestry, snapshots
from snapfs.volumes.ancestry import SnapshotRow
from snapfs.volumes.ids import VolumeSetId, VolumeSnapshotId
from snapfs.volumes.schema import BASE_EDGE, PARENT_EDGE, SCOPE, SETS, SNAPSHOTS, TIP_EDGE

_KEEPING = (PARENT_EDGE, TIP_EDGE, BASE_EDGE, TARGET_EDGE)


def is_kept(tx: ReadTx, row: SnapshotRow) -> bool:
    """Say whether anything has a snapshot."""
    return any(tx.has_referrers(row.oid, kind) for kind in _KEEPING)


def unkept(tx: ReadTx) -> Iterator[SnapshotRow]:
    """Yield the leaves that nothing has; their parents may follow once they are gone."""
    for each in tx.rows(SETS, SCOPE):
        for row in tx.rows(SNAPSHOTS, each.name):
            if not is_kept(tx, row):
                yield row


def collect(tx: WriteTx, row: SnapshotRow) -> list[SnapshotRow]:
    """Erase a snapshot that nothing has; return its parent if nothing has that now.

    Raises FailedPrecondition when something has it by now, NotFound when it is gone.
    """
    current = ancestry.find(tx, VolumeSetId(row.scope), VolumeSnapshotId(row.name))
    if is_kept(tx, current):
        raise FailedPrecondition(f"volume snapshot {row.name} is in use by now")
    parent = ancestry.by_oid(tx, current.body.parent) if current.body.parent else None
    snapshots.erase(tx, current)
    return [parent] if parent is not None and not is_kept(tx, parent) else []
