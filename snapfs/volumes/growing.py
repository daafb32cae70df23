"""How a set's tree grows, as functions of a transaction: fork, extend, import.

Snapshots come oldest first: each is the parent of the next. Those that are there already are passed
over, so an import may be repeated. Depth follows from the parent.
"""

from __future__ import annotations

from collections.abc import Sequence

from snapfs.model import AlreadyExists, FailedPrecondition, InvalidArgument
from snapfs.store import WriteTx
from snapfs.volumes import ancestry, branches, sets, tombstones
from snapfs.volumes.ancestry import BranchRow, SnapshotRow
from snapfs.volumes.ids import BranchId, VolumeSetId, VolumeSnapshotId, check_id
from snapfs.volumes.model import NO_NOTE, NewSnapshot, Note
from snapfs.volumes.names import check_attributes, check_description, check_person
from snapfs.volumes.schema import BUSHES, SNAPSHOTS, BushBody, SnapshotBody


def fork(
    tx: WriteTx,
    set_id: VolumeSetId,
    parent: VolumeSnapshotId | None,
    snapshots: Sequence[NewSnapshot],
    branch: BranchId,
    name: str = "",
    why: Note = NO_NOTE,
    *,
    tracking: bool = False,
) -> BranchRow:
    """Let a new branch grow from `parent`, None for a new root; the last snapshot is its tip.

    Without snapshots the parent is the tip. An imported branch is the same with its own id.
    Raises VolumeSetNotFound, VolumeSnapshotNotFound for the parent, AlreadyExists for the branch.
    """
    tip = grow(tx, set_id, parent, snapshots)
    set_oid = sets.find(tx, set_id).oid
    return branches.create(tx, set_oid, branch, name, tip, why, tracking=tracking)


def extend(
    tx: WriteTx,
    set_id: VolumeSetId,
    branch: BranchId,
    parent: VolumeSnapshotId,
    snapshots: Sequence[NewSnapshot],
    why: Note = NO_NOTE,
) -> BranchRow:
    """Let a branch go on from its tip, which must be `parent`; the last snapshot is the new tip.

    Raises BranchNotFound, SnapshotImportMismatch when the tip is another.
    """
    row = branches.find(tx, set_id, branch)
    if row.body.tip_id != parent:
        raise branches.mismatch(row, parent)
    return branches.move(tx, row, grow(tx, set_id, parent, snapshots), why)


def grow(
    tx: WriteTx,
    set_id: VolumeSetId,
    parent: VolumeSnapshotId | None,
    snapshots: Sequence[NewSnapshot],
) -> SnapshotRow:
    """Let snapshots grow from `parent`, None for a new root; return the last, or the parent.

    No branch has them: the caller gives them one, or something else that keeps them, in the same
    transaction.
    """
    set_oid = sets.find(tx, set_id).oid
    last = None if parent is None else ancestry.find(tx, set_id, parent)
    for new in snapshots:
        last = _add(tx, set_id, set_oid, last, new)
    if last is None:
        raise InvalidArgument("a branch needs a snapshot or a parent; give one")
    return last


def _add(
    tx: WriteTx, set_id: VolumeSetId, set_oid: int, parent: SnapshotRow | None, new: NewSnapshot
) -> SnapshotRow:
    known = tx.get(SNAPSHOTS, set_id, new.id)
    if known is not None:
        return _check_known(known, parent)
    row = tx.create(
        SNAPSHOTS, set_id, new.id, _body(tx, set_oid, parent, new), created_ns=new.created_ns
    )
    tombstones.lift(tx, "snapshot", new.id, set_id)
    if parent is None:
        bush = BushBody(set=set_oid, root=row.oid, server=tx.uuid.hex())
        tx.create(BUSHES, set_id, new.id, bush)
    return row


def _check_known(known: SnapshotRow, parent: SnapshotRow | None) -> SnapshotRow:
    if known.body.parent != (parent.oid if parent else 0):
        raise AlreadyExists(
            f"volume snapshot {known.name} already exists with the parent "
            f"{known.body.parent_id or 'none'}"
        )
    return known


def _body(tx: WriteTx, set_oid: int, parent: SnapshotRow | None, new: NewSnapshot) -> SnapshotBody:
    made_ns = tx.now_ns if new.created_ns is None else new.created_ns
    return SnapshotBody(
        id=check_id(new.id, "volume snapshot"),
        set=set_oid,
        parent=parent.oid if parent else 0,
        parent_id=parent.name if parent else "",
        depth=parent.body.depth + 1 if parent else 1,
        name=check_description(new.name),
        description=check_description(new.description),
        attributes=check_attributes(new.attributes),
        creator=check_person(new.creator),
        owner=check_person(new.owner or new.creator),
        modified_ns=made_ns if new.modified_ns is None else new.modified_ns,
    )


def place(tx: WriteTx, set_id: VolumeSetId, root: VolumeSnapshotId, server: str) -> None:
    """Say that another store holds the tree of a root snapshot."""
    row = tx.get(BUSHES, set_id, root)
    if row is None:
        raise FailedPrecondition(f"volume snapshot {root} is not a root; give the root of its tree")
    tx.update(row, BushBody(set=row.body.set, root=row.body.root, server=server))
