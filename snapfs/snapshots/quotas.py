"""The quotas of the snapshots of one root: kept in labels, and told to who shows the tree."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from snapfs.model import Active, FailedPrecondition, Labels, Quota, Snapshot, Unbound
from snapfs.snapshots import quota, records
from snapfs.snapshots.metastore import MetaStore
from snapfs.snapshots.trees import Lanes

log = structlog.get_logger(__name__)


class Quotas:
    """What each active snapshot may take. Thread-safe."""

    def __init__(self, meta: MetaStore, trees: Lanes, default: Quota) -> None:
        self._meta = meta
        self._trees = trees
        self._default = default

    def check(self, labels: Labels) -> None:
        """Raise InvalidArgument when labels say a quota that cannot be read."""
        quota.of_labels(labels, self._default)

    def update(self, key: str, labels: Labels, fieldpaths: Sequence[str] | None) -> Snapshot:
        """Change labels, if their quota can be read, and let it hold at once."""
        self.check(labels)
        changed = self._meta.update(key, labels, fieldpaths)
        if isinstance(changed, Active) and quota.may_change(fieldpaths):
            self._trees.lane(changed.lane).rebind(changed.id)
            if unbound := self._unbound(changed):
                log.warning(
                    "quota.passed_by_open_files",
                    key=key,
                    files=unbound.files,
                    paths=unbound.paths,
                    until="they are closed",
                )
        return changed

    def unbound(self, key: str) -> Unbound:
        """Return the files that are written past the quota in bytes that there is."""
        found = self._meta.info(key)
        return (self._unbound(found) if isinstance(found, Active) else None) or Unbound()

    def _unbound(self, snapshot: Active) -> Unbound | None:
        if quota.of_labels(snapshot.labels, self._default).size_bytes is None:
            return None
        found = self._trees.lane(snapshot.lane).unbound(snapshot.id)
        return found if found.files else None

    def get(self, key: str) -> Quota:
        """Return the quota of an active snapshot; NotFound, FailedPrecondition of others."""
        found = self._meta.info(key)
        if not isinstance(found, Active):
            raise FailedPrecondition(
                f"snapshot {records.shown(key)} is {found.kind.word} and takes no changes; "
                "only an active one has a quota"
            )
        return quota.of_labels(found.labels, self._default)

    def change(self, key: str, size_bytes: int | None, inodes: int | None) -> Quota:
        """Change limits: None leaves one, 0 takes it away."""
        self.get(key)
        wanted = {
            quota.SIZE_LABEL: quota.to_label(size_bytes),
            quota.INODES_LABEL: quota.to_label(inodes),
        }
        labels = {label: text for label, text in wanted.items() if text is not None}
        if labels:
            self.update(key, labels, [f"labels.{label}" for label in labels])
        return self.get(key)
