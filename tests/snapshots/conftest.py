"""A metastore, and a snapshotter whose trees record what they are told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.model import (
    MAIN_LANE,
    DeadlineExceeded,
    Kind,
    Labels,
    LaneName,
    SnapshotId,
    Unbound,
    Usage,
)
from snapfs.snapshots import MetaStore, Snapshotter


class RecordingTrees:
    """Trees that note every call, and refuse what they are told to refuse."""

    def __init__(self, mountpoint: Path) -> None:
        self.calls: list[tuple[str, int]] = []
        self.refuse: set[str] = set()
        self.written = Unbound()
        self._mountpoint = mountpoint

    def freeze(self, identity: SnapshotId, /, *, timeout_s: float, lasting: bool = True) -> None:
        self._note("freeze", identity)

    def thaw(self, identity: SnapshotId, /) -> None:
        self._note("thaw", identity)

    def drop(self, identity: SnapshotId, /) -> None:
        self._note("drop", identity)

    def rebind(self, identity: SnapshotId, /) -> None:
        self._note("rebind", identity)

    def usage(self, identity: SnapshotId, /) -> Usage | None:
        return None

    def unbound(self, identity: SnapshotId, /) -> Unbound:
        return self.written

    def place(self, kind: Kind, labels: Labels | None, /) -> LaneName:
        return MAIN_LANE

    def lane(self, name: LaneName, /) -> RecordingTrees:
        return self

    def serve(self, name: LaneName, /) -> None:
        """Do nothing: whatever is asked for is there."""

    def mountpoint(self, identity: SnapshotId, /, mapping: object = None) -> Path:
        return self._mountpoint / str(identity)

    def _note(self, call: str, identity: SnapshotId) -> None:
        self.calls.append((call, identity))
        if call in self.refuse:
            raise DeadlineExceeded(f"{call} of tree {identity}: no answer; restart the worker")


@pytest.fixture
def metastore(tmp_path: Path) -> Iterator[MetaStore]:
    with MetaStore(tmp_path / "metadata") as opened:
        yield opened


@pytest.fixture
def trees(tmp_path: Path) -> RecordingTrees:
    return RecordingTrees(tmp_path / "mnt")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def snapshotter(root: Path, trees: RecordingTrees) -> Iterator[Snapshotter]:
    with Snapshotter(root, trees=trees) as opened:
        yield opened
