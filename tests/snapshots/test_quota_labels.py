"""What labels and the configuration say of a quota."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs.model import InvalidArgument, Quota, Unbound
from snapfs.snapshots import Snapshotter
from snapfs.snapshots.quota import (
    INODES_LABEL,
    MAX,
    SIZE_LABEL,
    of_labels,
    parse_size,
    to_label,
)
from tests.snapshots.conftest import RecordingTrees

NONE = Quota()


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1048576", 1 << 20),
        ("32b", 32),
        ("10k", 10 << 10),
        ("10Kb", 10 << 10),
        ("10KiB", 10 << 10),
        ("1.5 GB", 3 << 29),
        ("2t", 2 << 40),
        ("1P", 1 << 50),
    ],
)
def test_sizes_are_read_as_containerds_own_snapshotters_do(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "10 x", "much", "1e3", "0x10", "9999999P", "\u0661"]
)
def test_other_sizes_are_refused_with_the_label_named(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_size(text)
    if text:
        with pytest.raises(InvalidArgument, match=SIZE_LABEL):
            of_labels({SIZE_LABEL: text}, NONE)


@given(st.none() | st.integers(1, MAX), st.none() | st.integers(1, MAX))
def test_labels_say_what_they_were_made_of(size_bytes: int | None, inodes: int | None) -> None:
    labels = {SIZE_LABEL: to_label(size_bytes or 0), INODES_LABEL: to_label(inodes or 0)}
    kept = {label: text for label, text in labels.items() if text is not None}
    assert of_labels(kept, Quota(7, 7)) == Quota(size_bytes, inodes)


def test_labels_come_before_the_configuration() -> None:
    default = Quota(1000, 10)
    assert of_labels({}, default) == default
    assert of_labels({SIZE_LABEL: "2k"}, default) == Quota(2048, 10)
    assert of_labels({INODES_LABEL: "none"}, default) == Quota(1000, None)


def test_bad_labels_are_refused_before_anything_is_made(snapshotter: Snapshotter) -> None:
    for label, value in ((SIZE_LABEL, "big"), (INODES_LABEL, "1k")):
        with pytest.raises(InvalidArgument, match=label):
            snapshotter.prepare("work", "", {label: value})
    assert not list(snapshotter.walk())
    snapshotter.prepare("work")
    with pytest.raises(InvalidArgument, match=SIZE_LABEL):
        snapshotter.update("work", {SIZE_LABEL: "big"}, [f"labels.{SIZE_LABEL}"])
    assert SIZE_LABEL not in snapshotter.stat("work").labels


def test_a_changed_quota_is_told_to_who_shows_the_tree(
    snapshotter: Snapshotter, trees: RecordingTrees
) -> None:
    snapshotter.prepare("work")
    assert snapshotter.set_quota("work", size_bytes=1 << 30) == Quota(1 << 30)
    assert ("rebind", snapshotter.stat("work").id) in trees.calls
    assert snapshotter.set_quota("work", inodes=5) == Quota(1 << 30, 5)
    assert snapshotter.set_quota("work", size_bytes=0) == Quota(None, 5)


@pytest.mark.logs("quota.passed_by_open_files")
def test_files_that_pass_a_quota_are_told_of_where_bytes_are_bounded(
    snapshotter: Snapshotter, trees: RecordingTrees
) -> None:
    trees.written = Unbound(2, ("/a", "/b"))
    snapshotter.prepare("work")
    snapshotter.set_quota("work", inodes=5)
    assert snapshotter.unbound("work") == Unbound()
    snapshotter.update("work", {SIZE_LABEL: "1MiB"}, [f"labels.{SIZE_LABEL}"])
    assert snapshotter.unbound("work") == trees.written
