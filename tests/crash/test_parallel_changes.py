"""Programs change the same directories in parallel while directories move and workers die."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from snapfs.model import DeadlineExceeded, FailedPrecondition
from snapfs.snapshots.usage import measure
from tests.crash import expected_files
from tests.support import lanes, trees
from tests.support.daemon import eventually
from tests.support.dentries import drop_dentries_of
from tests.support.lanes import House, Tree
from tests.support.overlay import kernel

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    # A container that starts just now, of a test beside this one, has a copy of the mount a little
    # longer than we have, and the worker serves it.
    pytest.mark.logs("lane.left_serving"),
]

SEED = 7
SECONDS = 7.0
PROGRAMS = 3
DEADLINE_S = 120.0
ABORT_S = 450.0
KERNEL_OPTIONS = "redirect_dir=on,metacopy=on,index=off"
REFUSALS = (FailedPrecondition, DeadlineExceeded)
"""The latter when a busy machine does not write back in time."""

Strike = Callable[[House, Tree, random.Random], int]
"""Does something to a lane under programs, and returns how often it has done it."""


class Running:
    """A process of `tests.crash.changing` with what it says."""

    def __init__(self, log: Path, *arguments: object) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.crash.changing", *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=Path(__file__).parents[2],
            )

    def said(self) -> list[str]:
        return self.log.read_text().splitlines()

    def wait_for(self, word: str) -> None:
        """Return when it says something that begins with `word`; fail when it ends before."""

        def heard() -> bool:
            ended = self.process.poll() is not None
            if any(line.startswith(word) for line in self.said()):
                return True
            assert not ended, f"{self.log.name} ended:\n{self.log.read_text()}"
            return False

        eventually(heard, timeout_s=DEADLINE_S, what=f"{word!r} of {self.log.name}")

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def finish(self) -> None:
        """Tell it that it may end, and wait until it has."""
        with suppress(subprocess.TimeoutExpired):
            self.process.communicate(b"\n", timeout=DEADLINE_S)
        assert self.process.returncode == 0, f"{self.log.name}:\n{self.log.read_text()}"

    def kill(self) -> None:
        """End it, whatever it does; a call that hangs ends when the lane is aborted."""
        self.process.kill()
        with suppress(subprocess.TimeoutExpired):
            self.process.communicate(timeout=1.0)


@contextmanager
def changing(base: Path, house: House, tree: Tree, *, set_id: bool) -> Iterator[list[Running]]:
    """Programs at work on a tree, with one that moves directories and one that drops dentries."""
    options = ["--passthrough"] * house.passes_through + ["--set-id"] * set_id
    running: list[Running] = []
    try:
        for nth in range(PROGRAMS):
            about = ("change", tree.path, nth, SEED, SECONDS, *options)
            running.append(Running(base / f"program-{nth}", *about))
        running.append(Running(base / "mover", "move", tree.path, SEED, SECONDS))
        running.append(Running(base / "forgetting", "forget", house.mountpoint, SECONDS))
        for it in running:
            it.wait_for("ready")
        for it in running:
            it.go_on()
        yield running
    finally:
        for it in running:
            it.kill()


def kill_workers(house: House, _: Tree, dice: random.Random) -> int:
    time.sleep(dice.uniform(0.3, 1.2))
    house.kill_worker()
    return 1


def commit(house: House, tree: Tree, dice: random.Random) -> int:
    """Ask for a commit, which is refused for as long as somebody writes."""
    time.sleep(dice.uniform(0.05, 0.4))
    with (tree / "written").open("wb"), pytest.raises(REFUSALS):
        house.snapshots.commit(tree.key, house.name())
    return 1


def run(base: Path, mode: Mode, strike: Strike, *, set_id: bool = True) -> None:
    """Change, strike meanwhile, and compare what is there afterwards with all who know it."""
    with lanes.aborting_after(base, ABORT_S), lanes.house(base / "house", mode) as house:
        tree = house.active(lambda top: expected_files.fill(top, PROGRAMS))
        dice, strikes = random.Random(SEED), 0
        with changing(base, house, tree, set_id=set_id) as running:
            end_s = time.monotonic() + SECONDS - 1
            while time.monotonic() < end_s:
                strikes += strike(house, tree, dice)
            for it in running:
                it.wait_for("done")
            for it in reversed(running):  # programs look again when directories are at their places
                it.finish()
        assert strikes
        check_usage(house, tree)
        seen = trees.describe(tree.path)
        drop_dentries_of(house.mountpoint)
        assert trees.differences(seen, trees.describe(tree.path)) == []
        check_with_the_kernel(house, tree, seen)


def check_usage(house: House, tree: Tree) -> None:
    """What the lane has counted is what a walk finds, once removed files are given up."""

    def is_counted() -> bool:
        before = measure(tree.upper)
        os.listdir(tree.path)
        counted = house.lane.usage(tree.id)
        return counted is not None and before == counted == measure(tree.upper)

    eventually(is_counted, timeout_s=DEADLINE_S, what="the usage that a walk finds")


def check_with_the_kernel(house: House, tree: Tree, seen: dict[str, trees.Entry]) -> None:
    """Kernel overlayfs shows the same with the same layers."""
    parent = house.snapshots.stat(house.snapshots.stat(tree.key).parent)
    layers, upper, work = [house.layer(parent.id)], tree.upper, tree.upper.parent / "kernel-work"
    house.stop()
    with kernel.overlay(
        house.base / "kernel", layers, upper, work, options=KERNEL_OPTIONS
    ) as reference:
        assert trees.differences(seen, trees.describe(reference)) == []


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
def test_nothing_is_lost_when_workers_die_in_passthrough(tmp_path: Path) -> None:
    # The next worker does not know who had a file open for writing, and takes set-id bits that such
    # a file has got as if an ordinary user had written, who must lose them: fuse.md, Passthrough,
    # Set-id bits. So programs set none here.
    run(tmp_path, Mode.PASSTHROUGH, kill_workers, set_id=False)


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
def test_nothing_is_lost_when_workers_die_without_opens(tmp_path: Path) -> None:
    run(tmp_path, Mode.NO_OPEN, kill_workers)


def test_nothing_is_lost_when_commits_are_refused(tmp_path: Path) -> None:
    run(tmp_path, Mode.PASSTHROUGH, commit)
