"""What an earlier process promised and did not finish, settled before anything else happens.

A directory of a reserved range without a row is an unfinished creation: it was never visible, so
it is undone, by promising its removal. Promised removals go on. Of a commit, whose one transaction
either happened or did not, only the claim on the tree is given back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import structlog

from snapfs.model import Kind, ResourceExhausted, SnapshotId
from snapfs.snapshots import claims, records
from snapfs.snapshots.layers import LayerDirectories
from snapfs.snapshots.schema import Creating, Removing, decode_intent, encode_intent
from snapfs.store import ReadTx, Store, WriteTx

log = structlog.get_logger(__name__)


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


def recover(store: Store, layers: LayerDirectories) -> Mapping[int, SnapshotId]:
    """Settle every `Creating`; return the removals to do, intent number -> id."""
    with store.view() as tx:
        left = promises(tx)
        undone = unfinished(tx, left, layers.ids())
        active = [row.body.id for row in records.rows(tx) if row.body.kind == Kind.ACTIVE.value]
    for identity in active:
        claims.release(layers.work(identity))
    if not left.creating:
        return left.removing

    def settle(tx: WriteTx) -> Mapping[int, SnapshotId]:
        for number in left.creating:
            tx.clear_intent(number)
        promised = {promise_removal(tx, identity): identity for identity in undone}
        return {**left.removing, **promised}

    try:
        return store.update(settle)
    except ResourceExhausted as error:  # nothing of it is visible; the next start settles it
        log.warning("promises.not_settled", error=str(error))
        return left.removing


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
