"""The snapshot metastore: names, parents, labels and usage of snapshots, durable, no mounts.

Usable alone; containerd's `snapshots/storage` for programs in Python:

    with MetaStore(path) as metastore:
        metastore.create(Kind.ACTIVE, "work")
        metastore.commit("work", "base", Usage(size_bytes=4096, inodes=1))

Thread-safe. Each call is one transaction of its own: it succeeds and is durable when it returns,
or raises a SnapfsError and has changed nothing. Reading never waits for writing. The cost of a
call does not depend on the number of snapshots; that of `create` grows with the depth of the
chain by a few bytes a parent. A store has one writing process; others open a LayerReader.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from snapfs import filters as grammar
from snapfs.closing import Closing
from snapfs.model import Committed, Kind, Labels, Mountable, Snapshot, SnapshotId, Usage
from snapfs.snapshots import records
from snapfs.snapshots.schema import TABLES
from snapfs.store import Store, Table, WriteTx

T = TypeVar("T")

DEADLINE_S = 30.0

WALK_BATCH = 100
"""Snapshots that a walk reads in one transaction."""


@dataclass(frozen=True, slots=True)
class Removed:
    """What `remove` took away."""

    id: SnapshotId
    kind: Kind


class MetaStore(Closing):
    """Snapshots by name, in the LMDB environment at `path` (a directory, made when missing)."""

    def __init__(
        self,
        path: Path,
        *,
        tables: Sequence[Table[Any]] = (),
        clock_ns: Callable[[], int] = time.time_ns,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        """`tables` are those of other rooms in the same store.

        `deadline_s` bounds the wait for other writers; then DeadlineExceeded, nothing done.
        """
        self.store = Store.open(path, (*TABLES, *tables), clock_ns=clock_ns)
        self._deadline_s = deadline_s

    def apply(self, change: Callable[[WriteTx], T]) -> T:
        """Run `change` on a write transaction (Store.update) within the deadline."""
        return self.store.update(change, timeout_s=self._deadline_s)

    def create(
        self, kind: Kind, key: str, parent: str = "", labels: Labels | None = None
    ) -> Mountable:
        """Create an active or view snapshot on a committed parent, or on nothing.

        Parent missing: NotFound; parent not committed: InvalidArgument; key taken, by a snapshot
        of any kind: AlreadyExists; checked in this order.
        """
        return self.apply(lambda tx: records.create(tx, kind, key, parent, labels))

    def commit(
        self,
        key: str,
        name: str,
        usage: Usage,
        labels: Labels | None = None,
        parent: str = "",
    ) -> Committed:
        """Turn the active `key` into the committed `name`, with `usage` and new labels.

        Name taken: AlreadyExists; key missing: NotFound; not active: FailedPrecondition. A
        `parent` gives a parentless snapshot one (rebase): missing: NotFound; not committed:
        FailedPrecondition; one that differs from the present parent: InvalidArgument.
        """
        return self.apply(lambda tx: records.commit(tx, key, name, usage, labels, parent))

    def info(self, key: str) -> Snapshot:
        """Return a snapshot of any kind, or raise NotFound."""
        with self.store.view() as tx:
            return records.snapshot(tx, records.find(tx, key))

    def get(self, key: str) -> Mountable:
        """Return an active or view; NotFound, or FailedPrecondition for a committed."""
        with self.store.view() as tx:
            return records.mountable(tx, key)

    def usage(self, key: str) -> Usage:
        """Return the usage stored at commit, zero for an active or a view; or NotFound."""
        with self.store.view() as tx:
            return records.usage(tx, key)

    def update(self, key: str, labels: Labels, fieldpaths: Sequence[str] | None = None) -> Snapshot:
        """Change labels: all of them, or those that `fieldpaths` ("labels.NAME") name."""
        return self.apply(lambda tx: records.update(tx, key, labels, fieldpaths))

    def walk(self, filters: Sequence[str] = ()) -> Iterator[Snapshot]:
        """Yield the snapshots that any of `filters` selects, in byte order of names.

        No transaction is open while the caller works: calls inside the loop are fine, and what
        others change meanwhile is seen or not. A bad filter raises InvalidArgument at once.
        """
        selected = grammar.parse(filters)
        return self._walk(selected)

    def _walk(self, selected: grammar.Filter) -> Iterator[Snapshot]:
        after = None
        while True:
            with self.store.view() as tx:
                found = records.batch(tx, after, WALK_BATCH)
            for snapshot in found:
                if selected.matches(records.fields(snapshot)):
                    yield snapshot
            if len(found) < WALK_BATCH:
                return
            after = found[-1].name

    def remove(self, key: str) -> Removed:
        """Delete a snapshot of any kind: NotFound, or FailedPrecondition while it has children."""
        body = self.apply(lambda tx: records.remove(tx, key))
        return Removed(SnapshotId(body.id), Kind(body.kind))

    def id_map(self) -> dict[SnapshotId, str]:
        """Return the name of every id."""
        with self.store.view() as tx:
            return {SnapshotId(row.body.id): row.name for row in records.rows(tx)}

    def close(self) -> None:
        """Close the store; a second call does nothing."""
        self.store.close()
