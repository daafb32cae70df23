"""What travels and was deleted, as functions of a transaction: other hosts must hear of it."""

from __future__ import annotations

from collections.abc import Iterator

from snapfs.store import ReadTx, Row, WriteTx
from snapfs.volumes.ids import VolumeSetId
from snapfs.volumes.model import Note, Tombstone
from snapfs.volumes.schema import SCOPE, TOMBSTONES, TombstoneBody


def put(tx: WriteTx, kind: str, identity: str, set_id: VolumeSetId, why: Note) -> None:
    """Record that a "set", a "snapshot" or a "branch" was deleted; again, nothing."""
    scope, name = _place(kind, identity, set_id)
    if tx.get(TOMBSTONES, scope, name) is None:
        body = TombstoneBody(kind=kind, id=identity, set_id=set_id, author=why.author)
        tx.create(TOMBSTONES, scope, name, body)


def lift(tx: WriteTx, kind: str, identity: str, set_id: VolumeSetId) -> None:
    """Forget a tombstone: the thing is there again, by the wish of who brings it."""
    scope, name = _place(kind, identity, set_id)
    row = tx.get(TOMBSTONES, scope, name)
    if row is not None:
        tx.delete(row)


def find(tx: ReadTx, kind: str, identity: str, set_id: VolumeSetId) -> Tombstone | None:
    """Return the tombstone of a thing, or None."""
    scope, name = _place(kind, identity, set_id)
    row = tx.get(TOMBSTONES, scope, name)
    return None if row is None else _show(row)


def of_set(tx: ReadTx, set_id: VolumeSetId) -> Iterator[Tombstone]:
    """Yield the tombstones of a set's snapshots and branches, and its own if it was deleted."""
    own = find(tx, "set", set_id, set_id)
    if own is not None:
        yield own
    yield from map(_show, tx.rows(TOMBSTONES, set_id))


def sets(tx: ReadTx) -> Iterator[Tombstone]:
    """Yield the tombstones of sets."""
    yield from map(_show, tx.rows(TOMBSTONES, SCOPE))


def _place(kind: str, identity: str, set_id: VolumeSetId) -> tuple[str, str]:
    return SCOPE if kind == "set" else set_id, f"{kind}/{identity}"


def _show(row: Row[TombstoneBody]) -> Tombstone:
    body = row.body
    return Tombstone(
        kind=body.kind,
        id=body.id,
        set_id=VolumeSetId(body.set_id),
        deleted_ns=row.created_ns,
        author=body.author,
    )
