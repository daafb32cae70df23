"""Ids for new layer directories, promised to the store before the directories are made.

One transaction reserves a range of ids and writes the intent `Creating` for all of it, so that a
creation costs one durable transaction, not two. The intent stays until each id of the range that
was taken is settled: its row is written, or its directory is gone or promised to the removals.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import structlog

from snapfs.model import SnapshotId
from snapfs.snapshots import records
from snapfs.snapshots.faults import refusing
from snapfs.snapshots.layers import LayerDirectories
from snapfs.snapshots.metastore import MetaStore
from snapfs.snapshots.schema import SEQUENCE, Creating, encode_intent
from snapfs.store import WriteTx

log = structlog.get_logger(__name__)

RANGE = 32
"""Ids that one transaction reserves."""


@dataclass
class _Range:
    intent: int
    free: list[SnapshotId]
    """Highest first."""
    taken: set[SnapshotId] = field(default_factory=set)

    @property
    def is_done(self) -> bool:
        return not self.free and not self.taken


class IdReserve:
    """Hands out reserved ids. Thread-safe; `_lock` guards the ranges, also over the update.

    Nothing else draws from the sequence of ids while this is open.
    """

    def __init__(self, metastore: MetaStore, layers: LayerDirectories) -> None:
        self._metastore = metastore
        self._layers = layers
        self._lock = threading.Lock()
        self._ranges: list[_Range] = []

    def take(self) -> SnapshotId:
        """Return an id whose intent is durable. Settle it whatever happens."""
        with self._lock:
            if not self._ranges or not self._ranges[-1].free:
                self._reserve()
            current = self._ranges[-1]
            snapshot_id = current.free.pop()
            current.taken.add(snapshot_id)
            return snapshot_id

    def settle(self, snapshot_id: SnapshotId) -> None:
        """Say that the id has a row, or needs no cleaning up that this intent must remember."""
        with self._lock:
            for reserved in self._ranges:
                reserved.taken.discard(snapshot_id)

    def close(self) -> None:
        """Clear the intents of ranges in which nothing is under way."""
        with self._lock:
            idle = [reserved for reserved in self._ranges if not reserved.taken]
            if idle:
                self._metastore.apply(lambda tx: _clear(tx, idle))
            self._ranges = [reserved for reserved in self._ranges if reserved.taken]

    def intents(self) -> frozenset[int]:
        """Return the numbers of the intents that are in use."""
        with self._lock:
            return frozenset(reserved.intent for reserved in self._ranges)

    def _reserve(self) -> None:
        self._set_strangers_aside()
        done = [reserved for reserved in self._ranges if reserved.is_done]

        def reserve(tx: WriteTx) -> _Range:
            _clear(tx, done)
            ids = [records.new_id(tx) for _ in range(RANGE)]
            intent = tx.put_intent(encode_intent(Creating(ids[0], ids[-1])))
            return _Range(intent, ids[::-1])

        made = self._metastore.apply(reserve)
        self._ranges = [it for it in self._ranges if not it.is_done] + [made]

    def _set_strangers_aside(self) -> None:
        """Rename directories that have the next ids and that this store does not know.

        They are of newer metadata than ours, as after an old copy was restored. As part of a
        reserved range they would be taken for unfinished creations and be deleted.
        """
        with self._metastore.store.view() as tx:
            first = tx.last_sequence(SEQUENCE) + 1
        with refusing("set unknown layer directories aside"):
            for identity in range(first, first + RANGE):
                if aside := self._layers.set_aside(identity):
                    log.warning("layer.set_aside", id=identity, path=str(aside))


def _clear(tx: WriteTx, ranges: list[_Range]) -> None:
    for reserved in ranges:
        tx.clear_intent(reserved.intent)
