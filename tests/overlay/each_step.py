"""One change of a tree, by a process that is killed before each of its changing calls in turn.

    python -m tests.overlay.each_step BASE NAME [metacopy]

Each leaves the tree as before or as after. Started with the library of failing_calls.py.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from snapfs.overlay import Tree, TreeSpec
from tests.overlay.changes import CHANGES, LOWER, Step, nothing
from tests.overlay.conftest import WHO
from tests.support import failing_calls
from tests.support.overlay.census import differences, of_mount, of_tree
from tests.support.overlay.files import OnTree
from tests.support.overlay.kernel import overlay
from tests.support.overlay.layers import make_layer

KILLED = 42
MAY_DIFFER = ("mtime_ns", "nlink")
"""A directory's time and the count of a file's names are set after the change that users see."""


def run(
    base: Path,
    number: int,
    lower: Path,
    prepare: Step,
    change: Step,
    kill_at: int,
    *,
    metacopy: bool,
) -> Tree:
    """Do a change in a child that is killed at a step, and open the tree that it leaves."""
    upper, work = base / f"upper{number}", base / f"work{number}"
    upper.mkdir()
    work.mkdir()
    spec = TreeSpec(3, (lower,), upper, work, sync=False, metacopy=metacopy)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.umask(0)
            files = OnTree(Tree(spec))
            prepare(files)
            if kill_at:
                failing_calls.kill(kill_at, KILLED)
            change(files)
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, KILLED)
    tree = Tree(spec)
    tree.finished = code == 0  # type: ignore[attr-defined]
    return tree


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


def main(base: Path, name: str, *, metacopy: bool) -> None:
    prepare, change = CHANGES[name]
    lower = make_layer(base / "lower", LOWER)
    outcomes = []
    for number, step in enumerate((nothing, change)):
        tree = run(base, number, lower, prepare, step, 0, metacopy=metacopy)
        outcomes.append(of_tree(tree))
        tree.close()
    kill_at, finished = 0, False
    while not finished:
        kill_at += 1
        tree = run(base, kill_at + 1, lower, prepare, change, kill_at, metacopy=metacopy)
        finished = tree.finished  # type: ignore[attr-defined]
        found = [
            differences(expected, of_tree(tree), leave_out=MAY_DIFFER) for expected in outcomes
        ]
        assert not all(found), f"killed before step {kill_at}: {found}"
        check_that_work_goes_on(base, tree, lower)
    print(json.dumps({"steps": kill_at - 1}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], metacopy="metacopy" in sys.argv[3:])
