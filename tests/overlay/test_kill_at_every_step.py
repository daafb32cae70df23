"""A process killed between any two of its system calls leaves the tree as before or as after."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapfs.overlay import RENAME_EXCHANGE, Tree, TreeSpec, syscalls
from tests.overlay.conftest import WHO
from tests.support.overlay.census import differences, of_mount, of_tree
from tests.support.overlay.files import OnTree
from tests.support.overlay.kernel import overlay
from tests.support.overlay.layers import Dir, Same, make_layer

pytestmark = pytest.mark.root

KILLED = 42
MAY_DIFFER = ("mtime_ns", "nlink")
"""A directory's time and the count of a file's names are set after the change that users see."""
CHANGING = (
    *("chmod", "chown", "fchmod", "fchown", "ftruncate", "link", "mkdir", "mknod", "pwrite"),
    *("removexattr", "rename", "rmdir", "setxattr", "symlink", "unlink", "open"),
)
LOWER = {
    "d/s/f": b"deep",
    "d/g": b"g",
    "empty/x": b"x",
    "a": b"linked",
    "e/b": Same("a"),
    "e/c": Same("a"),
    "sgid": Dir(0o2775, 0, 50),
}
USER = {"uid": 1000, "gid": 1000, "umask": 0o22}


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


Step = Callable[[OnTree], None]


def nothing(_: OnTree) -> None:
    pass


def new_file(files: OnTree) -> None:
    _, fd = files.tree.create(files.tree.root, b"new", 0o644, os.O_RDWR, **USER)
    os.close(fd)


def both(*steps: Step) -> Step:
    def run(files: OnTree) -> None:
        for step in steps:
            step(files)

    return run


def clear_empty(files: OnTree) -> None:
    files.unlink(b"empty/x")


def touch_up_c(files: OnTree) -> None:
    files.chmod(b"e/c", 0o600)


def remove_empty(files: OnTree) -> None:
    clear_empty(files)
    files.rmdir(b"empty")


CHANGES: dict[str, tuple[Step, Step]] = {
    "copy-up": (nothing, lambda f: f.chmod(b"d/s/f", 0o600)),
    "copy-up of a hard link": (nothing, lambda f: f.chmod(b"e/b", 0o600)),
    "create": (nothing, lambda f: f.create(b"d/n", 0o644, b"")),
    "create by a user": (nothing, new_file),
    "create over a whiteout": (lambda f: f.unlink(b"d/g"), lambda f: f.create(b"d/g", 0o644, b"")),
    "mkdir": (nothing, lambda f: f.mkdir(b"d/n", 0o755)),
    "mkdir in a set-group-id directory": (nothing, lambda f: f.mkdir(b"sgid/n", 0o755)),
    "mkdir over a whiteout": (remove_empty, lambda f: f.mkdir(b"empty", 0o755)),
    "symlink": (nothing, lambda f: f.symlink(b"t", b"n")),
    "link to a lower file": (nothing, lambda f: f.link(b"d/g", b"n")),
    "unlink of a lower file": (nothing, lambda f: f.unlink(b"d/g")),
    "unlink of an upper file": (lambda f: f.chmod(b"d/g", 0o600), lambda f: f.unlink(b"d/g")),
    "unlink of a hard link": (touch_up_c, lambda f: f.unlink(b"e/b")),
    "unlink of the last hard link": (
        both(touch_up_c, lambda f: f.unlink(b"a")),
        lambda f: f.unlink(b"e/b"),
    ),
    "rmdir": (clear_empty, lambda f: f.rmdir(b"empty")),
    "rename of a lower file": (nothing, lambda f: f.rename(b"d/g", b"e/g", 0)),
    "rename of a lower directory": (nothing, lambda f: f.rename(b"d", b"e/d", 0)),
    "rename of a hard link": (touch_up_c, lambda f: f.rename(b"e/b", b"d/b", 0)),
    "rename over a file": (nothing, lambda f: f.rename(b"d/g", b"a", 0)),
    "rename over an upper file": (
        lambda f: f.chmod(b"a", 0o600),
        lambda f: f.rename(b"d/g", b"a", 0),
    ),
    "rename over an empty directory": (clear_empty, lambda f: f.rename(b"d", b"empty", 0)),
    "rename of a directory over a whiteout": (remove_empty, lambda f: f.rename(b"d", b"empty", 0)),
    "rename of an upper directory over a whiteout": (
        both(remove_empty, lambda f: f.mkdir(b"up", 0o755)),
        lambda f: f.rename(b"up", b"empty", 0),
    ),
    "exchange": (nothing, lambda f: f.rename(b"d", b"e/b", RENAME_EXCHANGE)),
    "exchange of directories": (nothing, lambda f: f.rename(b"d", b"e", RENAME_EXCHANGE)),
    "settling": (touch_up_c, lambda f: f.tree.settle()),
    "setting an attribute": (nothing, lambda f: f.setxattr(b"d", b"user.a", b"1", 0)),
}


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
