"""What containerd's snapshots service offers: our own snapshotter, and those that are registered.

Holds one rule: containerd removes whatever it is shown and does not know, so it is shown, and may
remove, of our own snapshots what was made over this service.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from snapfs.metadata import Context, Snapshots
from snapfs.model import FailedPrecondition, Labels, Mount, Snapshot, Usage
from snapfs.service.snapshotter import Snapshotter

OWNER = "containerd"
"""Of what is made over this service."""


class Own:
    """metadata.Backend over our own snapshotter, whose namespaces are containerd's business."""

    def __init__(self, snapshotter: Snapshotter) -> None:
        self._snapshotter = snapshotter

    def prepare(self, key: str, parent: str, labels: Labels) -> list[Mount]:
        return self._snapshotter.prepare(key, parent, labels, owner=OWNER)

    def view(self, key: str, parent: str, labels: Labels) -> list[Mount]:
        return self._snapshotter.view(key, parent, labels, owner=OWNER)

    def mounts(self, key: str) -> list[Mount]:
        return self._snapshotter.mounts(key)

    def commit(self, key: str, name: str, labels: Labels, parent: str = "") -> None:
        self._snapshotter.commit(key, name, labels, parent=parent)

    def remove(self, key: str) -> None:
        if not _is_theirs(self._snapshotter.stat(key)):
            # containerd's collector goes on with the next one after this refusal.
            raise FailedPrecondition(
                f"snapshot {key!r} was not made by containerd; remove it with "
                "`snapfs snapshot remove`, or the image that it is of"
            )
        self._snapshotter.remove(key)

    def stat(self, key: str) -> Snapshot:
        return self._snapshotter.stat(key)

    def update(self, key: str, labels: Labels, fieldpaths: Sequence[str] | None = None) -> Snapshot:
        return self._snapshotter.update(key, labels, fieldpaths)

    def walk(self, filters: Sequence[str] = ()) -> Iterator[Snapshot]:
        return filter(_is_theirs, self._snapshotter.walk(filters))

    def usage(self, key: str) -> Usage:
        return self._snapshotter.usage(key)

    def cleanup(self) -> None:
        self._snapshotter.cleanup()


class InNamespace:
    """metadata.Backend over a registered snapshotter, for one caller: what containerd itself is."""

    def __init__(self, snapshots: Snapshots, context: Context) -> None:
        self._snapshots = snapshots
        self._context = context

    def prepare(self, key: str, parent: str, labels: Labels) -> list[Mount]:
        return self._snapshots.prepare(self._context, key, parent, labels)

    def view(self, key: str, parent: str, labels: Labels) -> list[Mount]:
        return self._snapshots.view(self._context, key, parent, labels)

    def mounts(self, key: str) -> list[Mount]:
        return self._snapshots.mounts(self._context.namespace, key)

    def commit(self, key: str, name: str, labels: Labels, parent: str = "") -> None:
        self._snapshots.commit(self._context, key, name, labels, parent)

    def remove(self, key: str) -> None:
        self._snapshots.remove(self._context.namespace, key)

    def stat(self, key: str) -> Snapshot:
        return self._snapshots.stat(self._context.namespace, key)

    def update(self, key: str, labels: Labels, fieldpaths: Sequence[str] | None = None) -> Snapshot:
        return self._snapshots.update(self._context.namespace, key, labels, fieldpaths or ())

    def walk(self, filters: Sequence[str] = ()) -> Iterator[Snapshot]:
        return self._snapshots.walk(self._context.namespace, filters)

    def usage(self, key: str) -> Usage:
        return self._snapshots.usage(self._context.namespace, key)

    def cleanup(self) -> None:
        self._snapshots.cleanup()


def _is_theirs(snapshot: Snapshot) -> bool:
    """Say whether containerd made a snapshot."""
    return snapshot.owner == OWNER
