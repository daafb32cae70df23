"""Whatever is done in whatever order, directories and metadata agree; also with many at once."""

import random
import shutil
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from snapfs.model import Committed, DeadlineExceeded, SnapfsError, View
from snapfs.snapshots import LayerReader, NoTrees, Snapshotter, fsck
from snapfs.snapshots.locks import KeyedLocks

NAMES = st.sampled_from(["a", "b", "c", "d", "n/1/extract-x y"])
PARENTS = st.one_of(st.just(""), NAMES)


def expected_directories(snapshotter):
    return {str(found.id) for found in snapshotter.walk() if not isinstance(found, View)}


class LifecycleMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="snapfs-lifecycle-"))
        self.snapshotter = Snapshotter(self.root, trees=NoTrees())

    def attempt(self, call, *arguments, **named):
        """Do what may be refused; what is refused must change nothing that the invariants see."""
        before = list(self.snapshotter.walk())
        try:
            call(*arguments, **named)
        except SnapfsError:
            assert list(self.snapshotter.walk()) == before

    @rule(key=NAMES, parent=PARENTS)
    def prepare(self, key, parent):
        self.attempt(self.snapshotter.prepare, key, parent)

    @rule(key=NAMES, parent=PARENTS)
    def view(self, key, parent):
        self.attempt(self.snapshotter.view, key, parent)

    @rule(key=NAMES, name=NAMES, parent=PARENTS)
    def commit(self, key, name, parent):
        self.attempt(self.snapshotter.commit, key, name, parent=parent)

    @rule(key=NAMES)
    def remove(self, key):
        self.attempt(self.snapshotter.remove, key)

    @rule(key=NAMES)
    def write(self, key):
        for found in self.snapshotter.walk([f'name=="{key}",kind==active']):
            (self.root / "layers" / str(found.id) / "fs" / "file").write_bytes(b"x" * 5000)

    @rule()
    def reopen(self):
        self.snapshotter.close()
        self.snapshotter = Snapshotter(self.root, trees=NoTrees())

    @invariant()
    def reader_and_mounts_agree_with_the_walk(self):
        with LayerReader.open(self.root) as reader:
            for found in self.snapshotter.walk():
                layers = reader.layers(found.id)
                assert (layers is None) is isinstance(found, Committed)
                if layers is not None:
                    assert all(path.is_dir() for path in layers.lowers)
                    assert (layers.upper is None) is isinstance(found, View)
                    assert len(self.snapshotter.mounts(found.name)) == 1

    def teardown(self):
        try:
            assert self.snapshotter.cleanup() == ()
            assert self.snapshotter.fsck().clean
            present = {path.name for path in (self.root / "layers").iterdir()}
            assert present == expected_directories(self.snapshotter)
            self.snapshotter.close()
            assert fsck(self.root).clean
        finally:
            self.snapshotter.close()
            shutil.rmtree(self.root)


TestLifecycleMachine = LifecycleMachine.TestCase
TestLifecycleMachine.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


def test_many_threads_at_once_leave_a_sound_root(root):
    snapshotter = Snapshotter(root, trees=NoTrees())
    snapshotter.prepare("k")
    snapshotter.commit("k", "base")

    def work(seed):
        choose = random.Random(seed)
        for number in range(12):
            mine, shared = f"{seed}/{number}", f"shared{choose.randrange(4)}"
            for call, *arguments in (
                (snapshotter.prepare, mine, "base"),
                (snapshotter.prepare, shared, "base"),
                (snapshotter.commit, shared, f"done{shared}"),
                (snapshotter.commit, mine, f"done{mine}"),
                (snapshotter.remove, f"done{shared}"),
                (snapshotter.remove, f"done{mine}"),
            ):
                with suppress(SnapfsError):
                    call(*arguments)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert snapshotter.cleanup() == ()
    assert snapshotter.fsck().clean
    assert {path.name for path in (root / "layers").iterdir()} == expected_directories(snapshotter)
    snapshotter.close()
    assert fsck(root).clean


def test_a_lock_that_is_held_too_long_is_a_deadline_that_names_the_snapshot():
    locks = KeyedLocks()
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with locks.hold(7, "snapshot 'a'", 10):
            entered.set()
            leave.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert entered.wait(30)
    with locks.hold(8, "snapshot 'b'", 0):
        pass
    with (
        pytest.raises(DeadlineExceeded, match="snapshot 'a' is still busy"),
        locks.hold(7, "snapshot 'a'", 0.01),
    ):
        pass
    leave.set()
    holder.join(30)
    with locks.hold(7, "snapshot 'a'", 10):
        pass
    assert locks._held == {}
