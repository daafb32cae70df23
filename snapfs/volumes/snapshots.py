"""Snapshots of a set, as functions of a transaction: show, change, data, delete."""

from __future__ import annotations

import msgspec

from snapfs.model import FailedPrecondition
from snapfs.snapshots.schema import SCOPE as DATA_SCOPE
from snapfs.snapshots.schema import SNAPSHOTS as DATA
from snapfs.store import ReadTx, WriteTx
from snapfs.volumes import ancestry, branches, sets, tombstones
from snapfs.volumes.ancestry import SnapshotRow
from snapfs.volumes.errors import BlobMismatch
from snapfs.volumes.ids import BranchId, NewId, VolumeSetId, VolumeSnapshotId
from snapfs.volumes.model import Attributes, Bush, Note, VolumeSnapshot
from snapfs.volumes.names import check_attributes, check_description, check_person
from snapfs.volumes.schema import BUSHES


def show(tx: ReadTx, row: SnapshotRow) -> VolumeSnapshot:
    """Return the record of a snapshot."""
    body = row.body
    return VolumeSnapshot(
        id=VolumeSnapshotId(row.name),
        set_id=VolumeSetId(row.scope),
        parent=VolumeSnapshotId(body.parent_id) if body.parent_id else None,
        name=body.name,
        description=body.description,
        attributes=body.attributes,
        creator=body.creator,
        owner=body.owner,
        created_ns=row.created_ns,
        modified_ns=body.modified_ns,
        size_bytes=body.size_bytes,
        blob=body.blob,
        depth=body.depth,
        children=ancestry.count_children(tx, row),
        branches=tuple(sorted(it.body.name for it in ancestry.branches_at(tx, row))),
        revision=row.spec_rev,
    )


def bush(tx: ReadTx, row: SnapshotRow) -> Bush:
    """Return which store holds the tree that a snapshot is in."""
    root = ancestry.root(tx, row)
    found = tx.get(BUSHES, row.scope, root.name)
    server = tx.uuid.hex() if found is None else found.body.server
    return Bush(set_id=VolumeSetId(row.scope), root=VolumeSnapshotId(root.name), server=server)


def edit(
    tx: WriteTx,
    row: SnapshotRow,
    *,
    name: str | None = None,
    description: str | None = None,
    attributes: Attributes | None = None,
    owner: str | None = None,
    modified_ns: int | None = None,
    expect_rev: int | None = None,
) -> SnapshotRow:
    """Change what travels of a snapshot; None leaves a field. `expect_rev`: Conflict if it moved.

    `modified_ns` is of a change that was made elsewhere; None for now.
    """
    body = row.body
    changed = msgspec.structs.replace(
        body,
        name=body.name if name is None else check_description(name),
        description=body.description if description is None else check_description(description),
        attributes=body.attributes if attributes is None else check_attributes(attributes),
        owner=body.owner if owner is None else check_person(owner),
        modified_ns=tx.now_ns if modified_ns is None else modified_ns,
    )
    return tx.update(row, changed, expect_spec_rev=expect_rev)


def set_blob(
    tx: WriteTx, row: SnapshotRow, blob: str, size_bytes: int, *, expect: str = ""
) -> SnapshotRow:
    """Say that the committed snapshot `blob` has the data here, or with "" that nothing has.

    `expect` is the blob that the caller saw. One is set when there is none and cleared before
    another is set, and a parent's data comes before its children's and goes after; else
    BlobMismatch, nothing changed. A matter of this host: it does not travel.
    """
    if row.body.blob != expect:
        raise BlobMismatch(
            f"the data of volume snapshot {row.name} is {row.body.blob or 'absent'!r}, "
            f"not {expect or 'absent'!r}; look again"
        )
    if blob and row.body.blob:
        raise BlobMismatch(f"volume snapshot {row.name} has data already; clear it first")
    _check_neighbours(tx, row, has_data=bool(blob))
    data = tx.get(DATA, DATA_SCOPE, blob) if blob else None
    if blob and data is None:
        raise BlobMismatch(f"snapshot {blob!r} does not exist, so it is nobody's data")
    body = msgspec.structs.replace(
        row.body,
        blob=blob,
        size_bytes=size_bytes if blob else 0,
        data=data.oid if data else 0,
    )
    _add_size(tx, row, body.size_bytes - row.body.size_bytes)
    return tx.update(row, body, spec=False)


def _add_size(tx: WriteTx, row: SnapshotRow, size_bytes: int) -> None:
    set_id = VolumeSetId(row.scope)
    sets.set_size(tx, set_id, sets.find(tx, set_id).body.size_bytes + size_bytes)


def _check_neighbours(tx: ReadTx, row: SnapshotRow, *, has_data: bool) -> None:
    if has_data and row.body.parent and not ancestry.by_oid(tx, row.body.parent).body.blob:
        raise BlobMismatch(f"the parent of volume snapshot {row.name} has no data here; fetch it")
    if not has_data and any(child.body.blob for child in ancestry.children(tx, row)):
        raise BlobMismatch(f"children of volume snapshot {row.name} have data here; clear theirs")


def delete(tx: WriteTx, row: SnapshotRow, new_id: NewId, why: Note) -> str:
    """Delete a snapshot without children and return its blob; its branches go back to its parent.

    A parent that is a leaf then and has no branch gets an unnamed one; a root's branches go with
    it. Refused with FailedPrecondition while it has children, or a volume grew from it.
    """
    if ancestry.has_children(tx, row):
        raise FailedPrecondition(f"volume snapshot {row.name} has children; delete them first")
    if ancestry.has_volumes(tx, row):
        raise FailedPrecondition(f"volume snapshot {row.name} has volumes; remove them first")
    parent = ancestry.by_oid(tx, row.body.parent) if row.body.parent else None
    for branch in ancestry.branches_at(tx, row):
        if parent is None:
            branches.remove(tx, branch, why)
        else:
            branches.move(tx, branch, parent, why)
    blob = erase(tx, row)
    if parent and not ancestry.has_children(tx, parent) and not ancestry.is_tip(tx, parent):
        branches.create(tx, parent.body.set, BranchId(new_id()), "", parent, why)
    tombstones.put(tx, "snapshot", row.name, VolumeSetId(row.scope), why)
    return blob


def erase(tx: WriteTx, row: SnapshotRow) -> str:
    """Delete the rows of a snapshot that nothing has any more; return its blob."""
    bush_row = tx.get(BUSHES, row.scope, row.name)
    if bush_row is not None:
        tx.delete(bush_row)
    _add_size(tx, row, -row.body.size_bytes)
    tx.delete(row)
    return row.body.blob
