"""Volume sets, as functions of a transaction: create, import, find, change, delete."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import msgspec

from snapfs.model import AlreadyExists, FailedPrecondition
from snapfs.store import ReadTx, Row, Table, WriteTx
from snapfs.volumes import history, tombstones
from snapfs.volumes.errors import Ambiguous, VolumeSetNotFound
from snapfs.volumes.ids import (
    BranchId,
    VolumeSetId,
    check_id,
    is_id,
    may_be_short,
    short,
)
from snapfs.volumes.model import Attributes, Note, VolumeSet
from snapfs.volumes.names import check_attributes, check_description, check_person, check_set
from snapfs.volumes.schema import (
    BRANCHES,
    BUSHES,
    SCOPE,
    SETS,
    SNAPSHOTS,
    TOMBSTONES,
    VOLUMES,
    SetBody,
)

SetRow: TypeAlias = Row[SetBody]


def create(tx: WriteTx, new: VolumeSet) -> SetRow:
    """Create a set here; its name must be free on this host.

    Raises AlreadyExists for the id or the name, InvalidArgument for a bad word.
    """
    check_set(new.name, new.prefix)
    if next(called(tx, new.path), None) is not None:
        raise AlreadyExists(f"volume set {new.path!r} already exists; use another name")
    return import_set(tx, new)


def import_set(tx: WriteTx, new: VolumeSet) -> SetRow:
    """Take a set over with its id and times; another of the same name may be there already.

    Derived fields and the size are not taken. Raises AlreadyExists for the id.
    """
    check_set(new.name, new.prefix)
    body = SetBody(
        id=check_id(new.id, "volume set"),
        name=new.name,
        prefix=new.prefix,
        description=check_description(new.description),
        attributes=check_attributes(new.attributes),
        creator=check_person(new.creator),
        owner=check_person(new.owner or new.creator),
        modified_ns=new.modified_ns or tx.now_ns,
    )
    if tx.get(SETS, SCOPE, new.id) is not None:
        raise AlreadyExists(f"volume set {new.id} already exists")
    tombstones.lift(tx, "set", new.id, VolumeSetId(new.id))
    return tx.create(SETS, SCOPE, new.id, body, created_ns=new.created_ns or None)


def find(tx: ReadTx, set_id: VolumeSetId) -> SetRow:
    """Return the row of an id, or raise VolumeSetNotFound."""
    row = tx.get(SETS, SCOPE, set_id)
    if row is None:
        raise VolumeSetNotFound(f"volume set {set_id} does not exist")
    return row


def called(tx: ReadTx, path: str) -> Iterator[SetRow]:
    """Yield the sets of a path: one, unless others came from elsewhere."""
    return tx.find(SETS, "path", path.encode("utf-8", "replace"), scope=SCOPE)


def resolve(tx: ReadTx, text: str) -> SetRow:
    """Return the set of an id, a path or a short id, tried in this order.

    Raises VolumeSetNotFound, Ambiguous when several have the path or the short id.
    """
    if is_id(text):
        return find(tx, VolumeSetId(text))
    found = list(called(tx, text))
    if not found and may_be_short(text):
        found = list(tx.find_prefix(SETS, "short", text.encode(), scope=SCOPE))
    if not found:
        raise VolumeSetNotFound(
            f"volume set {text[:64]!r} does not exist; `snapfs volume sets` shows those there are"
        )
    if len(found) > 1:
        names = ", ".join(short(row.name) for row in found[:8])
        raise Ambiguous(f"volume set {text[:64]!r} is one of several: {names}; give an id")
    return found[0]


def edit(
    tx: WriteTx,
    set_id: VolumeSetId,
    *,
    name: str | None = None,
    prefix: str | None = None,
    description: str | None = None,
    attributes: Attributes | None = None,
    owner: str | None = None,
    modified_ns: int | None = None,
    expect_rev: int | None = None,
) -> SetRow:
    """Change what travels of a set; None leaves a field. `expect_rev`: Conflict if it moved.

    `modified_ns` is of a change that was made elsewhere; None for now.
    """
    row = find(tx, set_id)
    body = row.body
    changed = msgspec.structs.replace(
        body,
        name=body.name if name is None else name,
        prefix=body.prefix if prefix is None else prefix,
        description=body.description if description is None else check_description(description),
        attributes=body.attributes if attributes is None else check_attributes(attributes),
        owner=body.owner if owner is None else check_person(owner),
        modified_ns=tx.now_ns if modified_ns is None else modified_ns,
    )
    check_set(changed.name, changed.prefix)
    return tx.update(row, changed, expect_spec_rev=expect_rev)


def set_size(tx: WriteTx, set_id: VolumeSetId, size_bytes: int) -> None:
    """Record what the set's snapshots hold on this host; a matter of this host."""
    row = find(tx, set_id)
    tx.update(row, msgspec.structs.replace(row.body, size_bytes=size_bytes), spec=False)


def delete(tx: WriteTx, set_id: VolumeSetId, why: Note) -> list[str]:
    """Delete a set with its snapshots and branches; return the names of blobs that it had here.

    Children before parents, so that the caller may remove the blobs in this order. Refused with
    FailedPrecondition while it has volumes.
    """
    row = find(tx, set_id)
    volumes = [it.body.name for it in tx.rows(VOLUMES, SCOPE) if it.body.set_id == set_id]
    if volumes:
        raise FailedPrecondition(
            f"volume set {row.body.path!r} has volumes: {', '.join(volumes[:8])}; remove them first"
        )
    for branch in list(tx.rows(BRANCHES, set_id)):
        history.end(tx, history.branch_anchor(set_id, BranchId(branch.name)), why)
    _delete_all(tx, BRANCHES, set_id)
    _delete_all(tx, BUSHES, set_id)
    _delete_all(tx, TOMBSTONES, set_id)
    blobs = _delete_snapshots(tx, set_id)
    tx.delete(row)
    tombstones.put(tx, "set", set_id, set_id, why)
    return blobs


def _delete_all(tx: WriteTx, table: Table[Any], set_id: VolumeSetId) -> None:
    for row in list(tx.rows(table, set_id)):
        tx.delete(row)


def _delete_snapshots(tx: WriteTx, set_id: VolumeSetId) -> list[str]:
    deepest_first = sorted(tx.rows(SNAPSHOTS, set_id), key=lambda it: -it.body.depth)
    for snapshot in deepest_first:
        tx.delete(snapshot)
    return [it.body.blob for it in deepest_first if it.body.blob]


def show(tx: ReadTx, row: SetRow) -> VolumeSet:
    """Return the record of a set; the cost grows with its snapshots."""
    set_id, body = VolumeSetId(row.name), row.body
    made = [it.created_ns for it in tx.rows(SNAPSHOTS, set_id)]
    return VolumeSet(
        id=set_id,
        name=body.name,
        prefix=body.prefix,
        description=body.description,
        attributes=body.attributes,
        creator=body.creator,
        owner=body.owner,
        created_ns=row.created_ns,
        modified_ns=body.modified_ns,
        size_bytes=body.size_bytes,
        snapshots=len(made),
        branches=sum(1 for _ in tx.rows(BRANCHES, set_id)),
        last_snapshot_ns=max(made, default=None),
        revision=row.spec_rev,
    )
