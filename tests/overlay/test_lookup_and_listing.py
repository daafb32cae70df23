"""How layers are merged: whiteouts, opaque directories, redirects, many layers."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from snapfs.overlay import Tree, TreeSpec
from tests.overlay.conftest import Stack
from tests.support.overlay.census import differences, of_mount, of_tree
from tests.support.overlay.kernel import overlay
from tests.support.overlay.layers import (
    OPAQUE,
    WHITEOUT,
    Dir,
    File,
    Link,
    make_layer,
    redirect,
)

Build = Callable[..., Stack]
pytestmark = pytest.mark.root


def test_names_of_all_layers_are_merged_and_the_topmost_file_wins(stack: Build) -> None:
    tree = stack({"d/a": b"new", "d/b": b"b"}, {"d/a": b"old", "d/c": b"c", "e": b"e"})
    assert tree.names() == ["d", "e"]
    assert tree.names("d") == ["a", "b", "c"]
    assert tree.read("d/a") == b"new"
    assert tree.read("d/c") == b"c"


def test_a_whiteout_hides_a_name_of_deeper_layers_only(stack: Build) -> None:
    tree = stack({"x": b"again"}, {"x": WHITEOUT, "d/y": WHITEOUT}, {"x": b"first", "d/y": b"y"})
    assert tree.read("x") == b"again"
    assert tree.names("d") == []
    assert not tree.exists("d/y")


def test_an_opaque_directory_ends_the_stack(stack: Build) -> None:
    tree = stack({"d/a": b"a"}, {"d": OPAQUE, "d/b": b"b"}, {"d/c": b"c"})
    assert tree.names("d") == ["a", "b"]


def test_a_file_between_directories_ends_the_stack(stack: Build) -> None:
    tree = stack({"d/a": b"a"}, {"d": b"file"}, {"d/c": b"c"})
    assert tree.names("d") == ["a"]


def named_whiteouts(base: Path, *layers: dict[str, object]) -> Tree:
    """A tree without an upper layer whose layers are as they were in archives."""
    lowers = tuple(make_layer(base / str(number), it) for number, it in enumerate(layers))
    return Tree(TreeSpec(7, lowers, dot_whiteouts=True))


def test_whiteouts_with_names_hide_what_layers_below_have(tmp_path: Path) -> None:
    tree = named_whiteouts(
        tmp_path,
        {".wh.gone": b"", "d/.wh.a": b"", "d/.wh.never": b"", "e/.wh..wh..opq": b"", "e/new": b""},
        {"gone": b"", "d/a": b"", "d/b": b"", "e/old": b"", "f/.wh..wh.plnk": b""},
    )
    assert sorted(of_tree(tree)) == [b"", b"d", b"d/b", b"e", b"e/new", b"f"]


def test_a_whiteout_with_a_name_leaves_what_its_own_layer_has(tmp_path: Path) -> None:
    tree = named_whiteouts(
        tmp_path,
        {"x": b"", ".wh.x": b"", "d/new": b"", ".wh.d": b""},
        {"x": b"", "d/old": b""},
        {"d/older": b""},
    )
    assert sorted(of_tree(tree)) == [b"", b"d", b"d/new", b"x"]


def test_redirects_stop_at_whiteouts_with_names(tmp_path: Path) -> None:
    tree = named_whiteouts(
        tmp_path,
        {"r": redirect(b"old"), "a": redirect(b"/up/old"), "r/top": b"", "a/top": b""},
        {"old/new": b"", ".wh.old": b"", "up/old/.wh..wh..opq": b"", "up/old/mid": b""},
        {"old/low": b"", "up/old/low": b""},
    )
    found = set(of_tree(tree))
    assert {b"r/top", b"r/new", b"a/top", b"a/mid"} <= found
    assert not found & {b"r/low", b"a/low"}


def test_an_opaque_root_hides_all_layers_below(tmp_path: Path) -> None:
    tree = named_whiteouts(tmp_path, {".wh..wh..opq": b"", "x": b""}, {"y": b""}, {"z": b""})
    assert sorted(of_tree(tree)) == [b"", b"x"]


def test_names_that_look_like_whiteouts_are_files_where_nothing_else_is_said(stack: Build) -> None:
    tree = stack({".wh.x": b"file"}, {"x": b"x"})
    assert tree.names() == [".wh.x", "x"]


def test_attribute_whiteouts_of_newer_kernels_hide_names(stack: Build) -> None:
    hidden = File(xattrs={"trusted.overlay.whiteout": b""})
    marked = Dir(xattrs={"trusted.overlay.opaque": b"x"})
    layers = (
        {"d": marked, "d/a": hidden, "d/empty": b"", "d/sub": b""},
        {"d/a": b"a", "d/b": b"b", "d/sub/x": b"x"},
    )
    tree = stack(*layers, view=True)
    assert tree.names("d") == ["b", "empty", "sub"]
    with overlay(tree.base / "kernel", tree.lowers) as mounted:
        assert not differences(of_mount(mounted), tree.census())


REDIRECTED = {
    "relative": (
        {"new": redirect(b"old"), "new/top": b"1"},
        {"old/middle": b"2"},
        {"old/bottom": b"3", "new/hidden": b"4"},
    ),
    "absolute": (
        {"x/new": redirect(b"/a/b/old")},
        {"a/b/old/middle": b"2"},
        {"a/b/old/bottom": b"3"},
    ),
    "stacked": (
        {"c": redirect(b"b")},
        {"b": redirect(b"/deep/a"), "b/second": b"2"},
        {"deep/a/third": b"3"},
        {"deep/a/fourth": b"4"},
    ),
    "a parent on the way is redirected in a lower layer": (
        {"n": redirect(b"/p/q/r")},
        {"p": redirect(b"/old"), "p/one": b"1"},
        {"old/q/r/two": b"2"},
        {"old/q": redirect(b"/far"), "far/q/r/three": b"3"},
        {"far/r/four": b"4", "old/q/r/five": b"5"},
    ),
    "an absolute redirect goes on below an opaque parent": (
        {"o": OPAQUE, "o/d": redirect(b"/other"), "o/plain/x": b"x"},
        {"other/one": b"1", "o/d/not": b"", "o/plain/not": b""},
        {"other/two": b"2"},
    ),
    "a whiteout on the path ends it": (
        {"n": redirect(b"/p/q")},
        {"p/q/one": b"1"},
        {"p": WHITEOUT},
        {"p/q/two": b"2"},
    ),
    "an opaque directory on the path ends it": (
        {"n": redirect(b"/p/q")},
        {"p/q/one": b"1"},
        {"p": OPAQUE, "p/q/two": b"2"},
        {"p/q/three": b"3"},
    ),
    "a file on the path ends it": (
        {"n": redirect(b"/p/q")},
        {"p/q/one": b"1"},
        {"p": b"file"},
        {"p/q/three": b"3"},
    ),
    "a target that is nowhere": ({"n": redirect(b"/no/such"), "n/x": b"x"}, {"n/y": b"y"}),
    "redirects of two levels": (
        {"m": redirect(b"a"), "m/n": redirect(b"b"), "m/n/0": b""},
        {"a/b/1": b"", "a": redirect(b"/z"), "a/b": redirect(b"c")},
        {"z/c/2": b"", "z/b/not": b"", "a/b/not": b""},
    ),
}


@pytest.mark.parametrize("layers", REDIRECTED.values(), ids=REDIRECTED.keys())
def test_redirects_are_followed_as_the_kernel_follows_them(
    stack: Build, layers: tuple[dict[str, object], ...]
) -> None:
    tree = stack(*layers, {"bottom": b""}, view=True)
    with overlay(tree.base / "kernel", tree.lowers) as mounted:
        assert not differences(of_mount(mounted), tree.census())


def test_an_invalid_redirect_is_an_error_that_names_it(stack: Build) -> None:
    tree = stack({"n": redirect(b"a/b")}, {"n/x": b"", "a/b/y": b""})
    with pytest.raises(OSError, match="invalid redirect 'a/b'") as caught:
        tree.node("n")
    assert caught.value.errno == errno.EINVAL


def test_five_hundred_layers_are_merged_as_by_the_kernel(tmp_path: Path) -> None:
    lowers = []
    for number in range(500):
        content: dict[str, object] = {f"d/f{number:03}": b"%d" % number, "d/same": b"%d" % number}
        if number % 50 == 10:
            content[f"d/f{number + 20:03}"] = WHITEOUT
        lowers.append(make_layer(tmp_path / str(number), content))
    tree = Tree(TreeSpec(1, tuple(lowers)))
    with overlay(tmp_path / "kernel", lowers, options="redirect_dir=follow") as mounted:
        assert not differences(of_mount(mounted), of_tree(tree))
    tree.close()


def test_once_listed_names_are_found_without_asking_the_layers(tmp_path: Path) -> None:
    lowers = [make_layer(tmp_path / str(n), {f"d/f{n}": b""}) for n in range(50)]
    tree = Tree(TreeSpec(1, tuple(lowers)))
    directory = tree.lookup(tree.root, b"d")
    tree.readdir(directory)
    for lower in lowers:
        (lower / "d").rename(lower / "gone")
    for number in range(50):
        assert tree.lookup(directory, b"f%d" % number).name == b"f%d" % number
        with pytest.raises(FileNotFoundError):
            tree.lookup(directory, b"no%d" % number)
    tree.close()


def test_links_and_attributes_come_from_the_topmost_layer(stack: Build) -> None:
    tree = stack({"d": Dir(0o700, 1, 2), "l": Link("up")}, {"d": Dir(0o755), "l": Link("down")})
    attributes = tree.tree.getattr(tree.node("d"))
    assert (attributes.mode & 0o7777, attributes.uid, attributes.gid) == (0o700, 1, 2)
    assert tree.tree.readlink(tree.node("l")) == b"up"


def test_a_view_refuses_every_change(stack: Build) -> None:
    tree = stack({"d/a": b"a"}, view=True)
    who = {"uid": 0, "gid": 0, "umask": 0}
    directory, node = tree.node("d"), tree.node("d/a")
    changes: list[Callable[[], object]] = [
        lambda: tree.tree.mkdir(directory, b"n", 0o755, **who),
        lambda: tree.tree.create(directory, b"n", 0o644, os.O_RDWR, **who),
        lambda: tree.tree.mknod(directory, b"n", 0o100644, 0, **who),
        lambda: tree.tree.symlink(directory, b"n", b"t", uid=0, gid=0),
        lambda: tree.tree.link(node, directory, b"n"),
        lambda: tree.tree.unlink(directory, b"a"),
        lambda: tree.tree.rmdir(tree.tree.root, b"d"),
        lambda: tree.tree.rename(directory, b"a", directory, b"b"),
        lambda: tree.tree.open(node, os.O_RDWR),
        lambda: tree.tree.open(node, os.O_TRUNC),
        lambda: tree.tree.setxattr(node, b"user.x", b""),
        lambda: tree.tree.removexattr(node, b"user.x"),
        lambda: tree.files.chmod(b"d/a", 0o600),
        lambda: tree.tree.start_copy_up(node),
    ]
    for change in changes:
        with pytest.raises(OSError, match="Read-only") as caught:
            change()
        assert caught.value.errno == errno.EROFS
    assert tree.read("d/a") == b"a"


def test_a_tree_made_read_only_refuses_changes_and_still_settles(stack: Build) -> None:
    tree = stack({"a": b"a"})
    tree.tree.readonly = True
    with pytest.raises(OSError, match="Read-only"):
        tree.files.unlink(b"a")
    tree.tree.settle()


def test_the_data_of_metadata_only_copies_is_found_as_by_the_kernel(tmp_path: Path) -> None:
    big = os.urandom(70_000)
    base = make_layer(tmp_path / "base", {"f": big, "d/g": big[::-1], "d/h": big, "s/i": big})
    lowers = [base]
    options = "metacopy=on,redirect_dir=on,index=off,xino=off"
    for number in range(2):
        layer = tmp_path / f"l{number}"
        layer.mkdir()
        work = tmp_path / f"w{number}"
        with overlay(tmp_path / "m", lowers, layer, work, options=options) as mounted:
            (mounted / "f").chmod(0o600 + number)
            (mounted / f"{'d' * (number + 1)}/g").chmod(0o640 + number)
            (mounted / ("d" * (number + 1))).rename(mounted / ("d" * (number + 2)))
            (mounted / ("s/i", "top")[number]).rename(mounted / ("top", "s/j")[number])
        lowers.insert(0, layer)
        assert "trusted.overlay.metacopy" in os.listxattr(layer / "f")
    (tmp_path / "upper").mkdir()
    (tmp_path / "work").mkdir()
    with overlay(tmp_path / "m", lowers, options=options) as mounted:
        expected = of_mount(mounted)
    view = Tree(TreeSpec(1, tuple(lowers)))
    assert not differences(expected, of_tree(view))
    view.close()
    tree = Tree(TreeSpec(1, tuple(lowers), tmp_path / "upper", tmp_path / "work"))
    os.close(tree.open(tree.lookup(tree.root, b"f"), os.O_RDWR))
    assert (tmp_path / "upper/f").read_bytes() == big
    assert "trusted.overlay.metacopy" not in os.listxattr(tmp_path / "upper/f")
    tree.close()


def test_a_metadata_only_copy_is_known_although_its_attributes_take_a_block(tmp_path: Path) -> None:
    base = make_layer(tmp_path / "base", {"f": b"12345", "g": b"67890"})
    for name in ("f", "g"):
        os.setxattr(base / name, "user.long", b"x" * 2000)
    for name in ("layer", "w", "upper", "work"):
        (tmp_path / name).mkdir()
    options = "metacopy=on,redirect_dir=on,index=off,xino=off"
    layers = tmp_path / "layer", tmp_path / "w"
    with overlay(tmp_path / "m", [base], *layers, options=options) as mounted:
        (mounted / "f").chmod(0o600)
        (mounted / "g").chmod(0o600)
    real = (tmp_path / "layer" / "f").stat()
    assert "trusted.overlay.metacopy" in os.listxattr(tmp_path / "layer" / "f")
    if not real.st_blocks:
        pytest.skip("attributes take no blocks on this file system")
    lowers = (tmp_path / "layer", base)
    tree = Tree(TreeSpec(1, lowers, tmp_path / "upper", tmp_path / "work"))
    with open(tree.open(tree.lookup(tree.root, b"f"), os.O_RDONLY), "rb") as file:
        assert file.read() == b"12345"
    os.close(tree.open(tree.lookup(tree.root, b"g"), os.O_RDWR))
    assert (tmp_path / "upper" / "g").read_bytes() == b"67890"
    tree.close()


@pytest.mark.parametrize("target", ["/../secret", "/a/../../secret", "..", ".", "/.", "/a//b"])
def test_a_redirect_never_leads_out_of_its_layer(tmp_path: Path, target: str) -> None:
    make_layer(tmp_path / "secret", {"key": b"secret"})
    base = make_layer(tmp_path / "base", {"a/b": b""})
    top = make_layer(tmp_path / "top", {"a/x/y": b""})
    os.setxattr(top / "a" / "x", "trusted.overlay.redirect", target.encode())
    tree = Tree(TreeSpec(1, (top, base)))
    with pytest.raises(OSError, match="invalid redirect"):
        tree.readdir(tree.lookup(tree.lookup(tree.root, b"a"), b"x"))
    tree.close()
