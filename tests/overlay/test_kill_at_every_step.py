"""A process killed between any two of its system calls leaves the tree as before or as after."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapfs.overlay import Tree, TreeSpec, syscalls
from tests.overlay.changes import CHANGES, LOWER, Step, nothing
from tests.overlay.conftest import WHO
from tests.support.overlay.census import differences, of_mount, of_tree
from tests.support.overlay.files import OnTree
from tests.support.overlay.kernel import overlay
from tests.support.overlay.layers import make_layer

pytestmark = pytest.mark.root

KILLED = 42
MAY_DIFFER = ("mtime_ns", "nlink")
"""A directory's time and the count of a file's names are set after the change that users see."""
CHANGING = (
    *("chmod", "chown", "fchmod", "fchown", "ftruncate", "link", "mkdir", "mknod", "pwrite"),
    *("removexattr", "rename", "rmdir", "setxattr", "symlink", "unlink", "open"),
)


class Trap:
    """Kills this process instead of its n-th changing system call; for use after a fork."""

    def __init__(self, number: int) -> None:
        self.left = number
        for name in CHANGING:
            setattr(os, name, self.guard(getattr(os, name)))
        syscalls._renameat2 = self.guard(syscalls._renameat2)
        syscalls._utimensat = self.guard(syscalls._utimensat)
        syscalls._futimens = self.guard(syscalls._futimens)

    def guard(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if call.__name__ != "open" or args[1] & os.O_CREAT:
                self.left -= 1
                if self.left == 0:
                    os._exit(KILLED)
            return call(*args, **kwargs)

        return guarded


def run(base: Path, number: int, lower: Path, prepare: Step, change: Step, kill_at: int) -> Tree:
    """Do a change in a child that is killed at a step, and open the tree that it leaves."""
    upper, work = base / f"upper{number}", base / f"work{number}"
    upper.mkdir()
    work.mkdir()
    spec = TreeSpec(3, (lower,), upper, work, sync=False)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.umask(0)
            files = OnTree(Tree(spec))
            prepare(files)
            if kill_at:
                Trap(kill_at)
            change(files)
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, KILLED)
    tree = Tree(spec)
    tree.finished = code == 0  # type: ignore[attr-defined]
    return tree


@pytest.mark.parametrize("name", CHANGES)
def test_the_tree_is_as_before_or_as_after(tmp_path: Path, name: str) -> None:
    prepare, change = CHANGES[name]
    lower = make_layer(tmp_path / "lower", LOWER)
    outcomes = []
    for number, step in enumerate((nothing, change)):
        tree = run(tmp_path, number, lower, prepare, step, 0)
        outcomes.append(of_tree(tree))
        tree.close()
    kill_at, finished = 0, False
    while not finished:
        kill_at += 1
        tree = run(tmp_path, kill_at + 1, lower, prepare, change, kill_at)
        finished = tree.finished  # type: ignore[attr-defined]
        found = [
            differences(expected, of_tree(tree), leave_out=MAY_DIFFER) for expected in outcomes
        ]
        assert not all(found), f"killed before step {kill_at}: {found}"
        check_that_work_goes_on(tmp_path, tree, lower)
    assert kill_at > 1


def check_that_work_goes_on(base: Path, tree: Tree, lower: Path) -> None:
    """The tree left behind takes changes, and after settling the kernel reads it the same."""
    tree.mkdir(tree.root, b"goes on", 0o755, **WHO)
    assert tree.spec.upper is not None
    assert tree.spec.work is not None
    left = os.listdir(Path(os.fsdecode(tree.spec.work)) / "snapfs")
    assert not [name for name in left if name[0] in "to"]
    shown = of_tree(tree)
    tree.settle()
    tree.close()
    with overlay(base / "kernel", [Path(os.fsdecode(tree.spec.upper)), lower]) as mounted:
        assert not differences(shown, of_mount(mounted), leave_out=("nlink",))
