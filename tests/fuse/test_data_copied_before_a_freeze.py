"""Data that was left below is copied before changes are held, and all of it is there then."""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from snapfs.model import DeadlineExceeded, ResourceExhausted, Unavailable
from tests.support import lanes
from tests.support.daemon import eventually
from tests.support.lanes import House, Tree
from tests.support.overlay.census import differences, of_mount
from tests.support.overlay.kernel import tmpfs
from tests.support.past_python import assert_usage_is_a_walk

pytestmark = [pytest.mark.fuse, pytest.mark.root]
MODES = (Mode.PASSTHROUGH, Mode.NO_OPEN)
TIMEOUT_S = 60
MARK = "trusted.overlay.metacopy"
LAYER_MARK = "trusted.overlay.snapfs.metacopies"
DIRECTORIES = 20
FILES = 50
BIG = b"f" * (8 << 20)


def content(directory: int, number: int) -> bytes:
    return b"%d %d " % (directory, number) * 1000


def fill(layer: Path) -> None:
    for directory in range(DIRECTORIES):
        (layer / f"d{directory}").mkdir()
        for number in range(FILES):
            (layer / f"d{directory}/f{number}").write_bytes(content(directory, number))
    (layer / "moves").mkdir()
    os.sync()


@pytest.fixture
def tree(house: House) -> Tree:
    return house.active(fill)


def own(tree: Tree) -> None:
    subprocess.run(["chown", "-R", "7:8", tree.path], check=True, timeout=TIMEOUT_S)


def marked(tree: Tree) -> list[str]:
    """Files of a layer whose data is below."""
    return sorted(
        str(Path(top, name).relative_to(tree.upper))
        for top, _, names in os.walk(tree.upper)
        for name in names
        if MARK in os.listxattr(Path(top, name), follow_symlinks=False)
    )


@contextmanager
def meanwhile(change: Callable[[int], object]) -> Iterator[tuple[list[int], list[Exception]]]:
    """Do something again and again beside the block, which is given how often it was done, and what
    ended it."""
    done, failed, is_over = [0], list[Exception](), threading.Event()

    def work() -> None:
        try:
            while not is_over.is_set():
                change(done[0])
                done[0] += 1
        except Exception as error:  # noqa: BLE001  # raised below
            failed.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield done, failed
    finally:
        is_over.set()
        worker.join(TIMEOUT_S)
    if failed:
        raise failed[0]


def _is_over(done: list[int], failed: list[Exception], enough: int) -> bool:
    return done[0] >= enough or bool(failed)


def test_writers_go_on_while_data_is_copied(house: House, tree: Tree) -> None:
    own(tree)
    with meanwhile(lambda number: (tree / f"new{number}").write_bytes(b"new")) as (done, _):
        before, began_ns = done[0], time.monotonic_ns()
        house.lane.freeze(tree.id, timeout_s=TIMEOUT_S, lasting=False)
        made, took_ns = done[0] - before, time.monotonic_ns() - began_ns
        left = marked(tree)
        held_ns = house.lane.thaw(tree.id)
    assert left == []
    assert held_ns is not None
    assert held_ns < took_ns / 2
    assert made > DIRECTORIES


def test_what_is_left_after_a_freeze_is_found_at_the_next(house: House, tree: Tree) -> None:
    """In directories that were moved since, and new ones, too."""
    own(tree)
    with house.snapshots.held(tree.key):
        assert marked(tree) == []
        assert LAYER_MARK not in os.listxattr(tree.upper)
    lower = house.on(house.base_layers(fill))
    for number in range(FILES):
        (lower / f"d3/f{number}").chmod(0o600)
        (lower / f"d4/f{number}").chmod(0o600)
    (lower / "d3").rename(lower / "moves/d3")
    (lower / "moves/new").mkdir()
    (lower / "d4").rename(lower / "moves/new/d4")
    (lower / "d5/f1").chmod(0o600)
    subprocess.run(["rm", "-r", lower / "d5"], check=True, timeout=TIMEOUT_S)
    assert len(marked(lower)) == 2 * FILES
    house.snapshots.commit(lower.key, house.name())
    assert marked(lower) == []
    for number in range(FILES):
        assert (lower.upper / f"moves/d3/f{number}").read_bytes() == content(3, number)
        assert (lower.upper / f"moves/new/d4/f{number}").read_bytes() == content(4, number)


def test_data_is_whole_whatever_changes_while_it_is_copied(house: House, tree: Tree) -> None:
    """Files are written, owned, moved, linked and removed, and directories moved, all the time."""
    dice = random.Random(1)
    owners: dict[tuple[int, int], int] = {}
    places = {it: tree / f"d{it}" for it in range(DIRECTORIES)}
    gone: set[tuple[int, int]] = set()

    def change(_: int) -> None:
        directory, number = dice.randrange(DIRECTORIES), dice.randrange(FILES)
        path = places[directory] / f"f{number}"
        if dice.random() < 0.03:
            above = tree / "moves" if path.parent.parent == tree.path else tree.path
            places[directory] = path.parent.rename(above / path.parent.name)
        elif (directory, number) in gone:
            return
        elif (chance := dice.random()) < 0.6:
            owners[directory, number] = owner = dice.randrange(1000)
            os.chown(path, owner, owner)
        elif chance < 0.8:
            with path.open("r+b") as file:
                file.write(content(directory, number)[:9])
        elif chance < 0.9:
            path.rename(path.with_name("x")).rename(path)
        else:
            path.unlink()
            gone.add((directory, number))

    with meanwhile(change) as (done, failed):
        for _ in range(6):
            with house.snapshots.held(tree.key):
                assert marked(tree) == []
            enough = done[0] + 100
            eventually(partial(_is_over, done, failed, enough), timeout_s=TIMEOUT_S, what="changes")
    census = of_mount(tree.path)
    for directory in range(DIRECTORIES):
        for number in range(FILES):
            path = places[directory] / f"f{number}"
            assert path.exists() is ((directory, number) not in gone)
            if path.exists():
                assert path.read_bytes() == content(directory, number)
                assert path.stat().st_uid == owners.get((directory, number), 0)
    assert_usage_is_a_walk(house, tree)
    name = house.name()
    house.snapshots.commit(tree.key, name)
    assert marked(tree) == []
    assert not differences(census, of_mount(house.on(name).path))


@contextmanager
def slow_syncs(house: House, delay_s: float) -> Iterator[None]:
    """Let each syncfs(2) of the worker take so much longer in the block."""
    slower = subprocess.Popen(
        ["strace", "-f", "-p", str(house.worker().pid), "-o", "/dev/null", "-e", "trace=syncfs",
         "-e", f"inject=syncfs:delay_exit={int(delay_s * 1e6)}"],
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert slower.stderr is not None
    with slower.stderr as said:
        try:
            assert "attached" in said.readline()
            yield
        finally:
            slower.terminate()
            slower.wait(TIMEOUT_S)


def test_copying_takes_longer_than_a_tree_may(house: House, tree: Tree) -> None:
    """As long as it gets further: what is done by a deadline is not done again."""
    own(tree)
    limit_s = 10.0
    with slow_syncs(house, 2.0):
        began_s = time.monotonic()
        house.lane.freeze(tree.id, timeout_s=limit_s, lasting=False)
        took_s = time.monotonic() - began_s
    assert marked(tree) == []
    assert (house.lane.thaw(tree.id) or 0) < limit_s * 1e9
    assert took_s > limit_s


def test_tree_takes_changes_after_a_freeze_that_was_given_up(house: House, tree: Tree) -> None:
    own(tree)
    with slow_syncs(house, 2.0):
        with pytest.raises(DeadlineExceeded):
            house.lane.freeze(tree.id, timeout_s=0.5, lasting=False)
        (tree / "d1/f1").chmod(0o600)
        (tree / "new").write_bytes(b"new")
    house.snapshots.commit(tree.key, house.name())
    assert marked(tree) == []
    assert (tree.upper / "d1/f1").stat().st_mode & 0o777 == 0o600
    assert (tree.upper / "new").read_bytes() == b"new"


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
def test_worker_that_dies_while_it_copies_has_a_successor_that_goes_on(
    tmp_path: Path, mode: Mode
) -> None:
    with lanes.house(tmp_path / "house", mode, metacopy=True) as house:
        tree = house.active(fill)
        own(tree)
        freezing = threading.Thread(
            target=house.snapshots.commit, args=(tree.key, "committed"), daemon=True
        )
        freezing.start()
        end_s = time.monotonic() + TIMEOUT_S
        while len(marked(tree)) == DIRECTORIES * FILES and time.monotonic() < end_s:
            time.sleep(0.01)
        house.kill_worker()
        freezing.join(TIMEOUT_S)
        assert not freezing.is_alive()
        assert marked(tree) == []
        for directory in range(DIRECTORIES):
            for number in range(FILES):
                found = tree.upper / f"d{directory}/f{number}"
                assert found.read_bytes() == content(directory, number)
                assert found.stat().st_uid == 7


def test_commit_waits_for_a_worker_where_data_is_left(tmp_path: Path, mode: Mode) -> None:
    with lanes.house(tmp_path / "house", mode, metacopy=True) as house:
        tree = house.active(fill)
        (tree / "d1/f1").chmod(0o600)
        house.stop()
        with pytest.raises(Unavailable, match="start it"):
            house.snapshots.commit(tree.key, "early")
        house.start()
        house.snapshots.commit(tree.key, "late")
        assert marked(tree) == []
        assert (tree.upper / "d1/f1").read_bytes() == content(1, 1)


def big(layer: Path) -> None:
    (layer / "f").write_bytes(BIG)


def test_full_disk_refuses_the_commit_and_loses_nothing(tmp_path: Path, mode: Mode) -> None:
    with (
        tmpfs(tmp_path / "place", "size=48m") as place,
        lanes.house(tmp_path / "house", mode, root=place / "root", metacopy=True) as house,
    ):
        tree = house.active(big)
        (tree / "f").chmod(0o600)
        with (place / "filler").open("wb") as filler:
            free = os.statvfs(place)
            os.posix_fallocate(filler.fileno(), 0, free.f_bavail * free.f_bsize - (2 << 20))
        for _ in range(2):
            with pytest.raises(ResourceExhausted, match=r"No space.*free some space"):
                house.snapshots.commit(tree.key, "full")
            assert (tree / "f").read_bytes() == BIG
            (tree / "small").write_bytes(b"goes on")
        with pytest.raises(OSError, match="No space"), (tree / "f").open("r+b", 0) as file:
            file.write(b"new")
        (place / "filler").unlink()
        house.snapshots.commit(tree.key, "room")
        assert (tree.upper / "f").read_bytes() == BIG
        assert (tree.upper / "f").stat().st_mode & 0o777 == 0o600
        assert (tree.upper / "small").read_bytes() == b"goes on"
