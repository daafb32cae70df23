"""Fields that were changed on both sides, as rows: listed, and settled by whoever knows better.

A row stays until it is settled, whoever won: the value that lost is in it, and the next conflict of
that field has another row. One that nobody has won goes by itself when a later sync finds the field
at peace.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from snapfs.model import FailedPrecondition, NotFound
from snapfs.store import ReadTx, Row, WriteTx
from snapfs.sync import applying, looking, versions
from snapfs.sync.items import BRANCH, GONE, NO_CELL, SET, SETTLED, TIP, Cell, Item
from snapfs.sync.merging import Conflict
from snapfs.sync.planning import Change, going_with
from snapfs.sync.schema import CONFLICTS, ConflictBody
from snapfs.sync.threeway import Policy
from snapfs.volumes import Note
from snapfs.volumes.ids import VolumeSetId
from snapfs.volumes.schema import BRANCHES, SETS, SNAPSHOTS
from snapfs.volumes.schema import SCOPE as SETS_SCOPE


@dataclass(frozen=True, slots=True)
class Kept:
    """A conflict as people see it."""

    number: int
    """Names it in this store."""
    set_id: VolumeSetId
    remote: str
    kind: str
    item: str
    field: str
    ours: str | None
    theirs: str | None
    last: str | None
    winner: str
    since_ns: int
    called: str = ""
    """What people call the item: the path of a set, the name of a branch; empty when it has none,
    or is deleted here."""


class Settled(NamedTuple):
    """A conflict that a person has decided."""

    conflict: Kept
    unneeded: list[str]
    """Committed snapshots that nothing needs any more, for the caller to remove."""


def keep(tx: WriteTx, set_id: VolumeSetId, remote: str, found: Iterable[Conflict]) -> None:
    """Record conflicts; those that are decided before anything is done of what was decided."""
    for conflict in found:
        name = _name(conflict, remote)
        body = ConflictBody(
            remote,
            conflict.kind,
            conflict.id,
            conflict.field,
            conflict.ours,
            conflict.theirs,
            conflict.last,
            conflict.winner,
        )
        row = tx.get(CONFLICTS, set_id, name)
        if row is None:
            tx.create(CONFLICTS, set_id, name, body)
        elif row.body != body:
            tx.update(row, body)


def forget(
    tx: WriteTx,
    set_id: VolumeSetId,
    remote: str,
    found: Iterable[Conflict],
    looked_at: Iterable[str],
) -> None:
    """Forget open conflicts of items that a sync found at peace, all but those it found."""
    names = {_name(conflict, remote) for conflict in found}
    for key in looked_at:
        for row in list(tx.rows(CONFLICTS, set_id, prefix=f"{key}/")):
            if row.body.remote == remote and not row.body.winner and row.name not in names:
                tx.delete(row)


def forget_deleted(tx: WriteTx, set_id: VolumeSetId) -> None:
    """Forget the conflicts of a set that is not here any more, but for that on its deletion."""
    for row in list(tx.rows(CONFLICTS, set_id)):
        if not _is_meant(tx, row):
            tx.delete(row)


def _is_meant(tx: ReadTx, row: Row[ConflictBody]) -> bool:
    is_here = tx.get(SETS, SETS_SCOPE, row.scope) is not None
    return is_here or (row.body.kind, row.body.field) == (SET, GONE)


def walk(tx: ReadTx, set_id: VolumeSetId | None = None) -> Iterator[Kept]:
    """Yield the conflicts of a set, or of all."""
    scopes = [set_id] if set_id else sorted({*tx.scopes()} - {SETS_SCOPE})
    for scope in scopes:
        for row in tx.rows(CONFLICTS, scope):
            if _is_meant(tx, row):
                yield _show(tx, row)


def settle(tx: WriteTx, number: int, side: Policy, why: Note) -> Settled:
    """Let a side win a conflict, and forget it; every store that syncs will follow.

    Raises NotFound, FailedPrecondition when what was chosen is not here or what would be deleted
    has changed since, and refusals of the rooms whose field it is.
    """
    row = tx.by_oid(CONFLICTS, number)
    if row is None or not _is_meant(tx, row):
        raise NotFound(f"conflict {number} does not exist; see `snapfs conflict list`")
    set_id, body = VolumeSetId(row.scope), row.body
    tree = looking.look(tx, set_id)
    key = f"{body.kind}/{body.item}"
    before = looking.remembered(tx, set_id, key)
    now = before.get(body.field, NO_CELL)
    chosen = body.ours if side is Policy.OURS else body.theirs
    if body.field == TIP and tx.get(SNAPSHOTS, set_id, chosen.value or "") is None:
        raise FailedPrecondition(
            f"the {side.value} of conflict {number} is a snapshot that is not here; "
            f"pull from {body.remote}, then decide"
        )
    joined = versions.join(now.version, versions.join(body.ours.version, body.theirs.version))
    dot = looking.next_dot(tx)
    cells = {body.field: Cell(chosen.value, versions.change(joined, *dot))}
    sight: dict[str, dict[str, Cell]] = {}
    if body.field == GONE and chosen.value:
        sight = going_with(tree, key)
        _check_seen(sight, joined, number, is_decided=bool(body.winner))
        cells[SETTLED] = Cell(None, joined)
    item = Item(body.kind, body.item, cells, modified_ns=tx.now_ns)
    seen = {name: before.get(name, NO_CELL) for name in cells}
    shown = _show(tx, row)
    unneeded = applying.apply(tx, set_id, Change(item, seen, sight=sight), why)
    tx.delete(row)
    forget_deleted(tx, set_id)
    return Settled(shown, unneeded)


def _check_seen(
    sight: Mapping[str, Mapping[str, Cell]],
    known: versions.Version,
    number: int,
    *,
    is_decided: bool,
) -> None:
    """Refuse a deletion of what has grown since the conflict was found."""
    kept = (cells for cells in sight.values() if cells.get(GONE, NO_CELL).value is None)
    now = versions.join_all(cell.version for cells in kept for cell in cells.values())
    if versions.join(known, now) != known:
        way = "let it stay, and remove it by hand" if is_decided else "sync again, then decide"
        raise FailedPrecondition(f"what conflict {number} would delete was changed since; {way}")


def _name(conflict: Conflict, remote: str) -> str:
    """Return the name of a row: while nobody has won there is one for a field and a remote."""
    if not conflict.winner:
        return f"{conflict.key}/{remote}"
    values = msgspec.msgpack.encode((conflict.ours, conflict.theirs))
    return f"{conflict.key}/{remote}/{hashlib.sha256(values).hexdigest()[:16]}"


def _called(tx: ReadTx, set_id: str, kind: str, identity: str) -> str:
    if kind == SET:
        of_set = tx.get(SETS, SETS_SCOPE, set_id)
        return of_set.body.path if of_set else ""
    if kind == BRANCH:
        branch = tx.get(BRANCHES, set_id, identity)
        return branch.body.name if branch else ""
    return ""


def _show(tx: ReadTx, row: Row[ConflictBody]) -> Kept:
    body = row.body
    return Kept(
        number=row.oid,
        set_id=VolumeSetId(row.scope),
        remote=body.remote,
        kind=body.kind,
        item=body.item,
        field=body.field,
        ours=body.ours.value,
        theirs=body.theirs.value,
        last=body.last,
        winner=body.winner,
        since_ns=row.created_ns,
        called=_called(tx, row.scope, body.kind, body.item),
    )
