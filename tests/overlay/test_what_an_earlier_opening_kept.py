"""Removed files that an earlier opening kept are found by number, and their numbers are freed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.overlay import Inodes, Node, Tree, TreeSpec
from snapfs.snapshots.usage import blocks_by_inode, measure


@pytest.fixture
def spec(tmp_path: Path) -> TreeSpec:
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower" / "low").write_text("low")
    return TreeSpec(1, (tmp_path / "lower",), tmp_path / "upper", tmp_path / "work", resumed=True)


def made(tree: Tree, name: bytes) -> Node:
    node, fd = tree.create(tree.root, name, 0o600, os.O_RDWR, uid=0, gid=0, umask=0)
    os.write(fd, name)
    os.close(fd)
    tree.inodes.remember(node)
    return node


@pytest.fixture
def left(spec: TreeSpec) -> Iterator[tuple[Tree, int, int]]:
    """A new opening, and the numbers of a file with one name left, and of one with none."""
    dead = Tree(spec, Inodes())
    for name in (b"two", b"none"):
        made(dead, name)
    numbers = [dead.lookup(dead.root, it).ino for it in (b"two", b"none")]
    dead.link(dead.lookup(dead.root, b"two"), dead.root, b"other")
    two = dead.lookup(dead.root, b"two")
    dead.unlink(dead.root, b"other")
    two.more_names = None
    dead.unlink(dead.root, b"none")
    dead.link(two, dead.root, b"other")
    two.drop_name(dead.root, b"other")  # it knows one of the names only
    dead.unlink(dead.root, b"two")
    tree = Tree(spec, Inodes())
    yield tree, *numbers
    tree.close()


def test_nameless_file_is_found_and_read(left: tuple[Tree, int, int]) -> None:
    tree, _, none = left
    node = tree.nameless(none, tree.root)
    assert node is not None
    assert tree.getattr(node).nlink == 0
    with open(tree.open(node, os.O_RDONLY)) as file:
        assert file.read() == "none"
    assert tree.nameless(12345, tree.root) is None


def test_lower_file_behind_a_whiteout_is_found_in_its_directory(spec: TreeSpec) -> None:
    dead = Tree(spec, Inodes())
    ino = dead.lookup(dead.root, b"low").ino
    dead.unlink(dead.root, b"low")
    tree = Tree(spec, Inodes())
    node = tree.nameless(ino, tree.root)
    assert node is not None
    with open(tree.open(node, os.O_RDONLY)) as file:
        assert file.read() == "low"
    with pytest.raises(FileNotFoundError):
        tree.lookup(tree.root, b"low")
    tree.close()


def test_last_name_goes_although_the_file_is_kept_under_its_number(
    left: tuple[Tree, int, int],
) -> None:
    tree, two, _ = left
    node = tree.lookup(tree.root, b"other")
    assert node.ino == two
    assert tree.getattr(node).nlink == 1
    tree.unlink(tree.root, b"other")
    assert "other" not in os.listdir(tree.upper_layer.path.decode())


def test_number_of_what_is_forgotten_can_be_another_files(left: tuple[Tree, int, int]) -> None:
    tree, two, _ = left
    node = tree.lookup(tree.root, b"other")  # held: it is noted, or somebody is at it
    tree.forgotten(two)
    assert tree.getattr(node).nlink == 1
    tree.unlink(tree.root, b"other")
    tree.forgotten(two)
    assert tree.inodes.find(two) is None
    assert node.parent is None


def test_usage_counts_a_file_by_names_that_nobody_has_looked_up(spec: TreeSpec) -> None:
    """Kept for an earlier opening's kernel, which forgets it, and alive by another name."""
    dead = Tree(spec, Inodes())
    node = made(dead, b"first")
    dead.link(node, dead.root, b"second")
    assert spec.upper is not None
    tree = Tree(spec, Inodes())
    tree.usage.begin()
    tree.usage.finish(blocks_by_inode(spec.upper))
    kept = tree.lookup(tree.root, b"first")
    tree.unlink(tree.root, b"first")
    assert kept.stash is not None
    tree.forgotten(kept.ino)
    assert tree.usage.usage() == measure(spec.upper)
    del kept
    assert tree.getattr(tree.lookup(tree.root, b"second")).nlink == 1
    assert tree.usage.usage() == measure(spec.upper)
    tree.unlink(tree.root, b"second")
    tree.forgotten(node.ino)
    assert tree.usage.usage() == measure(spec.upper)
    tree.close()
