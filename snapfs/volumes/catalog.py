"""Sets as people look for them, what they say of sets and snapshots, and the end of a set."""

from __future__ import annotations

import structlog

from snapfs.model import AlreadyExists
from snapfs.store import ReadTx, WriteTx
from snapfs.volumes import queries, refs, sets, snapshots
from snapfs.volumes.common import Common
from snapfs.volumes.ids import VolumeSetId
from snapfs.volumes.model import NO_NOTE, Attributes, Note, VolumeSet, VolumeSnapshot
from snapfs.volumes.queries import EVERYTHING, Query

log = structlog.get_logger(__name__)


class Catalog:
    """The sets of one root; see `Volumes`. Where a set is wanted, a volume of it will do."""

    def __init__(self, common: Common) -> None:
        self.common = common

    def walk(self, query: Query = EVERYTHING) -> list[VolumeSet]:
        """Return the sets that a query selects, also those without a volume here."""
        with self.common.store.view() as tx:
            return queries.list_sets(tx, query)

    def edit(
        self,
        of: str,
        *,
        name: str | None = None,
        prefix: str | None = None,
        description: str | None = None,
        owner: str | None = None,
        attributes: Attributes | None = None,
    ) -> VolumeSet:
        """Change what travels of a set; None leaves a field, an empty attribute goes.

        Raises AlreadyExists when another set has the path here.
        """

        def edit(tx: WriteTx) -> VolumeSet:
            set_id, _ = self.common.source(tx, of)
            before = sets.find(tx, set_id).body
            row = sets.edit(
                tx,
                set_id,
                name=name,
                prefix=prefix,
                description=description,
                owner=owner,
                attributes=_with(before.attributes, attributes or {}),
            )
            if row.body.path != before.path:
                _check_free(tx, row.body.path, set_id)
            return sets.show(tx, row)

        return self.common.update(edit)

    def edit_snapshot(
        self,
        of: str,
        ref: str,
        *,
        name: str | None = None,
        description: str | None = None,
        owner: str | None = None,
        attributes: Attributes | None = None,
    ) -> VolumeSnapshot:
        """Change what travels of a snapshot; None leaves a field, an empty attribute goes."""

        def edit(tx: WriteTx) -> VolumeSnapshot:
            set_id, volume = self.common.source(tx, of)
            row = refs.resolve(tx, set_id, ref, volume).row
            row = snapshots.edit(
                tx,
                row,
                name=name,
                description=description,
                owner=owner,
                attributes=_with(row.body.attributes, attributes or {}),
            )
            return snapshots.show(tx, row)

        return self.common.update(edit)

    def remove(self, of: str, why: Note = NO_NOTE) -> None:
        """Delete a set with its history; FailedPrecondition while it has volumes here."""
        with self.common.store.view() as tx:
            row = sets.resolve(tx, of)
        set_id = VolumeSetId(row.name)
        with self.common.held_set(row):
            for blob in self.common.update(lambda tx: sets.delete(tx, set_id, why)):
                self.common.data.discard(blob)
        log.info("volume_set.removed", path=row.body.path, id=set_id)


def _with(before: Attributes, changes: Attributes) -> Attributes:
    return {key: value for key, value in {**before, **changes}.items() if value}


def _check_free(tx: ReadTx, path: str, own: VolumeSetId) -> None:
    if any(it.name != own for it in sets.called(tx, path)):
        raise AlreadyExists(f"volume set {path!r} already exists; use another name")
