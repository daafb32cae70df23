"""The model's rules: what can be made, grown, found, renamed and deleted, and what is derived."""

from __future__ import annotations

import pytest

from snapfs.anchors import Anchors
from snapfs.model import AlreadyExists, Conflict, FailedPrecondition, InvalidArgument
from snapfs.snapshots import records
from snapfs.store import Store
from snapfs.volumes import (
    ancestry,
    branches,
    collecting,
    copies,
    history,
    queries,
    sets,
    tombstones,
)
from snapfs.volumes import snapshots as rules
from snapfs.volumes.autorule import Base, Extend, Fork, choose
from snapfs.volumes.errors import (
    Ambiguous,
    BlobMismatch,
    BranchNotFound,
    SnapshotImportMismatch,
    VolumeNotFound,
    VolumeSetNotFound,
    VolumeSnapshotNotFound,
)
from snapfs.volumes.ids import VolumeSetId
from snapfs.volumes.model import VolumeSet
from snapfs.volumes.queries import Query, Sort
from tests.volumes.kit import ANN, NOW, Tree, branch_id, identity, snapshot_id


def test_a_set_is_found_by_id_path_and_short_id(store: Store) -> None:
    made = VolumeSet(id=VolumeSetId(identity("db")), name="db", prefix="team", creator="ann")
    store.update(lambda tx: sets.create(tx, made))
    with store.view() as tx:
        for text in (made.id, "team/db", made.id[:8], made.id[:8] + made.id[-4:]):
            assert sets.show(tx, sets.resolve(tx, text)).path == "team/db"
        with pytest.raises(VolumeSetNotFound):
            sets.resolve(tx, "db")
        assert sets.show(tx, sets.resolve(tx, "team/db")).owner == "ann"


def test_a_set_of_a_taken_name_is_refused_but_may_be_imported(store: Store, tree: Tree) -> None:
    another = VolumeSet(id=VolumeSetId(identity("other")), name="db")
    with pytest.raises(AlreadyExists, match="use another name"):
        store.update(lambda tx: sets.create(tx, another))
    store.update(lambda tx: sets.import_set(tx, another))
    with store.view() as tx, pytest.raises(Ambiguous, match="give an id"):
        sets.resolve(tx, "db")
    with pytest.raises(AlreadyExists):
        store.update(lambda tx: sets.import_set(tx, another))


@pytest.mark.parametrize(
    "name", ["", "a b", "a:b", "a*", "HEAD", "a/b", "-x", identity("a"), "\udc80"]
)
def test_a_set_cannot_be_called_what_means_something_else(store: Store, name: str) -> None:
    with pytest.raises(InvalidArgument):
        store.update(
            lambda tx: sets.create(tx, VolumeSet(id=VolumeSetId(identity("s")), name=name))
        )


def test_a_change_of_a_set_expects_its_revision_and_size_is_no_change(
    store: Store, tree: Tree
) -> None:
    with store.view() as tx:
        seen = sets.show(tx, sets.find(tx, tree.set_id)).revision
    store.update(lambda tx: sets.set_size(tx, tree.set_id, 4096))
    store.update(lambda tx: sets.edit(tx, tree.set_id, description="mine", expect_rev=seen))
    with pytest.raises(Conflict):
        store.update(lambda tx: sets.edit(tx, tree.set_id, owner="bob", expect_rev=seen))
    with store.view() as tx:
        found = sets.show(tx, sets.find(tx, tree.set_id))
    assert (found.description, found.owner, found.size_bytes) == ("mine", "", 4096)


def test_depth_children_and_tips_follow_from_the_tree(tree: Tree) -> None:
    tree.fork("main", None, "a", "b")
    tree.extend("main", "b", "c")
    tree.fork("side", "b", "d")
    assert [tree.snapshot(word).depth for word in "abcd"] == [1, 2, 3, 3]
    assert [tree.snapshot(word).children for word in "abcd"] == [1, 2, 0, 0]
    assert [tree.snapshot(word).is_tip for word in "abcd"] == [False, False, True, True]
    assert tree.line("side") == ["d", "b", "a"]
    tree.fork("old", "b")
    assert tree.branch("old").has_child
    assert not tree.branch("main").has_child
    assert tree.snapshot("b").branches == ("old",)


def test_two_branches_may_have_one_tip(tree: Tree) -> None:
    tree.fork("main", None, "a")
    tree.fork("side", "a")
    assert tree.line("main") == tree.line("side") == ["a"]
    tree.extend("side", "a", "b")
    assert tree.line("main") == ["a"]


def test_a_fork_passes_over_what_is_there_already(tree: Tree) -> None:
    tree.fork("main", None, "a", "b")
    tree.fork("side", None, "a", "b", "c")
    assert tree.line("side") == ["c", "b", "a"]
    with pytest.raises(AlreadyExists, match="with the parent"):
        tree.fork("bad", "c", "b")


def test_a_fork_of_a_parent_that_is_missing_is_refused(tree: Tree) -> None:
    with pytest.raises(VolumeSnapshotNotFound):
        tree.fork("main", "nothing", "a")
    with pytest.raises(InvalidArgument, match="needs a snapshot"):
        tree.fork("main", None)
    with pytest.raises(BranchNotFound, match="there are: none"):
        tree.branch("main")


def test_extending_a_branch_that_moved_is_a_mismatch_that_says_both(tree: Tree) -> None:
    """FlockerHub's local store never said so (D7)."""
    tree.fork("main", None, "a")
    tree.extend("main", "a", "b")
    with pytest.raises(SnapshotImportMismatch, match="look again") as caught:
        tree.extend("main", "a", "c")
    assert (caught.value.expected, caught.value.tip) == (snapshot_id("a"), snapshot_id("b"))
    with pytest.raises(VolumeSnapshotNotFound):
        tree.snapshot("c")


def test_a_root_snapshot_has_a_bush_here(store: Store, tree: Tree) -> None:
    tree.fork("main", None, "a", "b")
    with store.view() as tx:
        bush = rules.bush(tx, ancestry.find(tx, tree.set_id, snapshot_id("b")))
        assert (bush.root, bush.server) == (snapshot_id("a"), tx.uuid.hex())


MAIN, SIDE = (branch_id("main"), "main"), (branch_id("side"), "side")


@pytest.mark.parametrize(
    ("base", "name", "auto", "expected"),
    [
        (None, "", True, Fork("")),
        (None, "main", True, Fork("main")),
        (Base(branches=(MAIN, SIDE), has_children=False), "side", True, Extend(SIDE[0])),
        (Base(branches=(MAIN,), has_children=True), "main", False, Extend(MAIN[0])),
        (Base(branches=(MAIN,), has_children=False), "new", True, Fork("new")),
        (Base(branches=(MAIN,), has_children=False), "", True, Extend(MAIN[0])),
        (Base(branches=(), has_children=True), "", True, Fork("")),
        (Base(branches=(MAIN,), has_children=True), "", True, Fork("")),
        (Base(branches=(MAIN,), has_children=False), "", False, Fork("")),
    ],
)
def test_a_snapshot_forks_or_extends_by_the_table(
    base: Base | None, name: str, auto: bool, expected: object
) -> None:
    assert choose(base, name, auto=auto) == expected


@pytest.mark.parametrize(
    "name", ["", "main", "a:b", "a*", "a b", "x/y", "HEAD", identity("a"), "0123456789ab"]
)
def test_a_branch_is_not_renamed_to_its_name_or_to_a_bad_one(
    store: Store, tree: Tree, name: str
) -> None:
    tree.fork("main", None, "a")
    with pytest.raises(InvalidArgument):
        store.update(
            lambda tx: branches.rename(tx, branches.resolve(tx, tree.set_id, "main"), name)
        )


def test_a_renamed_branch_keeps_its_history(store: Store, tree: Tree) -> None:
    tree.fork("main", None, "a")
    tree.extend("main", "a", "b")
    tree.fork("side", "b")
    with pytest.raises(AlreadyExists):
        store.update(
            lambda tx: branches.rename(tx, branches.resolve(tx, tree.set_id, "main"), "side")
        )
    store.update(lambda tx: branches.rename(tx, branches.resolve(tx, tree.set_id, "main"), "trunk"))
    anchor = history.branch_anchor(tree.set_id, tree.branch("trunk").id)
    entries = Anchors(store).history(anchor)
    assert [it.ref.value for it in entries] == [snapshot_id("b"), snapshot_id("a")]
    assert {it.author for it in entries} == {"ann"}
    with pytest.raises(BranchNotFound, match="side, trunk"):
        tree.branch("main")


def test_a_branch_with_a_volume_on_it_is_not_removed(store: Store, tree: Tree) -> None:
    made = tree.fork("main", None, "a")
    tree.volume("work", "a", "main")
    with pytest.raises(FailedPrecondition, match="in use by work"):
        store.update(lambda tx: branches.remove(tx, branches.find(tx, tree.set_id, made.id), ANN))


def test_removing_a_branch_leaves_a_tombstone_that_making_it_anew_lifts(
    store: Store, tree: Tree
) -> None:
    made = tree.fork("main", None, "a")
    store.update(lambda tx: branches.remove(tx, branches.find(tx, tree.set_id, made.id), ANN))
    with store.view() as tx:
        assert [(it.kind, it.id) for it in tombstones.of_set(tx, tree.set_id)] == [
            ("branch", made.id)
        ]
    tree.fork("main", "a")
    with store.view() as tx:
        assert list(tombstones.of_set(tx, tree.set_id)) == []


def test_deleting_a_tip_takes_its_branches_back_to_the_parent(tree: Tree) -> None:
    tree.fork("main", None, "a", "b")
    with pytest.raises(FailedPrecondition, match="has children"):
        tree.delete("a")
    tree.delete("b")
    assert tree.line("main") == ["a"]


def test_a_leaf_that_a_deletion_leaves_without_a_branch_gets_an_unnamed_one(
    store: Store, tree: Tree
) -> None:
    tree.fork("main", None, "a", "b")
    tree.fork("side", "a")
    store.update(lambda tx: branches.remove(tx, branches.resolve(tx, tree.set_id, "side"), ANN))
    store.update(lambda tx: branches.remove(tx, branches.resolve(tx, tree.set_id, "main"), ANN))
    tree.delete("b")
    assert tree.snapshot("a").branches == ("",)


def test_a_snapshot_that_a_volume_grew_from_is_not_deleted(tree: Tree) -> None:
    tree.fork("main", None, "a")
    tree.volume("work", "a", "main")
    with pytest.raises(FailedPrecondition, match="has volumes"):
        tree.delete("a")


def test_what_no_branch_reaches_is_collected_once_its_history_expires(
    store: Store, tree: Tree
) -> None:
    """A reset keeps what other branches use, and what its own history still names."""
    tree.fork("main", None, "a", "b", "c")
    tree.extend("main", "c", "d")
    tree.fork("side", "b")

    def reset(tx):
        main = branches.resolve(tx, tree.set_id, "main")
        branches.move(tx, main, ancestry.find(tx, tree.set_id, snapshot_id("a")), ANN)

    store.update(reset)
    assert collected(store) == []
    Anchors(store).expire(NOW + 1_000_000, prefix="branch/")
    assert collected(store) == ["d", "c"]
    assert tree.line("side") == ["b", "a"]


def collected(store: Store) -> list[str]:
    """Collect all that is not kept, and return what it was called."""
    names = []
    with store.view() as tx:
        waiting = list(collecting.unkept(tx))
    while waiting:
        row = waiting.pop()
        names.append(row.body.name)
        waiting += store.update(lambda tx, row=row: collecting.collect(tx, row))
    return names


def test_data_is_set_once_and_parents_first(store: Store, tree: Tree) -> None:
    tree.fork("main", None, "a", "b")
    for name in ("one", "two"):
        store.update(lambda tx, name=name: _commit(tx, name))

    def put(word: str, blob: str, expect: str = "") -> None:
        store.update(
            lambda tx: rules.set_blob(
                tx, ancestry.find(tx, tree.set_id, snapshot_id(word)), blob, 1, expect=expect
            )
        )

    with pytest.raises(BlobMismatch, match="parent"):
        put("b", "two")
    before = tree.snapshot("a").revision
    put("a", "one")
    assert tree.snapshot("a").revision == before
    with pytest.raises(BlobMismatch, match="clear it first"):
        put("a", "two", "one")
    with pytest.raises(BlobMismatch, match="look again"):
        put("a", "two")
    put("b", "two")
    with pytest.raises(BlobMismatch, match="children"):
        put("a", "", "one")
    with pytest.raises(FailedPrecondition):
        store.update(lambda tx: records.remove(tx, "two"))
    put("b", "", "two")
    store.update(lambda tx: records.remove(tx, "two"))
    with pytest.raises(BlobMismatch, match="does not exist"):
        put("b", "two")


def _commit(tx, name: str) -> None:
    from snapfs.model import Kind, Usage

    records.create(tx, Kind.ACTIVE, f"{name}-key")
    records.commit(tx, f"{name}-key", name, Usage())


def test_names_and_mount_paths_of_volumes_are_their_own(store: Store, tree: Tree) -> None:
    tree.fork("main", None, "a")
    made = tree.volume("work", "a", "main")
    with pytest.raises(AlreadyExists, match="name 'work'"):
        tree.volume("work")
    with store.view() as tx:
        for text in ("work", made.id, "/srv/work", made.id[:6]):
            assert copies.show(copies.resolve(tx, text)) == made
        with pytest.raises(VolumeNotFound):
            copies.resolve(tx, "nothing")


def test_a_set_is_deleted_with_all_under_it_but_not_with_volumes(store: Store, tree: Tree) -> None:
    tree.fork("main", None, "a", "b")
    volume = tree.volume("work", "b", "main")
    with pytest.raises(FailedPrecondition, match="has volumes: work"):
        store.update(lambda tx: sets.delete(tx, tree.set_id, ANN))
    store.update(lambda tx: copies.delete(tx, copies.resolve(tx, volume.name), ANN))
    store.update(lambda tx: sets.delete(tx, tree.set_id, ANN))
    with store.view() as tx:
        assert [it.id for it in tombstones.sets(tx)] == [tree.set_id]
        with pytest.raises(VolumeSetNotFound):
            queries.list_snapshots(tx, tree.set_id)


def test_lists_are_filtered_before_they_are_paged(store: Store, tree: Tree) -> None:
    """FlockerHub paged first (D10), so that a page could be empty though there was more."""
    tree.fork("main", None, "a1", "b1", "a2", "b2", "a3")
    query = Query(match="a*", sort=Sort.NAME, descending=True, offset=1, limit=1)
    with store.view() as tx:
        assert [it.name for it in queries.list_snapshots(tx, tree.set_id, query)] == ["a2"]
        assert [it.name for it in queries.list_snapshots(tx, tree.set_id, branch="main")] == [
            "a1", "b1", "a2", "b2", "a3"
        ]  # fmt: skip
        only = Query(ids=(snapshot_id("b1"),))
        assert [it.name for it in queries.list_snapshots(tx, tree.set_id, only)] == ["b1"]
        for bad in (
            Query(offset=-1),
            Query(limit=-1),
            Query(ids=("x",)),
            Query(short_id="x"),
            Query(ids=(snapshot_id("b1"),), short_id="abcd"),
        ):
            with pytest.raises(InvalidArgument):
                queries.list_snapshots(tx, tree.set_id, bad)
        assert [it.snapshots for it in queries.list_sets(tx, Query(match="d*"))] == [5]
