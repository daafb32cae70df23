"""What an earlier process promised and did not finish, settled before anything else happens.

A directory of a reserved range without a row is an unfinished creation: it was never visible, so
it is undone, by promising its removal (unfinished.py). Promised removals go on. Of a commit, whose
one transaction either happened or did not, only the claim on the tree is given back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from snapfs.model import Kind, SnapshotId
from snapfs.snapshots import claims, records
from snapfs.snapshots.layers import LayerDirectories
from snapfs.snapshots.schema import Creating, Removing, decode_intent, encode_intent
from snapfs.store import ReadTx, Store, WriteTx


@dataclass(frozen=True, slots=True)
class Promises:
    """The intents in a store, by number."""

    creating: Mapping[int, Creating]
    removing: Mapping[int, SnapshotId]

    def covers(self, snapshot_id: SnapshotId) -> bool:
        """Say whether an intent explains a directory of this id that has no row."""
        return snapshot_id in self.removing.values() or self.reserves(snapshot_id)

    def reserves(self, snapshot_id: SnapshotId) -> bool:
        """Say whether this id is one that a creation may have taken."""
        return any(snapshot_id in reserved for reserved in self.creating.values())


def promises(tx: ReadTx) -> Promises:
    """Return all intents."""
    creating: dict[int, Creating] = {}
    removing: dict[int, SnapshotId] = {}
    for number, payload in tx.intents():
        match decode_intent(payload):
            case Creating() as reserved:
                creating[number] = reserved
            case Removing(id=identity):
                removing[number] = SnapshotId(identity)
    return Promises(creating, removing)


@dataclass(frozen=True, slots=True)
class Left:
    """What an earlier process left to be done."""

    removing: Mapping[int, SnapshotId]
    """Removals that were promised, intent number -> id."""
    creating: Collection[int]
    """Intents of which nobody makes anything any more."""
    unfinished: Collection[SnapshotId]
    """What was begun under them and has no row."""


def recover(store: Store, layers: LayerDirectories) -> Left:
    """Give claims back, and return what is left to do."""
    with store.view() as tx:
        left = promises(tx)
        undone = unfinished(tx, left, layers.ids())
        active = [row.body.id for row in records.rows(tx) if row.body.kind == Kind.ACTIVE.value]
    for identity in active:
        claims.release(layers.work(identity))
    return Left(left.removing, left.creating, undone)


def unfinished(tx: ReadTx, left: Promises, present: Iterable[SnapshotId]) -> list[SnapshotId]:
    """Return the ids among `present` whose creation began and did not end."""
    promised = set(left.removing.values())
    return [
        identity
        for identity in present
        if identity not in promised
        and left.reserves(identity)
        and records.by_id(tx, identity) is None
    ]


def promise_removal(tx: WriteTx, snapshot_id: SnapshotId) -> int:
    """Write the intent to delete a layer directory; return its number."""
    return tx.put_intent(encode_intent(Removing(snapshot_id)))
