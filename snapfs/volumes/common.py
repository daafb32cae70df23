"""What all operations on volumes share: the store, the data, one lock for each set."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import structlog

from snapfs.model import (
    FailedPrecondition,
    Unavailable,
)
from snapfs.snapshots import Snapshotter
from snapfs.snapshots.copying import Changed
from snapfs.snapshots.locks import KeyedLocks
from snapfs.store import ReadTx, Store, WriteTx
from snapfs.volumes import (
    ancestry,
    copies,
    sets,
)
from snapfs.volumes.copies import VolumeRow
from snapfs.volumes.data import VolumeData
from snapfs.volumes.errors import VolumeNotFound
from snapfs.volumes.ids import (
    NewId,
    VolumeId,
    VolumeSetId,
)
from snapfs.volumes.model import (
    VolumeSnapshot,
)
from snapfs.volumes.replacing import Manner
from snapfs.volumes.schema import SCOPE, VOLUMES

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Common:
    """The volumes of one root, seen by their operations."""

    def __init__(
        self,
        snapshotter: Snapshotter,
        place: Path,
        *,
        changed: Changed,
        new_id: NewId,
        deadline_s: float,
    ) -> None:
        """`place` is the directory below which volumes without a path of their own are mounted."""
        self.store: Store = snapshotter.store
        self.data = VolumeData(snapshotter, changed, new_id)
        self.place = place
        self.frozen_groups = place.with_name(f"{place.name}.frozen")
        """Names control groups that are frozen by us, while they are; see `pausing`."""
        self.new_id = new_id
        self._deadline_s = deadline_s
        self._busy = KeyedLocks()

    @contextmanager
    def held(self, name: str) -> Iterator[VolumeRow]:
        """Hold the lock of a volume's set, with the volume as it is then, and a working copy."""
        with self.store.view() as tx:
            first = copies.resolve(tx, name)
        what = f"volume {first.body.name!r}"
        with self._busy.hold(first.body.set, what, self._deadline_s):
            with self.store.view() as tx:
                row = copies.resolve(tx, first.name)
            yield row if row.body.key else self._renewed(row)

    @contextmanager
    def held_set(self, row: sets.SetRow) -> Iterator[None]:
        """Hold the lock of a set."""
        with self._busy.hold(row.oid, f"volume set {row.body.path!r}", self._deadline_s):
            yield

    @contextmanager
    def pausing(self, manner: Manner) -> Iterator[Path]:
        """Give the file that names what is frozen; to one at a time where something may be.

        A group may use volumes of several sets: who froze it is to let it go.
        """
        with ExitStack() as stack:
            if manner.pause:
                hold = self._busy.hold(self.frozen_groups, "pausing", self._deadline_s)
                stack.enter_context(hold)
            yield self.frozen_groups

    def _renewed(self, row: VolumeRow) -> VolumeRow:
        """Give a volume whose working copy a restore left out one of what it stands on."""
        with self.store.view() as tx:
            base = blob(ancestry.by_oid(tx, row.body.base)) if row.body.base else ""
        key = self.data.prepare(VolumeId(row.name), base)
        with self.discarding(key):
            if row.body.size_bytes:
                self.data.limit(key, row.body.size_bytes)
            made = self.update(lambda tx: copies.give(tx, copies.resolve(tx, row.name), key))
        log.warning("volume.working_copy_made_anew", name=row.body.name, base=row.body.base_id)
        return made

    @contextmanager
    def discarding(self, key: str) -> Iterator[None]:
        """Remove a new working copy again unless the block comes to its end."""
        is_done = False
        try:
            yield
            is_done = True
        finally:
            if not is_done:
                with self.store.view() as tx:
                    is_used = any(it.body.key == key for it in tx.rows(VOLUMES, SCOPE))
                if not is_used:
                    self.data.discard(key)

    def source(self, tx: ReadTx, text: str) -> tuple[VolumeSetId, VolumeRow | None]:
        """Return the set of a volume, with the volume, or of a set."""
        try:
            row = copies.resolve(tx, text)
        except VolumeNotFound:
            return VolumeSetId(sets.resolve(tx, text).name), None
        return VolumeSetId(row.body.set_id), row

    def blob_of(self, found: VolumeSnapshot) -> str:
        if not found.blob:
            raise absent(found.id)
        return found.blob

    def update(self, change: Callable[[WriteTx], T]) -> T:
        return self.store.update(change, timeout_s=self._deadline_s)


def blob(row: ancestry.SnapshotRow) -> str:
    if not row.body.blob:
        raise absent(row.name)
    return row.body.blob


def absent(snapshot: str) -> FailedPrecondition:
    return FailedPrecondition(f"volume snapshot {snapshot} has no data on this host; pull it first")


@contextmanager
def refusing(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f" ({os.fsdecode(error.filename)})" if error.filename else ""
        raise Unavailable(f"cannot {what}{where}: {error.strerror or error}") from error
