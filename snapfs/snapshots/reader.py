"""What the FUSE worker needs to know of a snapshot: which directories its tree is made of.

Reads the store beside its writer, in the writer's process or another, and never waits. A look-up
is three reads, whatever the depth of the chain.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from snapfs.closing import Closing
from snapfs.model import Kind, Labels, LaneName, SnapshotId
from snapfs.snapshots import records
from snapfs.snapshots.idmapping import IdMapping
from snapfs.snapshots.layers import LayerDirectories
from snapfs.snapshots.schema import SCOPE, SNAPSHOTS, TABLES, SnapshotBody, kind_key
from snapfs.store import ReadStore


@dataclass(frozen=True, slots=True)
class Layers:
    """The directories of an active or view snapshot."""

    id: SnapshotId
    kind: Kind
    upper: Path | None
    """Where changes go; None for a view."""
    work: Path | None
    """For temporary files, on the upper's file system; None for a view."""
    lowers: tuple[Path, ...]
    """Direct parent first; an empty directory when there is no parent."""
    owners: IdMapping | None
    """Whose the files are to be shown as; None as they are stored."""
    labels: Labels = field(default_factory=dict)


class LayerReader(Closing):
    """The layers of the active and view snapshots of a root, or of one lane of it.

    A lane's worker sees no others: two workers must not write to one upper directory.
    """

    def __init__(self, root: Path, store: ReadStore, lane: LaneName | None = None) -> None:
        self._directories = LayerDirectories(root)
        self._store = store
        self._lane = lane

    @classmethod
    def open(cls, root: Path, lane: LaneName | None = None) -> LayerReader:
        """Open a root that a Snapshotter has made; Unavailable when there is none yet."""
        return cls(root, ReadStore.open(root / "metadata", TABLES), lane)

    def layers(self, snapshot_id: SnapshotId, /) -> Layers | None:
        """Return the directories of an active or a view, None when no such has this id."""
        with self._store.view() as tx:
            row = records.by_id(tx, snapshot_id)
        if row is None or not self._is_ours(row.body):
            return None
        kind, directories = Kind(row.body.kind), self._directories
        lowers = directories.lowers(row.body.chain)
        owners = IdMapping.of(row.body.labels)
        match kind:
            case Kind.ACTIVE:
                upper, work = directories.upper(snapshot_id), directories.work(snapshot_id)
                labels = row.body.labels
                return Layers(snapshot_id, kind, upper, work, lowers, owners, labels)
            case Kind.VIEW:
                return Layers(snapshot_id, kind, None, None, lowers, owners)
            case Kind.COMMITTED:
                return None

    def ids(self) -> list[SnapshotId]:
        """Return the ids of all active and view snapshots, in order."""
        with self._store.view() as tx:
            return sorted(
                SnapshotId(row.body.id)
                for kind in (Kind.ACTIVE, Kind.VIEW)
                for row in tx.find(SNAPSHOTS, "mountable", kind_key(kind), scope=SCOPE)
                if self._is_ours(row.body)
            )

    def _is_ours(self, body: SnapshotBody) -> bool:
        return self._lane is None or records.lane(body) == self._lane

    def close(self) -> None:
        """Close the store; a second call does nothing."""
        self._store.close()
