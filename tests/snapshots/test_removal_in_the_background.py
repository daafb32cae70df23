"""Removals that fail are reported, tried again, and hold up nobody."""

import os
import subprocess
import threading
import time

import pytest

from snapfs.model import SnapshotId
from snapfs.snapshots import NoTrees, Snapshotter, dropping, removal
from snapfs.snapshots.layers import LayerDirectories
from snapfs.snapshots.removal import Remover
from tests.support.daemon import eventually


class Bench:
    """A remover over directories of its own, with a clock to turn by hand."""

    def __init__(self, root):
        self.layers = LayerDirectories(root)
        self.layers.establish()
        self.cleared: list[int] = []
        self.now_s = 0.0
        self.remover = Remover(
            self.layers, self.cleared.extend, steps=lambda _: None, clock_s=lambda: self.now_s
        )

    def promise(self, number):
        path = self.layers.directory(number)
        (path / "fs").mkdir(parents=True)
        self.remover.add(number, SnapshotId(number))
        return path


@pytest.fixture
def bench(root, monkeypatch):
    made = Bench(root)
    yield made
    made.remover.stop(10)


@pytest.fixture
def broken(monkeypatch):
    """Ids whose directories cannot be deleted."""
    ids = set()
    original = removal.erase

    def erase(path, *, budget_s):
        if int(path.name) in ids:
            raise OSError(16, "Device or resource busy", str(path))
        return original(path, budget_s=budget_s)

    monkeypatch.setattr(removal, "erase", erase)
    return ids


def test_what_was_promised_before_the_start_is_deleted(bench):
    path = bench.promise(7)
    bench.remover.start({3: SnapshotId(4)})
    assert bench.remover.drain(30) == ()
    assert not path.exists()
    assert sorted(bench.cleared) == [3, 7]


def test_removals_in_a_row_share_one_transaction(root):
    transactions = []
    layers = LayerDirectories(root)
    layers.establish()
    remover = Remover(layers, lambda numbers: transactions.append(list(numbers)), steps=str)
    remover.start({})
    for number in range(1, 21):
        (layers.directory(number) / "fs").mkdir(parents=True)
        remover.add(number, SnapshotId(number))
    eventually(lambda: not remover.pending())
    remover.stop(10)
    assert sorted(it for numbers in transactions for it in numbers) == list(range(1, 21))
    assert len(transactions) < 5


def test_what_is_new_when_it_stops_is_deleted_first(bench):
    bench.remover.start({})
    path = bench.promise(1)
    bench.remover.stop(10)
    assert not path.exists()
    assert bench.cleared == [1]


@pytest.mark.logs("snapshot.removal_failed")
def test_a_failure_is_reported_and_does_not_hold_up_the_others(bench, broken):
    broken.add(1)
    stuck = bench.promise(1)
    paths = [bench.promise(number) for number in range(2, 6)]
    bench.remover.start({})
    (left,) = bench.remover.drain(30)
    assert (left.id, left.path, left.attempts >= 1) == (1, stuck, True)
    assert "resource busy" in left.error
    assert not any(path.exists() for path in paths)
    assert sorted(bench.cleared) == [2, 3, 4, 5]
    broken.clear()
    assert bench.remover.drain(30) == ()
    assert not stuck.exists()


@pytest.mark.logs("snapshot.removal_failed")
def test_retries_back_off(bench, broken):
    broken.add(1)
    bench.promise(1)
    bench.remover.start({})
    (first,) = bench.remover.drain(30)
    (second,) = bench.remover.drain(30)
    assert second.attempts == first.attempts + 1
    due = [job.due_s - bench.now_s for job in bench.remover._jobs.values()]
    assert due[0] >= removal.FIRST_RETRY_S * 2
    for _ in range(12):
        bench.remover.drain(30)
    due = [job.due_s - bench.now_s for job in bench.remover._jobs.values()]
    assert due == [removal.LONGEST_RETRY_S]


@pytest.mark.logs("snapshot.removal_failed")
def test_an_intent_stays_while_the_store_refuses_to_clear_it(root):
    refusals = [OSError("made to fail")]
    cleared = []

    def clear(numbers):
        if refusals:
            raise refusals.pop()
        cleared.extend(numbers)

    layers = LayerDirectories(root)
    layers.establish()
    remover = Remover(layers, clear, steps=lambda _: None)
    remover.add(1, SnapshotId(1))
    remover.start({})
    remover.drain(30)
    assert remover.drain(30) == ()
    assert cleared == [1]
    remover.stop(10)


def test_a_huge_directory_gives_the_others_their_turn(bench, monkeypatch):
    turns = []
    small_gone = threading.Event()
    original = removal.erase

    def erase(path, *, budget_s):
        turns.append(int(path.name))
        if path.name == "1" and not small_gone.is_set():
            return False
        if path.name == "2":
            small_gone.set()
        return original(path, budget_s=budget_s)

    monkeypatch.setattr(removal, "erase", erase)
    bench.promise(1)
    bench.promise(2)
    bench.remover.start({})
    assert bench.remover.drain(30) == ()
    assert turns.index(2) < len(turns) - 1 - turns[::-1].index(1)


class StuckTrees(NoTrees):
    """Trees of a worker that does not answer until it is told to."""

    def __init__(self):
        super().__init__()
        self.answer = threading.Event()
        self.fault: Exception | None = None

    def drop(self, identity, /):
        assert self.answer.wait(60)
        if self.fault is not None:
            raise self.fault


def test_a_worker_that_does_not_answer_costs_removals_a_moment_not_a_deadline_each(root):
    trees = StuckTrees()
    with Snapshotter(root, trees=trees) as snapshotter:
        for number in range(50):
            snapshotter.prepare(f"k{number}")
        began = time.monotonic()
        for number in range(50):
            snapshotter.remove(f"k{number}")
        assert time.monotonic() - began < 10 * dropping.PATIENCE_S
        assert list(snapshotter.walk()) == []
        assert len(os.listdir(root / "layers")) == 50
        trees.answer.set()
        assert snapshotter.cleanup() == ()
        assert os.listdir(root / "layers") == []


@pytest.mark.logs("tree.drop_broke")
def test_a_tree_that_breaks_does_not_end_the_removals(root):
    trees = StuckTrees()
    trees.answer.set()
    trees.fault = RuntimeError("made to break")
    with Snapshotter(root, trees=trees) as snapshotter:
        for key in ("a", "b"):
            snapshotter.prepare(key)
            snapshotter.remove(key)
        assert snapshotter.cleanup() == ()
    assert os.listdir(root / "layers") == []


def test_closing_while_a_tree_does_not_answer_leaves_the_rest_to_the_next_start(root):
    trees = StuckTrees()
    snapshotter = Snapshotter(root, trees=trees, deadline_s=0.2)
    snapshotter.prepare("a")
    snapshotter.remove("a")
    snapshotter.close()
    assert os.listdir(root / "layers") == ["1"]
    trees.answer.set()
    with Snapshotter(root, trees=NoTrees()) as opened:
        assert opened.cleanup() == ()
    assert os.listdir(root / "layers") == []


@pytest.mark.root
@pytest.mark.logs("snapshot.removal_failed")
def test_an_immutable_file_is_reported_in_status_and_survives_a_restart(root):
    stuck = root / "layers" / "1" / "fs" / "file"
    with Snapshotter(root, trees=NoTrees()) as snapshotter:
        snapshotter.prepare("a")
        stuck.touch()
        subprocess.run(["chattr", "+i", stuck], check=True)
        try:
            snapshotter.remove("a")
            snapshotter.prepare("b")
            snapshotter.remove("b")
            (left,) = snapshotter.cleanup()
            assert left.id == 1
            assert "Operation not permitted" in snapshotter.status().warnings[0]
            snapshotter.close()
            with Snapshotter(root, trees=NoTrees()) as opened:
                (left,) = opened.cleanup()
                assert left.id == 1
                subprocess.run(["chattr", "-i", stuck], check=True)
                assert opened.cleanup() == ()
                assert opened.status().warnings == ()
                assert opened.fsck().clean
        finally:
            if stuck.exists():
                subprocess.run(["chattr", "-i", stuck], check=True)
    assert os.listdir(root / "layers") == []
