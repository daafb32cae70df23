"""What was removed stays usable while it is known, and leaves nothing behind."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Callable

import pytest

from snapfs.overlay import SetAttr
from tests.overlay.conftest import WHO, Stack
from tests.support.overlay.census import differences

Build = Callable[..., Stack]
pytestmark = pytest.mark.root


@pytest.mark.parametrize("path", ["lower", "upper", "copied"])
def test_an_unlinked_file_can_be_read_written_and_changed_until_it_is_forgotten(
    stack: Build, path: str
) -> None:
    tree = stack({"lower": b"12345", "copied": b"123"})
    tree.files.create(b"upper", 0o644, b"12345")
    tree.files.write(b"copied", 3, b"45")
    node = tree.node(path)
    tree.files.unlink(path.encode())
    assert not tree.exists(path)
    tree.files.create(path.encode(), 0o600, b"another")
    assert tree.node(path) is not node
    assert tree.node(path).ino != node.ino
    with open(tree.tree.open(node, os.O_RDWR), "r+b") as file:
        assert file.read() == b"12345"
        file.write(b"6")
    tree.tree.setattr(node, SetAttr(mode=0o600, uid=5, mtime_ns=10**18))
    tree.tree.setattr(node, SetAttr(size=3))
    tree.tree.setxattr(node, b"user.x", b"y")
    attributes = tree.tree.getattr(node)
    assert (attributes.mode & 0o777, attributes.uid, attributes.size) == (0o600, 5, 3)
    assert attributes.nlink == 0
    assert tree.tree.getxattr(node, b"user.x") == b"y"
    with pytest.raises(FileNotFoundError):
        tree.tree.link(node, tree.tree.root, b"back")
    assert tree.read(path) == b"another"
    tree.files.forget()
    assert tree.leftovers() == []


@pytest.mark.parametrize("path", ["lower", "upper", "merged"])
def test_a_removed_directory_is_empty_and_takes_nothing_new(stack: Build, path: str) -> None:
    tree = stack({"lower/x": b"", "merged/y": b""})
    tree.files.mkdir(b"upper", 0o711)
    tree.files.create(b"merged/z", 0o644, b"")
    node = tree.node(path)
    for name in tree.names(path):
        tree.files.unlink(f"{path}/{name}".encode())
    tree.files.rmdir(path.encode())
    assert tree.tree.readdir(node) == []
    assert tree.tree.getattr(node).nlink == 0
    for change in (
        lambda: tree.tree.mkdir(node, b"n", 0o755, **WHO),
        lambda: tree.tree.create(node, b"n", 0o644, os.O_RDWR, **WHO),
        lambda: tree.tree.link(tree.node("f"), node, b"n"),
        lambda: tree.tree.rename(tree.tree.root, b"f", node, b"n"),
        lambda: tree.tree.lookup(node, b"x"),
        lambda: tree.tree.unlink(node, b"x"),
    ):
        if not tree.exists("f"):
            tree.files.create(b"f", 0o644, b"")
        with pytest.raises(FileNotFoundError):
            change()
    tree.files.mkdir(path.encode(), 0o755)
    assert tree.node(path) is not node
    tree.files.forget()
    assert tree.leftovers() == []
    assert not differences(tree.census(), tree.kernel_census())


def test_a_directory_with_visible_entries_is_not_removed(stack: Build) -> None:
    tree = stack({"d/a": b"", "d/b": b""})
    tree.files.unlink(b"d/a")
    with pytest.raises(OSError) as caught:
        tree.files.rmdir(b"d")
    assert caught.value.errno == errno.ENOTEMPTY
    with pytest.raises(NotADirectoryError):
        tree.files.rmdir(b"d/b")
    with pytest.raises(IsADirectoryError):
        tree.files.unlink(b"d")


def test_a_removed_merged_directory_with_whiteouts_leaves_one_whiteout(stack: Build) -> None:
    tree = stack({"d/a": b"", "d/b": b""})
    for name in (b"d/a", b"d/b"):
        tree.files.unlink(name)
    tree.files.forget()
    tree.files.rmdir(b"d")
    tree.files.forget()
    assert tree.is_whiteout("d")
    assert tree.leftovers() == []


def test_what_only_the_upper_layer_had_leaves_no_whiteout(stack: Build) -> None:
    tree = stack({"d/a": b""})
    tree.files.create(b"d/new", 0o644, b"")
    tree.files.mkdir(b"d/dir", 0o755)
    tree.files.unlink(b"d/new")
    tree.files.rmdir(b"d/dir")
    assert os.listdir(tree.upper / "d") == []


def test_a_walk_followed_by_forget_leaves_the_tables_empty(stack: Build) -> None:
    content = {f"d{n}/s{m}/f{k}": b"" for n in range(5) for m in range(5) for k in range(5)}
    tree = stack(content)
    tree.files.write(b"d1/s1/f1", 0, b"x")
    tree.files.rename(b"d2", b"d1/in", 0)
    for path in content:
        if tree.exists(path):
            tree.node(path)
    assert len(tree.inodes) > 100
    tree.files.forget()
    gc.collect()
    assert len(tree.inodes) == 0
    assert len(tree.inodes._passing) == 0
    assert tree.tree.root.children == {}


def test_nodes_are_forgotten_in_any_order(stack: Build) -> None:
    tree = stack({"a/b/c/f": b"x"})
    chain = [tree.node(path) for path in ("a", "a/b", "a/b/c", "a/b/c/f")]
    counts = {node.ino: node.nlookup for node in chain}
    tree.files.remembered.clear()
    leaf = chain[-1]
    for node in chain[:-1]:
        tree.inodes.forget(node.ino, counts[node.ino])
    assert tree.tree.getattr(leaf).size == 1
    assert tree.tree.lookup(chain[2], b"f") is leaf
    fd = tree.tree.open(leaf, os.O_RDWR)
    os.close(fd)
    assert (tree.upper / "a/b/c/f").exists()
    tree.inodes.forget(leaf.ino, counts[leaf.ino])
    assert len(tree.inodes) == 0


def test_a_restart_cleans_up_what_was_removed_but_known(stack: Build) -> None:
    tree = stack({"d/f": b""})
    tree.files.create(b"new", 0o644, b"")
    tree.files.unlink(b"new")
    assert tree.leftovers() != []
    tree.tree.inodes._known.clear()
    tree.files.remembered.clear()
    tree.reopen()
    assert tree.leftovers() == []
