"""Snapshots with their directories: what is made, frozen, measured, told to trees and removed."""

import os
import threading

import pytest

from snapfs.model import (
    Active,
    AlreadyExists,
    Committed,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    Mount,
    NotFound,
    Unavailable,
    Usage,
    View,
)
from snapfs.snapshots import LayerReader, NoTrees, Snapshotter, claims, fsck


def layer(root, snapshotter, name):
    return root / "layers" / str(snapshotter.stat(name).id)


def test_prepare_makes_directories_and_answers_with_a_writable_bind_mount(snapshotter, root, trees):
    mounts = snapshotter.prepare("a", labels={"k": "v"})
    directory = layer(root, snapshotter, "a")
    assert mounts == [Mount(type="bind", source=str(trees.mountpoint(1)), options=("rbind", "rw"))]
    assert sorted(path.name for path in directory.iterdir()) == ["fs", "work"]
    assert (directory / "fs").stat().st_mode & 0o7777 == 0o755
    assert isinstance(snapshotter.stat("a"), Active)
    assert snapshotter.mounts("a") == mounts
    assert trees.calls == []


def test_view_makes_no_directory_and_answers_with_a_read_only_bind_mount(snapshotter, root, trees):
    snapshotter.prepare("a")
    snapshotter.commit("a", "base")
    (mount,) = snapshotter.view("v", "base")
    assert mount.options == ("rbind", "ro")
    assert mount.source == str(trees.mountpoint(2))
    assert not layer(root, snapshotter, "v").exists()
    assert isinstance(snapshotter.stat("v"), View)
    assert snapshotter.usage("v") == Usage()


def test_a_new_layer_takes_owner_and_mode_of_its_parents_root(snapshotter, root):
    snapshotter.prepare("a")
    top = layer(root, snapshotter, "a") / "fs"
    os.chown(top, 1234, 4321)
    top.chmod(0o1750)
    snapshotter.commit("a", "base")
    snapshotter.prepare("b", "base")
    made = (layer(root, snapshotter, "b") / "fs").stat()
    assert (made.st_uid, made.st_gid, made.st_mode & 0o7777) == (1234, 4321, 0o1750)


def test_the_mode_of_a_new_layer_does_not_depend_on_the_umask(snapshotter, root):
    before = os.umask(0o077)
    try:
        snapshotter.prepare("a")
    finally:
        os.umask(before)
    assert (layer(root, snapshotter, "a") / "fs").stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize(
    ("key", "parent", "error"),
    [
        ("new", "nobody", NotFound),
        ("new", "a", InvalidArgument),
        ("a", "", AlreadyExists),
        ("base", "", AlreadyExists),
        ("", "", InvalidArgument),
    ],
)
def test_a_refused_prepare_leaves_no_directory(snapshotter, root, key, parent, error):
    snapshotter.prepare("b")
    snapshotter.commit("b", "base")
    snapshotter.prepare("a")
    before = os.listdir(root / "layers")
    for create in (snapshotter.prepare, snapshotter.view):
        with pytest.raises(error):
            create(key, parent)
    snapshotter.cleanup()
    assert os.listdir(root / "layers") == before
    assert snapshotter.fsck().clean


def test_of_many_who_prepare_one_key_one_succeeds_and_the_others_leave_nothing(snapshotter, root):
    refused = []

    def prepare():
        try:
            snapshotter.prepare("same")
        except AlreadyExists as error:
            refused.append(error)

    threads = [threading.Thread(target=prepare) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(refused) == 15
    assert snapshotter.cleanup() == ()
    assert os.listdir(root / "layers") == [str(snapshotter.stat("same").id)]
    assert snapshotter.fsck().clean


def test_commit_freezes_measures_and_drops_in_this_order(root, trees):
    steps = []
    with Snapshotter(root, trees=trees, steps=steps.append) as snapshotter:
        snapshotter.prepare("a")
        (layer(root, snapshotter, "a") / "fs" / "file").write_bytes(b"x" * 10_000)
        assert claims.show(layer(root, snapshotter, "a") / "work")
        steps.clear()
        done = snapshotter.commit("a", "base", {"k": "v"})
        assert steps == [
            f"commit.{it}" for it in ("frozen", "durable", "measured", "recorded", "dropped")
        ]
        assert trees.calls == [("freeze", 1), ("drop", 1)]
        assert isinstance(done, Committed)
        assert (done.labels, done.usage.inodes) == ({"k": "v"}, 2)
        assert done.usage.size_bytes >= 10_000
        assert snapshotter.usage("base") == done.usage == snapshotter.stat("base").usage
        with pytest.raises(FailedPrecondition):
            snapshotter.mounts("base")


@pytest.mark.parametrize(
    ("key", "name", "parent", "error"),
    [
        ("nobody", "base", "", NotFound),
        ("a", "base", "", AlreadyExists),
        ("v", "new", "", FailedPrecondition),
        ("base", "new", "", FailedPrecondition),
        ("a", "new", "nobody", NotFound),
        ("a", "new", "v", FailedPrecondition),
        ("a", "", "", InvalidArgument),
    ],
)
def test_a_refused_commit_does_not_touch_the_tree(snapshotter, trees, key, name, parent, error):
    snapshotter.prepare("b")
    snapshotter.commit("b", "base")
    snapshotter.prepare("a")
    snapshotter.view("v", "base")
    trees.calls.clear()
    with pytest.raises(error):
        snapshotter.commit(key, name, parent=parent)
    assert trees.calls == []
    assert isinstance(snapshotter.stat("a"), Active)


def test_a_commit_that_fails_after_the_freeze_thaws_and_can_be_repeated(root, trees):
    def fail(step):
        if step == "commit.measured" and not done:
            raise OSError("made to fail")

    done = []
    with Snapshotter(root, trees=trees, steps=fail) as snapshotter:
        snapshotter.prepare("a")
        assert claims.show(layer(root, snapshotter, "a") / "work")
        with pytest.raises(OSError, match="made to fail"):
            snapshotter.commit("a", "base")
        assert trees.calls == [("freeze", 1), ("thaw", 1)]
        assert isinstance(snapshotter.stat("a"), Active)
        done.append(True)
        snapshotter.commit("a", "base")


def test_a_tree_that_does_not_freeze_refuses_the_commit(root, snapshotter, trees):
    snapshotter.prepare("a")
    assert claims.show(layer(root, snapshotter, "a") / "work")
    trees.refuse = {"freeze"}
    with pytest.raises(DeadlineExceeded, match="freeze of tree 1"):
        snapshotter.commit("a", "base")
    assert isinstance(snapshotter.stat("a"), Active)


@pytest.mark.logs("tree.drop_failed")
def test_a_tree_that_cannot_be_dropped_does_not_undo_what_is_done(root, snapshotter, trees):
    trees.refuse = {"drop"}
    snapshotter.prepare("a")
    assert claims.show(layer(root, snapshotter, "a") / "work")
    assert snapshotter.commit("a", "base").name == "base"
    snapshotter.view("v", "base")
    snapshotter.remove("v")
    with pytest.raises(NotFound):
        snapshotter.stat("v")


def test_a_commit_does_not_take_another_snapshot_made_under_its_key_meanwhile(root, trees):
    def replace(step):
        if step == "commit.measured":
            snapshotter.remove("a")
            snapshotter.prepare("a")

    with Snapshotter(root, trees=trees, steps=replace) as snapshotter:
        snapshotter.prepare("a")
        with pytest.raises(NotFound, match="another made under its key"):
            snapshotter.commit("a", "base")
        assert snapshotter.stat("a").id == 2
        assert isinstance(snapshotter.stat("a"), Active)
        assert ("freeze", 2) not in trees.calls
        with pytest.raises(NotFound):
            snapshotter.stat("base")


def test_a_snapshot_removed_while_it_is_committed_is_not_found(root, trees):
    def remove(step):
        if step == "commit.frozen":
            snapshotter.remove("a")
            assert snapshotter.cleanup() == ()

    with Snapshotter(root, trees=trees, steps=remove) as snapshotter:
        snapshotter.prepare("a")
        with pytest.raises(NotFound):
            snapshotter.commit("a", "base")


def test_two_commits_of_one_key_at_once_give_one_snapshot(root, snapshotter, trees):
    snapshotter.prepare("a")
    assert claims.show(layer(root, snapshotter, "a") / "work")
    outcomes = []

    def commit(number):
        try:
            outcomes.append(snapshotter.commit("a", f"base{number}").name)
        except NotFound:
            outcomes.append("")

    threads = [threading.Thread(target=commit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len([name for name in outcomes if name]) == 1
    assert trees.calls == [("freeze", 1), ("drop", 1)]


def test_remove_answers_at_once_and_the_directory_goes_in_the_background(root, trees):
    removing = threading.Event()
    erase_now = threading.Event()

    def hold(step):
        if step == "remove.erasing":
            removing.set()
            assert erase_now.wait(30)

    with Snapshotter(root, trees=trees, steps=hold) as snapshotter:
        snapshotter.prepare("a")
        directory = layer(root, snapshotter, "a")
        assert snapshotter.remove("a").id == 1
        assert trees.calls == [("drop", 1)]
        assert removing.wait(30)
        assert directory.exists()
        (pending,) = snapshotter.status().pending
        assert (pending.id, pending.path, pending.attempts) == (1, directory, 0)
        snapshotter.prepare("a")
        erase_now.set()
        assert snapshotter.cleanup() == ()
        assert not directory.exists()
        assert os.listdir(root / "layers") == [str(snapshotter.stat("a").id)]


def test_remove_of_a_parent_is_refused_and_keeps_its_directory(snapshotter, root, trees):
    snapshotter.prepare("a")
    snapshotter.commit("a", "base")
    snapshotter.view("v", "base")
    trees.calls.clear()
    with pytest.raises(FailedPrecondition, match="cannot remove"):
        snapshotter.remove("base")
    assert trees.calls == []
    assert (root / "layers" / "1" / "fs").is_dir()


def test_after_everything_is_removed_nothing_is_left(snapshotter, root):
    snapshotter.prepare("a")
    snapshotter.commit("a", "base")
    snapshotter.prepare("b", "base")
    snapshotter.view("v", "base")
    for name in ("v", "b", "base"):
        snapshotter.remove(name)
    assert snapshotter.cleanup() == ()
    assert os.listdir(root / "layers") == []
    assert list(snapshotter.walk()) == []
    snapshotter.close()
    assert fsck(root).clean


def test_usage_of_an_active_is_measured_now(snapshotter, root):
    snapshotter.prepare("a")
    before = snapshotter.usage("a")
    (layer(root, snapshotter, "a") / "fs" / "d").mkdir()
    assert snapshotter.usage("a").inodes == before.inodes + 1 == 2
    with pytest.raises(NotFound):
        snapshotter.usage("nobody")


def test_status_counts_and_close_is_idempotent(snapshotter, root):
    snapshotter.prepare("a")
    snapshotter.commit("a", "base")
    snapshotter.prepare("b", "base")
    snapshotter.view("v", "base")
    status = snapshotter.status()
    assert (status.active, status.views, status.committed) == (1, 1, 1)
    assert (status.root, status.unpack, status.pending, status.warnings) == (
        root,
        "overlay",
        (),
        (),
    )
    snapshotter.probe(timeout_s=10)
    snapshotter.close()
    snapshotter.close()
    with pytest.raises(Unavailable, match="is closed"):
        snapshotter.probe(timeout_s=1)


def test_a_second_snapshotter_on_a_root_is_refused_and_the_first_goes_on(snapshotter, root):
    with pytest.raises(FailedPrecondition):
        Snapshotter(root, trees=NoTrees())
    snapshotter.prepare("a")


def test_a_closed_root_opens_again_as_it_was(snapshotter, root, trees):
    snapshotter.prepare("a")
    snapshotter.commit("a", "base", {"k": "v"})
    snapshotter.prepare("b", "base")
    before = list(snapshotter.walk())
    snapshotter.close()
    with Snapshotter(root, trees=trees) as opened:
        assert list(opened.walk()) == before
        opened.prepare("c", "base")
        assert opened.fsck().clean


def test_metadata_durability_commits_without_syncing_data(root, trees):
    with Snapshotter(root, trees=trees, durability="metadata") as snapshotter:
        snapshotter.prepare("a")
        assert snapshotter.commit("a", "base").usage.inodes == 1
        assert snapshotter.status().durability == "metadata"


def test_diff_asks_the_differ_for_upper_and_lowers(root, trees):
    asked = []

    def differ(upper, lowers):
        asked.append((upper, lowers))
        return iter(["change"])

    with Snapshotter(root, trees=trees, differ=differ) as snapshotter:
        snapshotter.prepare("a")
        snapshotter.commit("a", "base")
        snapshotter.prepare("b", "base")
        snapshotter.view("v", "base")
        assert list(snapshotter.diff("base")) == ["change"]
        assert list(snapshotter.diff("b")) == ["change"]
        assert list(snapshotter.diff("v")) == []
        one, two = root / "layers" / "1" / "fs", root / "layers" / "2" / "fs"
        assert asked == [(one, ()), (two, (one,))]
        with pytest.raises(NotFound):
            snapshotter.diff("nobody")


def test_diff_without_a_differ_is_refused(snapshotter):
    with pytest.raises(FailedPrecondition, match="without a differ"):
        snapshotter.diff("a")


class TestLayerReader:
    """What the worker sees while another has the root open for writing."""

    def test_layers_of_each_kind(self, snapshotter, root):
        snapshotter.prepare("a")
        snapshotter.commit("a", "one")
        snapshotter.prepare("b", "one")
        snapshotter.commit("b", "two")
        snapshotter.prepare("top", "two")
        snapshotter.view("look", "two")
        snapshotter.prepare("bottom")
        layers = root / "layers"
        with LayerReader.open(root) as reader:
            lowers = (layers / "2" / "fs", layers / "1" / "fs")
            top = reader.layers(3)
            assert (top.upper, top.work) == (layers / "3" / "fs", layers / "3" / "work")
            assert top.lowers == lowers
            look = reader.layers(4)
            assert (look.upper, look.work, look.lowers) == (None, None, lowers)
            assert reader.layers(5).lowers == (root / "empty",)
            assert [reader.layers(number) for number in (1, 2, 99)] == [None, None, None]
            assert reader.ids() == [3, 4, 5]

    def test_changes_are_seen_at_the_next_call(self, snapshotter, root):
        snapshotter.prepare("a")
        with LayerReader.open(root) as reader:
            assert reader.ids() == [1]
            snapshotter.commit("a", "base")
            assert reader.layers(1) is None
            snapshotter.view("v", "base")
            assert reader.ids() == [2]

    def test_a_root_without_metadata_is_unavailable(self, tmp_path):
        with pytest.raises(Unavailable):
            LayerReader.open(tmp_path)
