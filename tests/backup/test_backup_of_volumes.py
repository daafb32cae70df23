"""Volumes and their snapshots are in a backup; working copies are active snapshots, and are not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs import backup, tables
from snapfs.overlay import LayerCopy, has_changed
from snapfs.snapshots import NoTrees, Snapshotter, fsck
from snapfs.volumes import Volumes
from snapfs.volumes.model import Note

pytestmark = pytest.mark.root


@pytest.fixture
def snapshotter(tmp_path: Path) -> Iterator[Snapshotter]:
    with Snapshotter(
        tmp_path / "root", trees=NoTrees(), tables=tables.TABLES, copier=LayerCopy
    ) as opened:
        yield opened


def test_the_snapshots_of_a_volume_are_restored_and_its_working_copy_is_not(
    snapshotter: Snapshotter, tmp_path: Path
) -> None:
    volumes = Volumes(snapshotter, tmp_path / "mounts", changed=has_changed)
    volumes.create("db", why=Note(author="ann"))
    (volumes.layers("db")[0] / "file").write_text("kept")
    volumes.history.snapshot("db", "one", branch="", why=Note(author="ann"))
    taken = backup.take(snapshotter.root, tmp_path / "backup")
    assert len(taken.left_out) == 1
    done = backup.restore(tmp_path / "backup", tmp_path / "new")
    assert done.left_out == taken.left_out
    assert fsck(tmp_path / "new", tables=tables.TABLES, checks=tables.CHECKS).clean
    (layer,) = (tmp_path / "new" / "layers").iterdir()
    assert (layer / "fs" / "file").read_text() == "kept"
