"""Volumes, the working copies of this host, as functions of a transaction."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from snapfs.model import AlreadyExists
from snapfs.snapshots.schema import SCOPE as DATA_SCOPE
from snapfs.snapshots.schema import SNAPSHOTS as DATA
from snapfs.store import ReadTx, Row, WriteTx
from snapfs.volumes import ancestry, history, sets
from snapfs.volumes.errors import Ambiguous, VolumeNotFound
from snapfs.volumes.ids import (
    BranchId,
    VolumeId,
    VolumeSetId,
    VolumeSnapshotId,
    check_id,
    is_id,
    may_be_short,
    short,
)
from snapfs.volumes.model import Attributes, Note, Volume
from snapfs.volumes.names import check_attributes, check_branch, check_mount_path, check_volume
from snapfs.volumes.schema import SCOPE, VOLUMES, VolumeBody

VolumeRow: TypeAlias = Row[VolumeBody]


def create(tx: WriteTx, new: Volume, why: Note) -> VolumeRow:
    """Create a volume on its set, base and branch.

    Raises AlreadyExists for the id, the name or the mount path, VolumeSetNotFound,
    VolumeSnapshotNotFound, InvalidArgument for a bad word.
    """
    check_volume(new.name)
    _check_free(tx, "name", new.name)
    if new.mount_path:
        _check_free(tx, "mount path", check_mount_path(new.mount_path))
    if new.next_branch:
        check_branch(new.next_branch)
    base = ancestry.find(tx, new.set_id, new.base) if new.base else None
    body = VolumeBody(
        id=check_id(new.id, "volume"),
        set=sets.find(tx, new.set_id).oid,
        set_id=new.set_id,
        name=new.name,
        base=base.oid if base else 0,
        base_id=base.name if base else "",
        branch=new.branch or "",
        next_branch=new.next_branch,
        mount_path=new.mount_path,
        is_mounted=new.is_mounted,
        attributes=check_attributes(new.attributes),
        size_bytes=new.size_bytes,
        key=new.key,
        active=_active(tx, new.key),
    )
    row = tx.create(VOLUMES, SCOPE, new.id, body)
    if base is not None:
        _note(tx, row, base.oid, VolumeSnapshotId(base.name), why)
    return row


def resolve(tx: ReadTx, text: str) -> VolumeRow:
    """Return the volume of a name, an id, a short id or a mount path; or VolumeNotFound."""
    raw = text.encode("utf-8", "replace")
    found = list(tx.find(VOLUMES, "name", raw, scope=SCOPE))
    if not found and is_id(text):
        found = [row for row in (tx.get(VOLUMES, SCOPE, text),) if row is not None]
    if not found and text.startswith("/"):
        found = list(tx.find(VOLUMES, "mount path", raw, scope=SCOPE))
    if not found and may_be_short(text):
        found = [it for it in tx.rows(VOLUMES, SCOPE) if short(it.name).startswith(text)]
    if not found:
        raise VolumeNotFound(
            f"volume {text[:64]!r} does not exist; `snapfs volume list` shows those there are"
        )
    if len(found) > 1:
        raise Ambiguous(f"volume {text[:64]!r} is one of several; give more of its id")
    return found[0]


def edit(
    tx: WriteTx,
    row: VolumeRow,
    *,
    name: str | None = None,
    attributes: Attributes | None = None,
    size_bytes: int | None = None,
    mount_path: str | None = None,
    is_mounted: bool | None = None,
) -> VolumeRow:
    """Change name, attributes, size (0: no limit), mount path or whether it is mounted."""
    body = row.body
    if name is not None and name != body.name:
        _check_free(tx, "name", check_volume(name))
    if mount_path and mount_path != body.mount_path:
        _check_free(tx, "mount path", check_mount_path(mount_path))
    changed = msgspec.structs.replace(
        body,
        name=body.name if name is None else name,
        attributes=body.attributes if attributes is None else check_attributes(attributes),
        size_bytes=body.size_bytes if size_bytes is None else size_bytes or None,
        mount_path=body.mount_path if mount_path is None else mount_path,
        is_mounted=body.is_mounted if is_mounted is None else is_mounted,
    )
    return tx.update(row, changed)


def stand(
    tx: WriteTx,
    row: VolumeRow,
    base: VolumeSnapshotId | None,
    branch: BranchId | None,
    why: Note,
    *,
    next_branch: str = "",
    key: str | None = None,
) -> VolumeRow:
    """Let a volume have another base and branch, and with `key` another active snapshot."""
    found = ancestry.find(tx, VolumeSetId(row.body.set_id), base) if base else None
    body = msgspec.structs.replace(
        row.body,
        base=found.oid if found else 0,
        base_id=found.name if found else "",
        branch=branch or "",
        next_branch=next_branch,
        key=row.body.key if key is None else key,
        active=row.body.active if key is None else _active(tx, key),
    )
    if found is not None and found.oid != row.body.base:
        _note(tx, row, found.oid, VolumeSnapshotId(found.name), why)
    return tx.update(row, body)


def take_away(tx: WriteTx, row: VolumeRow) -> None:
    """Let a volume stand without a working copy, and not mounted; what travels stays as it is."""
    body = msgspec.structs.replace(row.body, key="", active=0, is_mounted=False)
    tx.update(row, body, spec=False)


def give(tx: WriteTx, row: VolumeRow, key: str) -> VolumeRow:
    """Give a volume that has none a working copy; what travels stays as it is."""
    body = msgspec.structs.replace(row.body, key=key, active=_active(tx, key))
    return tx.update(row, body, spec=False)


def delete(tx: WriteTx, row: VolumeRow, why: Note) -> str:
    """Delete a volume and return the key of its active snapshot, which the caller removes."""
    history.end(tx, history.volume_anchor(VolumeId(row.name)), why)
    tx.delete(row)
    return row.body.key


def show(row: VolumeRow) -> Volume:
    """Return the record of a volume."""
    body = row.body
    return Volume(
        id=VolumeId(row.name),
        name=body.name,
        set_id=VolumeSetId(body.set_id),
        base=VolumeSnapshotId(body.base_id) if body.base_id else None,
        branch=BranchId(body.branch) if body.branch else None,
        next_branch=body.next_branch,
        mount_path=body.mount_path,
        is_mounted=body.is_mounted,
        attributes=body.attributes,
        size_bytes=body.size_bytes,
        key=body.key,
        created_ns=row.created_ns,
        revision=row.spec_rev,
    )


def _note(tx: WriteTx, row: VolumeRow, oid: int, snapshot: VolumeSnapshotId, why: Note) -> None:
    history.note(tx, history.volume_anchor(VolumeId(row.name)), snapshot, oid, why)


def _active(tx: ReadTx, key: str) -> int:
    row = tx.get(DATA, DATA_SCOPE, key) if key else None
    return row.oid if row is not None else 0


def _check_free(tx: ReadTx, index: str, value: str) -> None:
    taken = next(tx.find(VOLUMES, index, value.encode(), scope=SCOPE), None)
    if taken is not None:
        raise AlreadyExists(
            f"{index} {value!r} is volume {taken.body.name!r}'s already; use another"
        )
