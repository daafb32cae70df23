"""What the lifecycle asks of whoever shows snapshots as merged trees."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from snapfs.model import SnapshotId


class Trees(Protocol):
    """The merged trees of active and view snapshots, as directories to bind-mount.

    Thread-safe. Each method returns within its deadline or raises DeadlineExceeded; a tree that
    nobody looked at yet is no error.
    """

    def freeze(self, snapshot_id: SnapshotId, /, *, timeout_s: float) -> None:
        """Return when no change is in flight and none can begin; writers wait from now on."""

    def thaw(self, snapshot_id: SnapshotId, /) -> None:
        """Undo `freeze`."""

    def drop(self, snapshot_id: SnapshotId, /) -> None:
        """Forget the tree: its snapshot was committed, and is read-only now, or removed."""

    def mountpoint(self, snapshot_id: SnapshotId, /) -> Path:
        """Return the directory that shows the tree; it need not be mounted yet."""
        ...


class NoTrees:
    """Nothing is shown: for tools that work on a root without mounting it.

    Mounts still name a directory, below the one given, so that they can be compared.
    """

    def __init__(self, mountpoint: Path = Path("/run/snapfs/mnt/none")) -> None:
        self._mountpoint = mountpoint

    def freeze(self, snapshot_id: SnapshotId, /, *, timeout_s: float) -> None:
        """Do nothing: without trees nobody writes through them."""

    def thaw(self, snapshot_id: SnapshotId, /) -> None:
        """Do nothing."""

    def drop(self, snapshot_id: SnapshotId, /) -> None:
        """Do nothing."""

    def mountpoint(self, snapshot_id: SnapshotId, /) -> Path:
        return self._mountpoint / str(snapshot_id)
