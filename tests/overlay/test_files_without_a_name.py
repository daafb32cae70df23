"""O_TMPFILE: a file that is in no layer until it gets its first name."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from snapfs.overlay import Node
from tests.overlay.conftest import WHO, Stack
from tests.support.overlay.census import differences
from tests.support.overlay.layers import Dir

Build = Callable[..., Stack]
pytestmark = pytest.mark.root


@contextmanager
def nameless(tree: Stack, parent: str, content: bytes = b"") -> Iterator[Node]:
    """Make a file without a name, as the kernel knows it while it is open."""
    node, fd = tree.tree.tmpfile(tree.node(parent), 0o640, os.O_RDWR, **WHO)
    tree.inodes.remember(node)
    os.write(fd, content)
    os.close(fd)
    try:
        yield node
    finally:
        tree.inodes.forget(node.ino, 1)


def test_a_file_without_a_name_has_no_links_and_changes_nothing(stack: Build) -> None:
    tree = stack({"d/f": b"f"})
    before = tree.census()
    with nameless(tree, "d", b"content") as node:
        attributes = tree.tree.getattr(node)
        assert (attributes.nlink, attributes.size) == (0, 7)
        assert stat.S_IMODE(attributes.mode) == 0o640
        assert not differences(before, tree.census())
        assert not (tree.upper / "d").exists()
    assert not tree.leftovers()


def test_its_first_link_gives_it_a_name_for_good(stack: Build) -> None:
    tree = stack({"d/f": b"f"})
    with nameless(tree, "d", b"content") as node:
        tree.tree.link(node, tree.node("d"), b"named")
        tree.tree.link(node, tree.node(""), b"again")
        assert tree.tree.getattr(node).nlink == 2
        assert tree.node("d/named") is node
        ino = node.ino
    assert not tree.leftovers()
    assert tree.read("d/named") == tree.read("again") == b"content"
    assert tree.tree.getattr(tree.node("d/named")).ino == ino
    assert not differences(tree.census(), tree.kernel_census())


def test_it_takes_the_place_of_a_removed_file(stack: Build) -> None:
    tree = stack({"d/f": b"f"})
    tree.files.unlink(b"d/f")
    with nameless(tree, "d", b"new") as node:
        tree.tree.link(node, tree.node("d"), b"f")
    assert tree.read("d/f") == b"new"
    assert not tree.is_whiteout("d/f")


def test_a_name_that_is_taken_is_refused_and_the_file_can_still_be_linked(stack: Build) -> None:
    tree = stack({"d/f": b"f"})
    with nameless(tree, "d") as node:
        with pytest.raises(FileExistsError):
            tree.tree.link(node, tree.node("d"), b"f")
        tree.tree.link(node, tree.node("d"), b"g")
    assert tree.names("d") == ["f", "g"]


def test_a_removed_file_can_still_not_be_linked(stack: Build) -> None:
    tree = stack({"d/f": b"f"})
    with nameless(tree, "d") as node:
        tree.tree.link(node, tree.node("d"), b"g")
        tree.tree.unlink(tree.node("d"), b"g")
        assert tree.tree.getattr(node).nlink == 0
        with pytest.raises(FileNotFoundError):
            tree.tree.link(node, tree.node("d"), b"h")


def test_owner_group_and_acl_come_from_the_directory(stack: Build) -> None:
    tree = stack({"sgid": Dir(0o2775, 0, 50)})
    node, fd = tree.tree.tmpfile(
        tree.node("sgid"), 0o666, os.O_RDWR, uid=1000, gid=1001, umask=0o27
    )
    os.close(fd)
    tree.inodes.remember(node)
    attributes = tree.tree.getattr(node)
    assert (attributes.uid, attributes.gid) == (1000, 50)
    assert stat.S_IMODE(attributes.mode) == 0o640
    tree.inodes.forget(node.ino, 1)


def test_it_counts_for_nothing_until_it_has_a_name(stack: Build) -> None:
    tree = stack({"d/f": b"f"})
    tree.tree.usage.take(0, 1)
    with nameless(tree, "", b"x" * 9000) as node:
        usage = tree.tree.usage.usage()
        assert usage is not None
        assert usage.inodes == 1
        tree.tree.link(node, tree.tree.root, b"named")
        usage = tree.tree.usage.usage()
        assert usage is not None
        assert usage.inodes == 2


def test_one_that_a_dead_worker_left_goes_when_the_tree_is_opened(stack: Build) -> None:
    tree = stack({"d/f": b"f"})
    node, fd = tree.tree.tmpfile(tree.tree.root, 0o600, os.O_RDWR, **WHO)
    os.close(fd)
    del node
    assert tree.leftovers()
    tree.reopen()
    assert not tree.leftovers()


def test_a_view_makes_none(stack: Build) -> None:
    tree = stack({"d/f": b"f"}, view=True)
    with pytest.raises(OSError, match="Read-only"):
        tree.tree.tmpfile(tree.tree.root, 0o600, os.O_RDWR, **WHO)
