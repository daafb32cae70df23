"""kill -9 between any two effects of create, commit and remove: the next start settles it.

A child process does the operation and kills itself at the gap. What is checked: a dry fsck finds
nothing but promises, the root opens, the operation has happened whole or not at all, directories
and metadata agree, and everything can go on.
"""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from snapfs.model import Active, Committed, NotFound, View
from snapfs.overlay import LayerCopy
from snapfs.snapshots import LayerReader, NoTrees, Snapshotter, fsck

VICTIM = Path(__file__).with_name("victim.py")


@pytest.fixture
def root(tmp_path):
    """A root with base (1) <- active (2), which holds one file."""
    path = tmp_path / "root"
    with Snapshotter(path, trees=NoTrees()) as snapshotter:
        snapshotter.prepare("a")
        snapshotter.commit("a", "base")
        snapshotter.prepare("active", "base")
        upper = path / "layers" / "2" / "fs"
        (upper / "directory" / "below").mkdir(parents=True)
        (upper / "directory" / "file").write_text("data")
    return path


def kill_at(root, operation, gap):
    done = subprocess.run([sys.executable, VICTIM, root, operation, gap], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, f"{operation} never came to {gap}"


def open_and_check(root, expected):
    """Open a root after a crash; `expected` is each name's state."""
    assert {problem.kind for problem in fsck(root).problems} <= {"stale-intent"}
    with LayerReader.open(root) as reader:
        assert all(reader.layers(identity) for identity in reader.ids())
    snapshotter = Snapshotter(root, trees=NoTrees())
    assert snapshotter.cleanup() == ()
    assert snapshotter.fsck().clean
    assert {found.name: type(found) for found in snapshotter.walk()} == expected
    directories = {int(path.name) for path in (root / "layers").iterdir()}
    assert directories == {found.id for found in snapshotter.walk() if not isinstance(found, View)}
    return snapshotter


BEFORE = {"base": Committed, "active": Active}


@pytest.mark.parametrize("operation", ["create", "view"])
@pytest.mark.parametrize(
    ("gap", "happened"),
    [
        ("create.reserved", False),
        ("half-made", False),
        ("create.made", False),
        ("create.recorded", True),
    ],
)
def test_a_killed_create_is_undone_or_complete(root, operation, gap, happened):
    if (operation, gap) == ("view", "half-made"):
        gap = "create.made"  # a view has no directory to make by halves
    kill_at(root, operation, gap)
    made = {"new": Active if operation == "create" else View} if happened else {}
    with open_and_check(root, BEFORE | made) as snapshotter:
        if happened:
            snapshotter.remove("new")
        with pytest.raises(NotFound):
            snapshotter.stat("new")
        snapshotter.prepare("new", "base")
        assert snapshotter.stat("new").id > 2
        snapshotter.commit("new", "finished")
    assert fsck(root).clean


def test_an_id_that_a_killed_create_had_is_not_used_again(root):
    kill_at(root, "create", "create.recorded")
    with Snapshotter(root, trees=NoTrees()) as snapshotter:
        killed = snapshotter.stat("new").id
        snapshotter.remove("new")
    kill_at(root, "create", "create.made")
    with Snapshotter(root, trees=NoTrees()) as snapshotter:
        snapshotter.prepare("new")
        assert snapshotter.stat("new").id > killed


@pytest.mark.parametrize(
    ("gap", "happened"),
    [
        ("commit.frozen", False),
        ("commit.durable", False),
        ("commit.measured", False),
        ("commit.recorded", True),
        ("commit.dropped", True),
    ],
)
def test_a_killed_commit_has_happened_or_not(root, gap, happened):
    kill_at(root, "commit", gap)
    expected = {"base": Committed, "done": Committed} if happened else BEFORE
    with open_and_check(root, expected) as snapshotter:
        if not happened:
            snapshotter.commit("active", "done", {"k": "v"})
        done = snapshotter.stat("done")
        assert (done.id, done.labels, done.parent_ids) == (2, {"k": "v"}, (1,))
        assert done.usage.inodes == 4
        assert (root / "layers/2/fs/directory/file").read_text() == "data"
    assert fsck(root).clean


@pytest.mark.parametrize(
    ("gap", "happened"),
    [
        ("copy.reserved", False),
        ("copy.made", False),
        ("copy.warm", False),
        ("copy.frozen", False),
        ("copy.copied", False),
        ("copy.thawed", False),
        ("copy.durable", False),
        ("copy.recorded", True),
    ],
)
def test_a_killed_copy_has_happened_or_not_and_the_active_goes_on(root, gap, happened):
    kill_at(root, "copy", gap)
    expected = BEFORE | ({"copy": Committed} if happened else {})
    with open_and_check(root, expected):
        assert (root / "layers/2/fs/directory/file").read_text() == "data"
    with Snapshotter(root, trees=NoTrees(), copier=LayerCopy) as snapshotter:
        made = snapshotter.copies.commit_copy("active", "again", None, lambda _tx, _made: None)
        below = root / "layers" / str(made.snapshot.id) / "fs"
        assert (below / "directory/file").read_text() == "data"
        assert made.snapshot.parent_ids == (1,)
    assert fsck(root).clean


@pytest.mark.parametrize(
    "gap", ["remove.recorded", "remove.erasing", "half-erased", "remove.erased", "remove.cleared"]
)
def test_a_killed_remove_is_complete_after_the_next_start(root, gap):
    kill_at(root, "remove", gap)
    with open_and_check(root, {"base": Committed}) as snapshotter:
        snapshotter.prepare("active", "base")
        snapshotter.remove("active")
        snapshotter.remove("base")
        assert snapshotter.cleanup() == ()
    assert fsck(root).clean
    assert list((root / "layers").iterdir()) == []


def test_killed_over_and_over_nothing_piles_up(root):
    for gap in ("create.made", "half-made", "create.made"):
        kill_at(root, "create", gap)
    with open_and_check(root, BEFORE):
        pass
    assert fsck(root).clean
