"""What was written since a revision, and is alive for it: the log as a barrier of the collector.

What is reachable now was reachable at the revision by a path that was marked then, or its path has
a last edge written since; the row of that edge is in the log, and is marked here with all that it
keeps alive. The log is looked at in steps, each from where the last ended, before it is trimmed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeGuard

from snapfs import anchors
from snapfs.metadata.graph import Mark, Walk, paced
from snapfs.metadata.schema import NODES
from snapfs.store import Event, ReadTx, RowCreated, RowUpdated, Store, UpdateCommitted

_TAGS = frozenset(table.tag for table in (*NODES, anchors.FACTS))


EVENTS = 500
"""After which a view ends, so that the store's map can grow."""


class Written:
    """Rows that are written while something long goes on; `look` often, before the log is cut."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._oids: set[int] = set()
        self.revision = store.revision
        """The log has been looked at up to here."""

    def look(self) -> None:
        """Read the log on, in short views. Raises Compacted when it came too late."""
        now = self._store.revision
        while self.revision < now:
            self._look()

    def _look(self) -> None:
        with self._store.view() as tx:
            for number, event in enumerate(tx.events(self.revision)):
                if isinstance(event, UpdateCommitted):
                    self.revision = event.revision
                    if number >= EVENTS:
                        return
                elif _keeps(event):
                    self._oids.add(event.row.oid)

    def walk(self, tx: ReadTx, now_ns: int, marks: Mapping[int, Mark]) -> Walk:
        """Return the walk of all that was written, in a state that may be later."""
        return walk_of(tx, now_ns, marks, paced(self._oids))


def walk_of(tx: ReadTx, now_ns: int, marks: Mapping[int, Mark], oids: Iterable[int]) -> Walk:
    """Mark rows with all that they keep alive, beside the `marks` that there are.

    What such a row names is reached even if the row itself was marked before.
    """
    walk = Walk(tx, now_ns, known=marks)
    for oid in oids:
        walk.marks[oid] = Mark.FULL
        walk.add(walk.kept_by(oid, Mark.FULL))
    return walk


def written(tx: ReadTx, after_rev: int) -> set[int]:
    """Return the oids of rows that keep others and were written after a revision.

    Raises Compacted when the log does not reach back so far.
    """
    return {event.row.oid for event in tx.events(after_rev) if _keeps(event)}


def _keeps(event: Event) -> TypeGuard[RowCreated | RowUpdated]:
    """Say whether an event is of a row that is there and may keep others."""
    if not isinstance(event, RowCreated | RowUpdated) or event.row.table not in _TAGS:
        return False
    return not getattr(event.row.body, "going", False)
