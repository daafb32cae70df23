"""What was learned of a file's references is not held against the next one with its number."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from snapfs.fuse import trees
from snapfs.fuse.trees import SingleForest
from snapfs.overlay import Inodes, Node, Places, Tree, TreeSpec
from tests.support.overlay.kernel import image_fs

pytestmark = [pytest.mark.root]


class Kernel:
    """Says whether it has a file."""

    def __init__(self) -> None:
        self.has_it = True

    def __call__(self, nodeid: int) -> bool:
        return self.has_it


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(trees, "kernel_has", made)
    monkeypatch.setattr(trees, "DOUBT_S", 0.0)
    return made


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    """An earlier worker has shown it, and the number that its next file gets, on a file system that
    gives a number again at once."""
    places = os.memfd_create("places", os.MFD_CLOEXEC)
    with image_fs(tmp_path, "ext4") as base:
        for layer in ("upper", "work", "lower"):
            (base / layer).mkdir()
        (base / "work" / "snapfs").mkdir()
        (base / "upper" / "next").touch()
        Places(places).note((base / "upper" / "next").stat().st_ino, 1)
        (base / "upper" / "next").unlink()
        spec = TreeSpec(1, (base / "lower",), base / "upper", base / "work", single=True)
        made = Tree(spec, Inodes(Places(places)))
        yield made
        made.close()
    os.close(places)


def make(tree: Tree, forest: SingleForest, references: int) -> Node:
    node, fd = tree.create(tree.root, b"file", 0o600, os.O_RDWR, uid=0, gid=0, umask=0)
    os.close(fd)
    for _ in range(references):
        forest.remember(node)
    return node


def settle(forest: SingleForest) -> None:
    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(forest.settle_doubts)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    trio.run(run)


def test_file_is_kept_whatever_its_number_was_doubted_for(tree: Tree, kernel: Kernel) -> None:
    forest = SingleForest(tree, tree.inodes)
    forest.is_without_opens = True
    first = make(tree, forest, 1).ino
    forest.forget(first, 1)
    settle(forest)  # the kernel has it, so that FORGET was late
    assert forest.is_known(first)
    tree.unlink(tree.root, b"file")
    kernel.has_it = False
    forest.forget(first, 1)
    assert not forest.is_known(first)
    assert make(tree, forest, 2).ino == first
    forest.forget(first, 1)  # the kernel is to have one more
    settle(forest)
    assert forest.is_known(first)
