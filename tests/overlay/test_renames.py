"""Directories move with everything in them, whatever layer they come from."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable

import pytest

from snapfs.overlay import RENAME_EXCHANGE
from tests.overlay.conftest import Stack
from tests.support.overlay.census import Census, differences
from tests.support.overlay.layers import WHITEOUT

Build = Callable[..., Stack]
pytestmark = pytest.mark.root


def below(census: Census, path: bytes) -> set[bytes]:
    """Names of everything under a path, relative to it."""
    return {name[len(path) + 1 :] for name in census if name.startswith(path + b"/")}


def test_a_lower_directory_moves_by_a_redirect_and_leaves_a_whiteout(stack: Build) -> None:
    tree = stack({"d/s/f": b"f", "d/g": b"g"})
    ino = tree.node("d").ino
    tree.files.mkdir(b"new", 0o755)
    tree.files.rename(b"d", b"new/e", 0)
    assert tree.read("new/e/s/f") == b"f"
    assert tree.node("new/e").ino == ino
    assert tree.is_whiteout("d")
    assert os.getxattr(tree.upper / "new/e", "trusted.overlay.redirect") == b"/d"
    assert os.listdir(tree.upper / "new/e") == []
    tree.reopen()
    assert tree.node("new/e").ino == ino
    assert not differences(tree.census(), tree.kernel_census())


def test_known_descendants_move_with_their_directory(stack: Build) -> None:
    tree = stack({"d/s/f": b"f"})
    tree.files.create(b"d/s/up", 0o644, b"up")
    lower, upper, deep = tree.node("d/s/f"), tree.node("d/s/up"), tree.node("d/s")
    tree.files.rename(b"d", b"e", 0)
    assert tree.node("e/s") is deep
    assert tree.node("e/s/up") is upper
    assert tree.tree.getattr(upper).size == 2
    fd = tree.tree.open(lower, os.O_RDWR)
    os.write(fd, b"F!")
    os.close(fd)
    assert (tree.upper / "e/s/f").read_bytes() == b"F!"


def test_directories_of_every_origin_move_into_each_other(stack: Build) -> None:
    """Upper, merged, lower, opaque and moved ones, and the kernel sees the same."""
    names = ("upper", "merged", "lower", "opaque", "moved")
    for first, second in itertools.permutations(names, 2):
        tree = stack({f"{n}/x{n}": b"1" for n in names[1:]}, {"merged/y": b"", "old/z": b""})
        tree.files.mkdir(b"upper", 0o755)
        tree.files.create(b"upper/u", 0o644, b"u")
        tree.files.create(b"merged/u", 0o644, b"u")
        tree.files.unlink(b"opaque/xopaque")
        tree.files.rmdir(b"opaque")
        tree.files.mkdir(b"opaque", 0o755)
        tree.files.unlink(b"moved/xmoved")
        tree.files.rmdir(b"moved")
        tree.files.rename(b"old", b"moved", 0)
        contents = below(tree.census(), first.encode())
        for target in (f"{second}/in", "top", first, f"{second}/again"):
            source = next(p for p in (first, f"{second}/in", "top") if tree.exists(p))
            tree.files.rename(source.encode(), target.encode(), 0)
            assert below(tree.census(), target.encode()) == contents
        shown = tree.census()
        tree.reopen()
        assert not differences(shown, tree.census())
        assert not differences(shown, tree.kernel_census())


def test_an_exchange_swaps_directories_and_files(stack: Build) -> None:
    tree = stack({"d/f": b"f", "e/g": b"g", "file": b"x"})
    tree.files.rename(b"d", b"e", RENAME_EXCHANGE)
    assert (tree.names("d"), tree.names("e")) == (["g"], ["f"])
    tree.files.rename(b"d", b"file", RENAME_EXCHANGE)
    assert tree.read("d") == b"x"
    assert tree.read("file/g") == b"g"
    assert not differences(tree.census(), tree.kernel_census())


def test_a_directory_replaces_an_empty_one_that_hides_whiteouts(stack: Build) -> None:
    tree = stack({"empty/x": b"x", "d/f": b"f"})
    tree.files.unlink(b"empty/x")
    target = tree.node("empty")
    tree.files.rename(b"d", b"empty", 0)
    assert tree.names() == ["empty"]
    assert tree.names("empty") == ["f"]
    assert tree.tree.readdir(target) == []
    assert tree.tree.getattr(target).nlink == 0
    assert not differences(tree.census(), tree.kernel_census())


def test_a_move_to_the_place_of_a_removed_lower_directory_shows_none_of_it(stack: Build) -> None:
    tree = stack({"d/f": b"f", "gone/x": b"x"})
    tree.files.unlink(b"gone/x")
    tree.files.rmdir(b"gone")
    tree.files.rename(b"d", b"gone", 0)
    assert tree.names() == ["gone"]
    assert tree.names("gone") == ["f"]
    tree.files.mkdir(b"d", 0o755)
    assert tree.names("d") == []
    assert not differences(tree.census(), tree.kernel_census())


def test_a_file_that_was_replaced_stays_usable_while_it_is_known(stack: Build) -> None:
    tree = stack({"lower": b"lower", "new": b"new"})
    tree.files.create(b"old", 0o644, b"old")
    replaced, lower = tree.node("old"), tree.node("lower")
    tree.files.rename(b"new", b"old", 0)
    tree.files.rename(b"old", b"lower", 0)
    for node, size in ((replaced, 3), (lower, 5)):
        attributes = tree.tree.getattr(node)
        assert (attributes.nlink, attributes.size) == (0, size)
    assert tree.read("lower") == b"new"
    tree.files.forget()
    assert tree.leftovers() == []


def test_a_chain_of_moves_over_layers_that_were_committed_is_followed(stack: Build) -> None:
    tree = stack({"a/b/f": b"f", "a/g": b"g"})
    tree.files.rename(b"a/b", b"b", 0)
    tree.files.rename(b"a", b"c", 0)
    shown = tree.census()
    tree.tree.settle()
    tree.files.forget()
    next_one = stack({"x": b""})
    next_one.tree.close()
    next_one.lowers = [tree.upper, *tree.lowers]
    next_one.open()
    assert not differences(shown, next_one.census())
    next_one.files.rename(b"b", b"c/b", 0)
    next_one.files.rename(b"c", b"a", 0)
    assert next_one.read("a/b/f") == b"f"
    assert not differences(next_one.census(), next_one.kernel_census())


@pytest.mark.parametrize(
    ("old", "new", "number"),
    [
        (b"d", b"d/s/in", errno.EINVAL),
        (b"d", b"f", errno.ENOTDIR),
        (b"f", b"d", errno.EISDIR),
        (b"e", b"d", errno.ENOTEMPTY),
        (b"no", b"d", errno.ENOENT),
    ],
)
def test_what_rename_refuses_copies_nothing_up(
    stack: Build, old: bytes, new: bytes, number: int
) -> None:
    tree = stack({"d/s/x": b"", "e/y": b"", "f": b""}, {"no": WHITEOUT})
    with pytest.raises(OSError) as caught:
        tree.files.rename(old, new, 0)
    assert caught.value.errno == number
    assert list(tree.upper.iterdir()) == []
