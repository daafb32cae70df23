"""A stack of layers with a tree on it, for the tests of single behaviours."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from snapfs.overlay import Inodes, Node, Tree, TreeSpec
from tests.support.overlay.census import Census, of_mount, of_tree
from tests.support.overlay.files import OnTree
from tests.support.overlay.kernel import image_fs, overlay
from tests.support.overlay.layers import make_layer

WHO = {"uid": 0, "gid": 0, "umask": 0o22}


class Stack:
    """Layers in a directory and a tree that merges them; paths are relative to the tree's root."""

    def __init__(self, base: Path, lowers: list[Path], *, view: bool = False) -> None:
        self.base = base
        self.lowers = lowers
        self.view = view
        self.upper = base / "upper"
        self.work = base / "work"
        self.upper.mkdir()
        self.work.mkdir()
        self.inodes = Inodes()
        self.open()

    def open(self) -> None:
        upper, work = (None, None) if self.view else (self.upper, self.work)
        self.tree = Tree(TreeSpec(7, tuple(self.lowers), upper, work), self.inodes)
        self.files = OnTree(self.tree)

    def reopen(self) -> None:
        """Close the tree and open it again, as a restarted worker does."""
        self.files.forget()
        self.tree.close()
        self.open()

    def node(self, path: str) -> Node:
        return self.files.node(path.encode())

    def parent(self, path: str) -> tuple[Node, bytes]:
        above, name = os.path.split(path)
        return self.node(above), name.encode()

    def names(self, path: str = "") -> list[str]:
        return sorted(entry.name.decode() for entry in self.tree.readdir(self.node(path)))

    def read(self, path: str) -> bytes:
        with open(self.tree.open(self.node(path), os.O_RDONLY), "rb") as file:
            return file.read()

    def exists(self, path: str) -> bool:
        try:
            self.node(path)
        except FileNotFoundError:
            return False
        return True

    def census(self) -> Census:
        return of_tree(self.tree)

    def kernel_census(self) -> Census:
        """What the kernel shows of the settled layers, read-only."""
        self.tree.settle()
        with overlay(self.base / "kernel", [self.upper, *self.lowers]) as mounted:
            return of_mount(mounted)

    def is_whiteout(self, path: str) -> bool:
        """Whether the upper layer itself has a whiteout here."""
        real = os.lstat(self.upper / path)
        return stat.S_ISCHR(real.st_mode) and real.st_rdev == 0

    def leftovers(self) -> list[str]:
        return sorted(name for name in os.listdir(self.work / "snapfs") if name[0] in "tol")


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Callable[..., Stack]]:
    """Make a Stack: stack(topmost, ..., bottom) with each layer a dictionary or a directory."""
    made: list[Stack] = []

    def build(*layers: Mapping[str, object] | Path, view: bool = False) -> Stack:
        base = tmp_path / f"stack{len(made)}"
        base.mkdir()
        lowers = [
            layer if isinstance(layer, Path) else make_layer(base / f"l{at}", layer)
            for at, layer in enumerate(layers)
        ]
        made.append(Stack(base, lowers, view=view))
        return made[-1]

    yield build
    for one in made:
        one.files.forget()
        assert not len(one.inodes)
        one.tree.close()


@pytest.fixture
def reflink_fs(tmp_path: Path) -> Iterator[Path]:
    """A small XFS that can clone files."""
    with image_fs(tmp_path, "xfs") as mounted:
        yield mounted
