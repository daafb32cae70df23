"""The data of volumes: active snapshots that hold still when asked, and copies of them.

    @volume/VOLUME/NUMBER      key of a volume's active snapshot; another with each switch or reset
    @volume-snapshot/SET/ID    name of the committed snapshot that has a volume snapshot's data

Rows of volumes refer to both strongly, so nothing else can remove them. What has such a name, to
the letter, and no such row was left by a change that a crash cut short; `sweep` removes it at the
next start. No name space of containerd begins with an @, so its keys are never taken for ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import structlog

from snapfs.model import Committed, FailedPrecondition, Internal, SnapfsError, Usage
from snapfs.snapshots import Snapshotter, records
from snapfs.snapshots.copying import Changed, Copied
from snapfs.snapshots.stillness import STILL_LABEL
from snapfs.store import ReadTx, WriteTx
from snapfs.volumes import mounting
from snapfs.volumes.ids import NewId, VolumeId, VolumeSetId, VolumeSnapshotId
from snapfs.volumes.mounting import Bound
from snapfs.volumes.schema import ACTIVE_EDGE, DATA_EDGE

T = TypeVar("T")

log = structlog.get_logger(__name__)

KEYS = "@volume/"
_BLOBS = "@volume-snapshot/"
_OURS = re.compile(rf"{KEYS}[0-9a-f-]{{36}}/[0-9a-f]{{8}}|{_BLOBS}[0-9a-f-]{{36}}/[0-9a-f-]{{36}}")


def blob_name(set_id: VolumeSetId, snapshot: VolumeSnapshotId) -> str:
    """Return the name of the committed snapshot for the data of a volume snapshot."""
    return f"{_BLOBS}{set_id}/{snapshot}"


class VolumeData:
    """Working copies and blobs on one snapshotter. Thread-safe."""

    def __init__(self, snapshotter: Snapshotter, changed: Changed, new_id: NewId) -> None:
        """`changed` says whether a layer differs from its last copy."""
        self._snapshotter = snapshotter
        self._changed = changed
        self._new_id = new_id

    def prepare(self, volume: VolumeId, blob: str) -> str:
        """Make a working copy of a blob, or of nothing; return its key."""
        key = f"{KEYS}{volume}/{self._new_id()[:8]}"
        self._snapshotter.prepare(key, blob, {STILL_LABEL: "yes"})
        return key

    def limit(self, key: str, size_bytes: int | None) -> None:
        """Set what a working copy's own changes may take; None for no limit."""
        self._snapshotter.set_quota(key, size_bytes=size_bytes or 0)

    def source(self, key: str) -> Path:
        """Return the directory that shows a working copy; Unavailable when it cannot be shown."""
        found = self._snapshotter.mounts(key)[0]
        if found.type != "bind":
            raise Internal(f"snapshot {key!r} is not shown by a lane")
        return Path(found.source)

    def tree(self, key: str, path: str) -> Bound | None:
        """Return a working copy as mount tables have it, at `path`; None where no lane shows it."""
        found = self._snapshotter.mounts(key)[0]
        source = Path(found.source)
        device = mounting.device_of(source.parent) if found.type == "bind" else None
        return Bound(device, f"/{source.name}", path) if device else None

    def copy(self, key: str, blob: str, also: Callable[[WriteTx, Committed], T]) -> Copied[T]:
        """Commit a copy of a working copy that goes on, with `also` in its transaction."""
        return self._snapshotter.copies.commit_copy(key, blob, None, also)

    def has_changed(self, key: str, *, still: bool = False) -> bool:
        """Say whether a working copy differs from its last copy, or from what it grew from.

        With `still` it is frozen meanwhile, so that what mappings have changed is seen too.
        """
        return self._snapshotter.copies.has_changed(key, self._changed, still=still)

    def usage(self, key: str) -> Usage:
        """Return what a working copy's own changes take."""
        return self._snapshotter.usage(key)

    def remove(self, key: str, first: Callable[[WriteTx], None] | None = None) -> None:
        """Remove a working copy or a blob, with `first` before it in the same transaction."""
        if first is None:
            self._snapshotter.remove(key)
        else:
            self._snapshotter.remove(key, first=first)

    def discard(self, key: str) -> None:
        """Remove what nothing refers to any more; a failure is left for the next start."""
        try:
            self._snapshotter.remove(key)
        except SnapfsError as error:
            log.warning("volume.data_left", key=key, error=str(error))

    def layers(self, name: str) -> tuple[Path, ...]:
        """Return the layers of a working copy or a blob, topmost first."""
        return self._snapshotter.all_layers(name)

    def sweep(self) -> None:
        """Remove what a crash has left, children before parents."""
        left = [it for it in self._snapshotter.walk() if _OURS.fullmatch(it.name)]
        for found in sorted(left, key=lambda it: -len(it.parent_ids)):
            with self._snapshotter.store.view() as tx:
                is_left = _is_left(tx, found.name)
            if is_left:
                log.info("volume.swept", key=found.name)
                try:
                    self._snapshotter.remove(found.name)
                except FailedPrecondition as error:  # a view of it is mounted
                    log.info("volume.not_swept", key=found.name, reason=str(error))


def _is_left(tx: ReadTx, name: str) -> bool:
    row = records.find(tx, name)
    return not (tx.has_referrers(row.oid, ACTIVE_EDGE) or tx.has_referrers(row.oid, DATA_EDGE))
