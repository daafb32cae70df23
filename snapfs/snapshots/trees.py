"""What the lifecycle asks of whoever shows snapshots as merged trees."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from snapfs.model import MAIN_LANE, Kind, Labels, LaneName, SnapshotId, Unbound, Usage
from snapfs.snapshots.idmapping import IdMapping


class Trees(Protocol):
    """The merged trees of the snapshots of one lane, as directories to bind-mount.

    Thread-safe. Each method returns within its deadline or raises DeadlineExceeded; a tree that
    nobody looked at yet is no error.
    """

    def freeze(self, snapshot_id: SnapshotId, /, *, timeout_s: float, lasting: bool = True) -> None:
        """Return when no change is in flight and none can begin; writers wait from now on.

        A freeze that is not `lasting` ends by itself when the process that asked for it does.
        """

    def thaw(self, snapshot_id: SnapshotId, /) -> int | None:
        """Undo `freeze`; return for how many nanoseconds changes were held, if that is known."""

    def drop(self, snapshot_id: SnapshotId, /) -> None:
        """Forget the tree: its snapshot was committed, and is read-only now, or removed."""

    def rebind(self, snapshot_id: SnapshotId, /) -> None:
        """Read the labels of a snapshot again: its quota has changed."""

    def usage(self, snapshot_id: SnapshotId, /) -> Usage | None:
        """Return what a shown snapshot's own files take; None when the trees do not know."""

    def unbound(self, snapshot_id: SnapshotId, /) -> Unbound:
        """Return the files of a snapshot that may be written past a quota for now."""
        ...

    def mountpoint(self, snapshot_id: SnapshotId, /, mapping: IdMapping | None = None) -> Path:
        """Return the directory that shows the tree, its owners mapped; see `Lanes.serve`.

        Raises Unavailable when it cannot be made ready.
        """
        ...


class Lanes(Protocol):
    """Where trees can be shown. Thread-safe."""

    def place(self, kind: Kind, labels: Labels | None, /) -> LaneName:
        """Return the lane for a snapshot to be made; InvalidArgument when it cannot be chosen."""
        ...

    def lane(self, name: LaneName, /) -> Trees:
        """Return a lane's trees, or raise FailedPrecondition when there is no such lane."""
        ...

    def serve(self, name: LaneName, /) -> None:
        """Return when what is mounted from a lane can be used, starting it at first need.

        Raises Unavailable or DeadlineExceeded.
        """


class NoTrees:
    """Nothing is shown: for tools that work on a root without mounting it.

    Mounts still name a directory, below the one given, so that they can be compared.
    """

    def __init__(self, mountpoint: Path = Path("/run/snapfs/mnt/none")) -> None:
        self._mountpoint = mountpoint

    def place(self, kind: Kind, labels: Labels | None, /) -> LaneName:
        return MAIN_LANE

    def lane(self, name: LaneName, /) -> Trees:
        return self

    def serve(self, name: LaneName, /) -> None:
        """Do nothing."""

    def freeze(self, snapshot_id: SnapshotId, /, *, timeout_s: float, lasting: bool = True) -> None:
        """Do nothing: without trees nobody writes through them."""

    def thaw(self, snapshot_id: SnapshotId, /) -> int | None:
        return None

    def drop(self, snapshot_id: SnapshotId, /) -> None:
        """Do nothing."""

    def rebind(self, snapshot_id: SnapshotId, /) -> None:
        """Do nothing: without trees nobody writes through them."""

    def usage(self, snapshot_id: SnapshotId, /) -> Usage | None:
        return None

    def unbound(self, snapshot_id: SnapshotId, /) -> Unbound:
        return Unbound()

    def mountpoint(self, snapshot_id: SnapshotId, /, mapping: IdMapping | None = None) -> Path:
        return self._mountpoint / str(snapshot_id)
