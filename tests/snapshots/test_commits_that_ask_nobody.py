"""A tree that nobody ever showed is committed without a word to those who show trees."""

from __future__ import annotations

import threading

import pytest

from snapfs.fuse.lane import LaneForest
from snapfs.model import AlreadyExists, Committed
from snapfs.overlay import Inodes
from snapfs.snapshots import LayerReader, NoTrees, Snapshotter, claims


def work(root, snapshotter, name):
    return root / "layers" / str(snapshotter.stat(name).id) / "work"


@pytest.fixture
def forest(root, snapshotter):
    with LayerReader.open(root) as reader:
        yield LaneForest(reader, root / "layers", Inodes())


def test_a_tree_never_shown_is_neither_frozen_nor_dropped(snapshotter, trees):
    snapshotter.prepare("a")
    assert isinstance(snapshotter.commit("a", "base"), Committed)
    assert trees.calls == []


def test_a_tree_once_shown_is_frozen_also_when_nobody_shows_it_any_more(snapshotter, trees, forest):
    snapshotter.prepare("a")
    forest.open(1)
    forest.close()
    snapshotter.commit("a", "base")
    assert trees.calls == [("freeze", 1), ("drop", 1)]


def test_nobody_can_begin_to_show_a_tree_while_it_is_committed_or_afterwards(root, trees):
    refused = []

    def look(step):
        if step.startswith("commit."):
            with LayerReader.open(root) as reader:
                forest = LaneForest(reader, root / "layers", Inodes())
                with pytest.raises(FileNotFoundError):
                    forest.open(1)
                forest.close()
            refused.append(step)

    with Snapshotter(root, trees=trees, steps=look) as snapshotter:
        snapshotter.prepare("a")
        snapshotter.commit("a", "base")
    assert len(refused) == 5


def test_a_worker_that_read_before_the_commit_and_opens_after_it_is_refused(root, snapshotter):
    snapshotter.prepare("a")
    at = work(root, snapshotter, "a")
    snapshotter.commit("a", "base")
    assert not claims.show(at)


def test_a_failed_commit_leaves_a_tree_that_can_be_shown(root, trees, snapshotter, forest):
    snapshotter.prepare("b")
    snapshotter.commit("b", "taken")
    snapshotter.prepare("a")
    original = snapshotter._sync.sync

    def take_the_name(_layer):
        snapshotter.prepare("c")
        snapshotter.commit("c", "base")

    def once(layer):
        snapshotter._sync.sync = original
        take_the_name(layer)

    snapshotter._sync.sync = once
    with pytest.raises(AlreadyExists):
        snapshotter.commit("a", "base")
    assert forest.open(snapshotter.stat("a").id)
    assert trees.calls == []


def test_a_claim_that_a_crash_left_is_given_back_at_the_next_opening(root):
    with Snapshotter(root, trees=NoTrees()) as snapshotter:
        snapshotter.prepare("a")
        at = work(root, snapshotter, "a")
    assert claims.claim(at)
    assert not claims.show(at)
    with Snapshotter(root, trees=NoTrees()):
        assert claims.show(at)


def test_of_a_commit_and_a_worker_at_once_one_has_the_tree(tmp_path):
    for number in range(200):
        at = tmp_path / str(number)
        at.mkdir()
        start = threading.Barrier(2)
        outcomes = {}

        def run(name, take, start=start, outcomes=outcomes, at=at):
            start.wait()
            outcomes[name] = take(at)

        threads = [
            threading.Thread(target=run, args=("commit", claims.claim)),
            threading.Thread(target=run, args=("worker", claims.show)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(outcomes.values()) == [False, True]
