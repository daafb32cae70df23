"""Doing one planned change in a transaction, if the item is still as it was when it was planned.

What comes from another store is checked by the rooms that own it, as what a person types is.
"""

from __future__ import annotations

from snapfs.anchors import Ref, writing
from snapfs.model import FailedPrecondition, InvalidArgument
from snapfs.snapshots.schema import SCOPE as DATA_SCOPE
from snapfs.snapshots.schema import SNAPSHOTS as DATA
from snapfs.store import WriteTx
from snapfs.sync import looking, versions
from snapfs.sync.items import GONE, NAME, NO_CELL, SNAPSHOT, TIP, Cell, Item, attributes_of
from snapfs.sync.planning import Change, going_with
from snapfs.volumes import (
    NewSnapshot,
    Note,
    VolumeSet,
    ancestry,
    branches,
    growing,
    history,
    sets,
    snapshots,
)
from snapfs.volumes.ancestry import BranchRow
from snapfs.volumes.history import REF_TYPE
from snapfs.volumes.ids import BranchId, VolumeSetId, VolumeSnapshotId, check_id
from snapfs.volumes.schema import BRANCHES, SETS, SNAPSHOTS, VOLUMES
from snapfs.volumes.schema import SCOPE as SETS_SCOPE

RECEIVED = "received/"
"""What the names of committed snapshots with received data begin with."""


class Moved(FailedPrecondition):
    """An item is no longer as it was when the change was planned: plan again."""


def blob_name(set_id: VolumeSetId, snapshot: str) -> str:
    """Return the name of the committed snapshot that received data has."""
    return f"{RECEIVED}{set_id}/{snapshot}"


def apply(tx: WriteTx, set_id: VolumeSetId, change: Change, why: Note) -> list[str]:
    """Do a change; return names of committed snapshots that nothing needs any more.

    Raises Moved, having written nothing, when the item has changed since; and what the rooms of
    volumes refuse.
    """
    item = change.item
    _check(change)
    tree = looking.look(tx, set_id)
    before = looking.remembered(tx, set_id, item.key)
    if any(before.get(name, NO_CELL) != cell for name, cell in change.seen.items()):
        raise Moved(f"{item.kind} {item.id} has changed meanwhile")
    if item.is_gone and going_with(tree, item.key) != change.sight:
        raise Moved(f"{item.kind} {item.id} has grown meanwhile")
    cells = {**before, **item.cells}
    is_gone = cells.get(GONE, NO_CELL).value is not None
    unneeded: list[str] = []
    match item.kind:
        case "set":
            unneeded = _set(tx, set_id, item, cells, why, is_gone=is_gone)
        case "snapshot":
            _snapshot(tx, set_id, item, cells)
        case "branch":
            _import(tx, set_id, change.snapshots)
            _branch(tx, set_id, item, cells, why, is_gone=is_gone)
        case _:
            raise InvalidArgument(f"{item.kind!r} is nothing that travels")
    looking.remember(tx, set_id, item.key, cells)
    return unneeded


def _check(change: Change) -> None:
    """Raise InvalidArgument for what no plan has: a cell that was not looked at, or of no past."""
    if unseen := change.item.cells.keys() - change.seen.keys():
        raise InvalidArgument(f"{change.item.key} is to change {sorted(unseen)[0]!r} unseen")
    for item in (change.item, *change.snapshots):
        for name, cell in item.cells.items():
            if not versions.is_possible(cell.version):
                raise InvalidArgument(f"field {name!r} of {item.key} has an impossible version")


def attach(tx: WriteTx, set_id: VolumeSetId, tip: VolumeSnapshotId) -> None:
    """Say of the snapshots that lead to `tip` that their data is here, where it has come."""
    lacking = []
    for row in ancestry.upward(tx, ancestry.find(tx, set_id, tip)):
        if row.body.blob:
            break
        lacking.append(row)
    for row in reversed(lacking):
        data = tx.get(DATA, DATA_SCOPE, blob_name(set_id, row.name))
        if data is None:
            return
        snapshots.set_blob(tx, row, data.name, data.body.size_bytes)


def track(
    tx: WriteTx, set_id: VolumeSetId, name: str, tip: VolumeSnapshotId, branch: BranchId, why: Note
) -> None:
    """Keep a remote's tip as the branch `name`, REMOTE/BRANCH; `branch` is the id of a new one."""
    row = ancestry.find(tx, set_id, tip)
    known = branches.named(tx, set_id, name)
    if known is None:
        branches.create(tx, row.body.set, branch, name, row, why, tracking=True)
    else:
        branches.move(tx, known, row, why)


def affirm(tx: WriteTx, set_id: VolumeSetId, branch: BranchId, why: Note) -> bool:
    """Let the history of a branch end with its tip; say whether that is news."""
    row = tx.get(BRANCHES, set_id, branch)
    if row is None:
        return False
    tip = VolumeSnapshotId(row.body.tip_id)
    return history.note(tx, history.branch_anchor(set_id, branch), tip, row.body.tip, why)


def is_in_use(tx: WriteTx, branch: BranchRow) -> bool:
    """Say whether a volume is on a branch."""
    return (
        next(tx.find(VOLUMES, "branch", branch.name.encode(), scope=SETS_SCOPE), None) is not None
    )


def bring(tx: WriteTx, set_id: VolumeSetId, items: tuple[Item, ...]) -> None:
    """Take snapshots over, oldest first, with what keeps them in the same transaction."""
    _import(tx, set_id, items)


def _set(
    tx: WriteTx,
    set_id: VolumeSetId,
    item: Item,
    cells: dict[str, Cell],
    why: Note,
    *,
    is_gone: bool,
) -> list[str]:
    row = tx.get(SETS, SETS_SCOPE, set_id)
    if is_gone:
        return sets.delete(tx, set_id, why) if row is not None else []
    values = {name: cell.value or "" for name, cell in cells.items()}
    if row is None:
        new = VolumeSet(
            id=set_id,
            name=values.get(NAME, ""),
            prefix=values.get("prefix", ""),
            description=values.get("description", ""),
            attributes=attributes_of(cells),
            creator=item.creator,
            owner=values.get("owner", ""),
            created_ns=item.created_ns,
            modified_ns=item.modified_ns,
        )
        sets.import_set(tx, new)
        return []
    sets.edit(
        tx,
        set_id,
        name=values.get(NAME),
        prefix=values.get("prefix"),
        description=values.get("description"),
        attributes=attributes_of(cells),
        owner=values.get("owner"),
        modified_ns=item.modified_ns,
    )
    return []


def _snapshot(tx: WriteTx, set_id: VolumeSetId, item: Item, cells: dict[str, Cell]) -> None:
    values = {name: cell.value or "" for name, cell in cells.items()}
    snapshots.edit(
        tx,
        ancestry.find(tx, set_id, VolumeSnapshotId(item.id)),
        name=values.get(NAME),
        description=values.get("description"),
        attributes=attributes_of(cells),
        owner=values.get("owner"),
        modified_ns=item.modified_ns,
    )


def _branch(
    tx: WriteTx,
    set_id: VolumeSetId,
    item: Item,
    cells: dict[str, Cell],
    why: Note,
    *,
    is_gone: bool,
) -> None:
    row = tx.get(BRANCHES, set_id, item.id)
    if is_gone:
        if row is not None:
            branches.remove(tx, row, why)
        return
    if NAME not in cells or TIP not in cells:
        raise InvalidArgument(f"branch {item.id} has no {NAME if TIP in cells else TIP}")
    name, tip_id = cells[NAME].value or "", VolumeSnapshotId(cells[TIP].value or "")
    tip = ancestry.find(tx, set_id, tip_id)
    attach(tx, set_id, tip_id)
    if row is None:
        branches.create(tx, tip.body.set, BranchId(item.id), name, tip, why)
        return
    row = branches.move(tx, row, tip, why)
    if row.body.name != name:
        branches.rename(tx, row, name)


def _import(tx: WriteTx, set_id: VolumeSetId, items: tuple[Item, ...]) -> None:
    for item in items:
        check_id(item.id, "volume snapshot")
        if item.kind != SNAPSHOT:
            raise InvalidArgument(f"{item.kind} {item.id} is no snapshot")
        new = NewSnapshot(
            id=VolumeSnapshotId(item.id),
            name=item.value(NAME),
            description=item.value("description"),
            attributes=attributes_of(item.cells),
            creator=item.creator,
            owner=item.value("owner"),
            created_ns=item.created_ns,
            modified_ns=item.modified_ns,
        )
        parent = VolumeSnapshotId(item.parent) if item.parent else None
        is_new = tx.get(SNAPSHOTS, set_id, item.id) is None
        row = growing.grow(tx, set_id, parent, [new])
        if is_new:
            looking.remember(tx, set_id, item.key, item.cells)
        writing.bind(tx, Ref(REF_TYPE, item.id), row.oid)
