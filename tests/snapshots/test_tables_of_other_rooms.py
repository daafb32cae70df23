"""Other rooms keep rows in the root's store; opening and checking it knows their tables."""

import pytest

from snapfs import anchors
from snapfs.anchors import Anchors, Ref
from snapfs.anchors.schema import FACTS, SCOPE
from snapfs.model import FailedPrecondition
from snapfs.snapshots import MetaStore, NoTrees, Snapshotter, fsck


@pytest.fixture
def stocked(root):
    """A root with an anchor in its store."""
    with Snapshotter(root, trees=NoTrees(), tables=anchors.TABLES) as snapshotter:
        snapshotter.prepare("work")
        Anchors(snapshotter.store).put("n", Ref("snapshot", "work"))
    return root


def test_snapshots_and_anchors_share_one_store(stocked):
    with Snapshotter(stocked, trees=NoTrees(), tables=anchors.TABLES) as snapshotter:
        assert Anchors(snapshotter.store).get("n").ref.value == snapshotter.stat("work").name
        assert snapshotter.fsck().clean


@pytest.mark.parametrize("repair", [False, True])
def test_fsck_of_a_root_that_nobody_serves_knows_the_tables(stocked, repair):
    assert fsck(stocked, tables=anchors.TABLES, repair=repair).clean


def test_program_without_the_tables_is_refused_and_changes_nothing(stocked):
    with pytest.raises(FailedPrecondition, match="rows of table anchor"):
        MetaStore(stocked / "metadata")
    assert fsck(stocked, tables=anchors.TABLES).clean


def test_fsck_says_what_other_rooms_find(stocked):
    tables, checks = anchors.TABLES, anchors.CHECKS
    with Snapshotter(stocked, trees=NoTrees(), tables=tables, checks=checks) as snapshotter:
        assert snapshotter.fsck().clean
        with snapshotter.store.view() as tx:
            (fact,) = tx.rows(FACTS, SCOPE)
        snapshotter.store.update(lambda tx: tx.delete(fact))
        (served,) = snapshotter.fsck().problems
    (found,) = fsck(stocked, tables=tables, checks=checks).problems
    assert found == served
    assert (found.kind, found.message) == ("anchor", "anchor 'n' has no fact")
