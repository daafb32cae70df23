"""A lower file with several names stays one file when it is copied up."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from snapfs.overlay import settle_offline
from tests.overlay.conftest import Stack
from tests.support.overlay.census import differences
from tests.support.overlay.layers import Same

Build = Callable[..., Stack]
pytestmark = pytest.mark.root
THREE = {"a": b"same", "d/b": Same("a"), "e/c": Same("a"), "other": b"x"}


def test_all_names_are_one_node_and_show_the_change(stack: Build) -> None:
    tree = stack(THREE)
    assert tree.node("a") is tree.node("d/b")
    before = tree.tree.getattr(tree.node("a"))
    tree.files.write(b"d/b", 0, b"S")
    for path in ("a", "d/b", "e/c"):
        assert tree.read(path) == b"Same"
        attributes = tree.tree.getattr(tree.node(path))
        assert (attributes.ino, attributes.nlink) == (before.ino, 3)


def test_names_not_looked_up_before_the_copy_up_show_it_after_forget_and_restart(
    stack: Build,
) -> None:
    tree = stack(THREE)
    tree.files.write(b"a", 0, b"S")
    ino = tree.node("a").ino
    tree.files.forget()
    assert tree.read("e/c") == b"Same"
    tree.reopen()
    assert tree.read("d/b") == b"Same"
    assert tree.node("d/b").ino == tree.node("e/c").ino == ino
    listed = {entry.name: entry.ino for entry in tree.tree.readdir(tree.node("d"))}
    assert listed == {b"b": ino}


def test_removed_names_are_counted_before_and_after_the_copy_up(stack: Build) -> None:
    tree = stack(THREE)
    tree.files.unlink(b"a")
    assert tree.tree.getattr(tree.node("d/b")).nlink == 2
    tree.reopen()
    assert tree.tree.getattr(tree.node("d/b")).nlink == 2
    tree.files.write(b"d/b", 0, b"S")
    assert tree.tree.getattr(tree.node("d/b")).nlink == 2
    tree.files.unlink(b"e/c")
    assert tree.tree.getattr(tree.node("d/b")).nlink == 1
    tree.files.link(b"d/b", b"new")
    assert tree.tree.getattr(tree.node("new")).nlink == 2
    assert tree.leftovers() == []


def test_settling_puts_every_name_into_the_upper_layer(stack: Build) -> None:
    tree = stack(THREE)
    tree.files.write(b"a", 0, b"S")
    shown = tree.census()
    ino = tree.node("a").ino
    tree.tree.settle()
    assert not differences(shown, tree.census())
    files = [os.stat(tree.upper / path) for path in ("a", "d/b", "e/c")]
    assert len({real.st_ino for real in files}) == 1
    assert files[0].st_nlink == 3
    assert tree.node("e/c").ino == ino
    assert not differences(shown, tree.kernel_census())


def test_an_upper_layer_is_settled_without_an_open_tree(stack: Build) -> None:
    tree = stack(THREE)
    tree.files.write(b"a", 0, b"S")
    tree.files.forget()
    shown = tree.census()
    tree.tree.close()
    settle_offline(tree.upper, tree.work, tree.lowers)
    assert os.stat(tree.upper / "e/c").st_nlink == 3
    settle_offline(tree.upper, tree.work, tree.lowers)
    tree.open()
    assert not differences(shown, tree.census())


def test_settling_finds_names_below_moved_and_removed_directories(stack: Build) -> None:
    tree = stack({"a": b"x", "d/s/b": Same("a"), "e/c": Same("a"), "gone/d": Same("a")})
    tree.files.write(b"a", 0, b"S")
    tree.files.rename(b"d", b"moved", 0)
    tree.files.unlink(b"gone/d")
    tree.files.rmdir(b"gone")
    shown = tree.census()
    tree.tree.settle()
    assert os.stat(tree.upper / "moved/s/b").st_nlink == 3
    assert not differences(shown, tree.kernel_census())


def test_a_pending_name_can_be_renamed_linked_and_exchanged(stack: Build) -> None:
    tree = stack(THREE)
    tree.files.write(b"a", 0, b"S")
    tree.files.rename(b"d/b", b"d/renamed", 0)
    tree.files.link(b"e/c", b"e/linked")
    tree.files.rename(b"e/c", b"other", 2)
    assert tree.read("other") == b"Same"
    assert tree.read("e/c") == b"x"
    ino = tree.node("a").ino
    names = ("d/renamed", "e/linked", "other")
    assert {tree.node(path).ino for path in names} == {ino}
    assert tree.tree.getattr(tree.node("a")).nlink == 4
    assert not differences(tree.census(), tree.kernel_census())


def test_a_held_file_whose_known_name_went_is_shared_with_its_other_names(stack: Build) -> None:
    tree = stack(THREE)
    node = tree.node("a")
    tree.files.unlink(b"a")
    fd = tree.tree.open(node, os.O_RDWR)
    os.write(fd, b"S")
    os.close(fd)
    tree.files.forget()
    assert tree.read("d/b") == b"Same"
    assert tree.tree.getattr(tree.node("e/c")).nlink == 2


def test_upper_hard_links_are_one_node(stack: Build) -> None:
    tree = stack({"d/x": b""})
    tree.files.create(b"d/one", 0o644, b"1")
    tree.files.link(b"d/one", b"two")
    tree.files.forget()
    assert tree.node("two") is tree.node("d/one")
    assert tree.tree.getattr(tree.node("two")).nlink == 2
    node = tree.node("two")
    tree.files.unlink(b"d/one")
    assert tree.tree.getattr(node).nlink == 1
    tree.files.write(b"two", 0, b"2")
    assert tree.read("two") == b"2"
