"""A snapshot that nobody has looked at is found in holds, and after them and failed commits."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from snapfs.model import DataLoss
from tests.support.daemon import eventually
from tests.support.lanes import House

pytestmark = [pytest.mark.fuse, pytest.mark.root]
MODES = (Mode.PASSTHROUGH, Mode.NO_OPEN)

DEADLINE_S = 20.0
DELAY_S = 3.0
"""Between a look's two questions about who has the tree."""


def fill(layer: Path) -> None:
    (layer / "file").write_text("lower")


def test_first_look_in_a_hold_finds_the_tree_and_writers_wait(house: House) -> None:
    tree = house.active(fill)
    with house.snapshots.held(tree.key) as (upper, _):
        assert (tree / "file").read_text() == "lower"
        writer = threading.Thread(target=(tree / "file").write_text, args=("later",))
        writer.start()
        assert house.worker().frozen == (tree.id,)
        assert list(upper.iterdir()) == []
    writer.join(DEADLINE_S)
    assert not writer.is_alive()
    assert (tree / "file").read_text() == "later"


def test_first_look_after_a_hold_finds_the_tree(house: House) -> None:
    tree = house.active(fill)
    with house.snapshots.held(tree.key):
        pass
    (tree / "file").write_text("written")
    assert house.worker().frozen == ()


def test_first_look_after_a_hold_that_was_given_up_finds_the_tree(house: House) -> None:
    tree = house.active(fill)
    with pytest.raises(KeyError), house.snapshots.held(tree.key):
        raise KeyError
    (tree / "file").write_text("written")
    assert house.worker().frozen == ()


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
def test_worker_that_begins_in_a_hold_shows_the_tree_and_lets_writers_wait(
    own_house: House,
) -> None:
    tree = own_house.active(fill)
    with own_house.snapshots.held(tree.key):
        own_house.kill_worker()
        assert (tree / "file").read_text() == "lower"
        assert own_house.worker().frozen == (tree.id,)
    (tree / "file").write_text("written")


def test_snapshots_removed_in_a_hold_or_committed_after_it_are_gone(house: House) -> None:
    removed, committed = house.active(fill), house.active(fill)
    with house.snapshots.held(removed.key):
        house.snapshots.remove(removed.key)
    with house.snapshots.held(committed.key):
        pass
    house.snapshots.commit(committed.key, house.name())
    for tree in (removed, committed):
        with pytest.raises(FileNotFoundError):
            tree.path.stat()
    assert house.worker().frozen == ()


def test_look_that_a_commit_was_in_the_way_of_finds_the_tree_once_that_has_failed(
    house: House, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tree = house.active(fill)
    name = tree.upper.with_name("work") / "snapfs"
    with slow_mkdir(house, name, tmp_path / "calls") as tried, ThreadPoolExecutor(1) as others:
        looks: list[Future[os.stat_result]] = []

        def fail(_layer: Path) -> None:
            looks.append(others.submit(tree.path.stat))
            eventually(tried, what="the worker's try")
            raise OSError(5, os.strerror(5))

        monkeypatch.setattr(house.snapshots._sync, "sync", fail)
        with pytest.raises(DataLoss):
            house.snapshots.commit(tree.key, house.name())
        assert not looks[0].done()
        assert looks[0].result(DEADLINE_S).st_ino == tree.path.stat().st_ino
    assert (tree / "file").read_text() == "lower"


def test_first_look_after_a_commit_that_failed_finds_the_tree(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = house.active(fill)

    def fail(_layer: Path) -> None:
        raise OSError(5, os.strerror(5))

    with monkeypatch.context() as failing:
        failing.setattr(house.snapshots._sync, "sync", fail)
        with pytest.raises(DataLoss):
            house.snapshots.commit(tree.key, house.name())
    (tree / "file").write_text("written")
    house.snapshots.commit(tree.key, house.name())


@contextmanager
def slow_mkdir(house: House, path: Path, calls: Path) -> Iterator[Callable[[], bool]]:
    """Let the worker's first mkdir(2) of a path return late in the block, which is given whether
    there was one."""
    slower = subprocess.Popen(
        ["strace", "-f", "-p", str(house.worker().pid), "-o", calls, "-P", path,
         "-e", "trace=mkdir,mkdirat",
         "-e", f"inject=mkdir,mkdirat:delay_exit={int(DELAY_S * 1e6)}:when=1"],
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert slower.stderr is not None
    with slower.stderr as said:
        try:
            while "attached" not in (line := said.readline()):
                assert line
            yield lambda: "EEXIST" in calls.read_text()
        finally:
            slower.send_signal(signal.SIGINT)
            slower.wait(DEADLINE_S)
