"""What a closed tree leaves of its count is read, taken once, and never believed when damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapfs.model import Usage
from snapfs.snapshots import Snapshotter, counted
from snapfs.snapshots.usage import measure

SUMS = counted.Sums(size_bytes=8192, inodes=3, sum_blocks=16, sum_inodes=2)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "snapfs").mkdir()
    return tmp_path


def test_a_draft_is_no_record(work: Path) -> None:
    counted.draft(work, SUMS)
    assert counted.read(work) is None
    counted.publish(work)
    assert counted.read(work) == Usage(8192, 3)


def test_a_record_is_taken_once(work: Path) -> None:
    counted.draft(work, SUMS)
    counted.publish(work)
    assert counted.take(work) == SUMS
    assert counted.take(work) is None
    assert counted.read(work) is None


@pytest.mark.parametrize("content", [b"", b"{", b'{"format":9,"size_bytes":1,"inodes":1}', b"[]"])
def test_a_record_that_is_not_ours_is_removed_and_not_believed(work: Path, content: bytes) -> None:
    (work / "snapfs" / "usage").write_bytes(content)
    assert counted.read(work) is None
    assert counted.take(work) is None
    assert not (work / "snapfs" / "usage").exists()


def test_a_work_directory_that_a_commit_has_claimed_holds_no_record(tmp_path: Path) -> None:
    (tmp_path / "snapfs").touch()
    assert counted.read(tmp_path) is None


def test_usage_of_a_closed_tree_is_its_record_and_else_a_walk(
    snapshotter: Snapshotter, root: Path
) -> None:
    snapshotter.prepare("work")
    layer = root / "layers" / str(snapshotter.stat("work").id)
    (layer / "fs" / "file").write_bytes(b"x" * 10_000)
    assert snapshotter.usage("work") == measure(layer / "fs")
    (layer / "work" / "snapfs").mkdir()
    counted.draft(layer / "work", SUMS)
    counted.publish(layer / "work")
    assert snapshotter.usage("work") == SUMS.usage


def test_usage_of_what_is_unpacked_beside_the_trees_is_always_a_walk(
    snapshotter: Snapshotter, root: Path
) -> None:
    snapshotter.prepare("extract-1")
    layer = root / "layers" / str(snapshotter.stat("extract-1").id)
    (layer / "work" / "snapfs").mkdir()
    counted.draft(layer / "work", SUMS)
    counted.publish(layer / "work")
    assert snapshotter.usage("extract-1") == measure(layer / "fs")
