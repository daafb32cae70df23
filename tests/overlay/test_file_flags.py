"""Immutable and append-only files: what is refused is what the kernel's overlay refuses."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapfs.overlay import RENAME_EXCHANGE, SetAttr, Tree, TreeSpec, xattrs
from snapfs.overlay.filecalls import (
    FS_APPEND_FL,
    FS_CASEFOLD_FL,
    FS_IMMUTABLE_FL,
    FS_NOATIME_FL,
    FS_NODUMP_FL,
    FS_PROJINHERIT_FL,
    FS_XFLAG_APPEND,
    FS_XFLAG_IMMUTABLE,
    get_flags,
    set_flags,
)
from tests.overlay.conftest import WHO, Stack
from tests.support.overlay.files import Files, OnMount, OnTree
from tests.support.overlay.kernel import overlay
from tests.support.overlay.layers import make_layer
from tests.support.overlay.operations import outcome

Build = Callable[..., Stack]
pytestmark = pytest.mark.root

LAYER = {"d/f": b"content", "d/g": b"other", "e/x": b"x", "h": b"h"}
OPERATIONS: dict[str, Callable[[Files], object]] = {
    "write": lambda f: f.write(b"d/f", 0, b"new"),
    "rewrite": lambda f: f.rewrite(b"d/f", b"new"),
    "truncate": lambda f: f.truncate(b"d/f", 1),
    "chmod": lambda f: f.chmod(b"d/f", 0o600),
    "chown": lambda f: f.chown(b"d/f", 1, 1),
    "setxattr": lambda f: f.setxattr(b"d/f", b"user.a", b"1", 0),
    "link": lambda f: f.link(b"d/f", b"e/l"),
    "unlink": lambda f: f.unlink(b"d/f"),
    "rename": lambda f: f.rename(b"d/f", b"e/f", 0),
    "rename over it": lambda f: f.rename(b"h", b"d/f", 0),
    "exchange": lambda f: f.rename(b"h", b"d/f", RENAME_EXCHANGE),
    "create beside it": lambda f: f.create(b"d/n", 0o644, b""),
    "mkdir beside it": lambda f: f.mkdir(b"d/n", 0o755),
    "symlink beside it": lambda f: f.symlink(b"to", b"d/n"),
    "rename into its directory": lambda f: f.rename(b"h", b"d/h", 0),
    "unlink beside it": lambda f: f.unlink(b"d/g"),
    "rmdir of its directory": lambda f: f.rmdir(b"d"),
    "rename of its directory": lambda f: f.rename(b"d", b"e/d", 0),
    "chmod of its directory": lambda f: f.chmod(b"d", 0o700),
}


def flags_of(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        return get_flags(fd)
    finally:
        os.close(fd)


def chattr(path: Path, flags: int) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        set_flags(fd, get_flags(fd) | flags)
    finally:
        os.close(fd)


@contextmanager
def protected(path: Path, flags: int) -> Iterator[None]:
    """Give a lower file flags of its own, and take them away before it is deleted."""
    chattr(path, flags)
    try:
        yield
    finally:
        subprocess.run(["chattr", "-ia", path], check=True)


@pytest.mark.parametrize("flags", [FS_IMMUTABLE_FL, FS_APPEND_FL], ids=["immutable", "append"])
@pytest.mark.parametrize("where", ["lower", "copied", "upper"])
@pytest.mark.parametrize("what", ["d/f", "d"])
def test_protected_files_refuse_what_overlayfs_refuses(
    tmp_path: Path, flags: int, where: str, what: str
) -> None:
    for number, (name, operate) in enumerate(OPERATIONS.items()):
        base = tmp_path / f"{number}"
        base.mkdir()
        expected, got = both_outcomes(base, flags, where, what, operate)
        assert got == expected, f"{name}: {got}, overlayfs says {expected}"


def outcome_on(operate: Callable[[Files], object], files: Files) -> str:
    return outcome(lambda: operate(files))


def both_outcomes(
    base: Path, flags: int, where: str, what: str, operate: Callable[[Files], object]
) -> tuple[str, str]:
    lower = make_layer(base / "lower", {} if where == "upper" else LAYER)
    for name in ("upper", "work", "own-upper", "own-work"):
        make_layer(base / name, LAYER if where == "upper" and "upper" in name else {})
    with overlay(base / "reference", [lower], base / "upper", base / "work") as reference:
        tree = Tree(TreeSpec(7, (lower,), base / "own-upper", base / "own-work"))
        files = OnTree(tree)
        if where == "lower":
            with protected(lower / what, flags):
                result = outcome_on(operate, OnMount(reference)), outcome_on(operate, files)
        else:
            chattr(reference / what, flags)
            node = files.node(what.encode())
            tree.setflags(node, tree.getflags(node) | flags)
            result = outcome_on(operate, OnMount(reference)), outcome_on(operate, files)
        files.forget()
        tree.close()
    return result


def test_flags_are_seen_where_they_were_set_and_can_be_taken_back(stack: Build) -> None:
    tree = stack(LAYER)
    node = tree.node("d/f")
    before = tree.tree.getflags(node)
    tree.tree.setflags(node, before | FS_IMMUTABLE_FL | FS_NODUMP_FL)
    assert tree.tree.getflags(tree.node("d/f")) == before | FS_IMMUTABLE_FL | FS_NODUMP_FL
    del node
    tree.reopen()
    node = tree.node("d/f")
    assert tree.tree.getflags(node) == before | FS_IMMUTABLE_FL | FS_NODUMP_FL
    tree.tree.setflags(node, before)
    tree.files.unlink(b"d/f")
    assert not tree.exists("d/f")


def test_no_file_of_a_layer_is_really_immutable(stack: Build) -> None:
    tree = stack(LAYER)
    for path in ("d/f", "d"):
        tree.tree.setflags(tree.node(path), FS_IMMUTABLE_FL | FS_APPEND_FL)
        assert not flags_of(tree.upper / path) & (FS_IMMUTABLE_FL | FS_APPEND_FL)
        assert os.getxattr(tree.upper / path, xattrs.PROTATTR) == b"ai"
        assert not tree.tree.listxattr(tree.node(path))


def test_kernel_overlayfs_honours_the_flags_of_an_upper_layer(stack: Build) -> None:
    tree = stack(LAYER)
    tree.tree.setflags(tree.node("d/f"), FS_IMMUTABLE_FL)
    tree.tree.close()
    with overlay(tree.base / "kernel", tree.lowers, tree.upper, tree.base / "kwork") as mounted:
        assert flags_of(mounted / "d" / "f") & FS_IMMUTABLE_FL
        with pytest.raises(PermissionError):
            (mounted / "d" / "f").unlink()
    tree.open()


def test_flags_stay_in_force_in_what_is_built_on_a_layer(stack: Build) -> None:
    tree = stack(LAYER)
    tree.tree.setflags(tree.node("d/f"), FS_APPEND_FL)
    above = stack(tree.upper, *tree.lowers)
    with pytest.raises(PermissionError):
        above.files.unlink(b"d/f")
    fd = above.tree.open(above.node("d/f"), os.O_WRONLY | os.O_APPEND)
    os.close(fd)
    assert above.node("d/f").up
    assert above.tree.getflags(above.node("d/f")) & FS_APPEND_FL
    with pytest.raises(PermissionError):
        above.tree.open(above.node("d/f"), os.O_WRONLY)


def test_a_copy_takes_the_other_flags_along_as_overlayfs_does(stack: Build) -> None:
    tree = stack(LAYER)
    chattr(tree.lowers[0] / "d" / "f", FS_NOATIME_FL)
    chattr(tree.lowers[0] / "d", FS_NOATIME_FL)
    tree.files.chmod(b"d/f", 0o600)
    assert flags_of(tree.upper / "d" / "f") & FS_NOATIME_FL
    assert flags_of(tree.upper / "d") & FS_NOATIME_FL


def test_times_of_an_append_only_file_may_be_set_and_of_an_immutable_one_not(stack: Build) -> None:
    tree = stack(LAYER)
    node = tree.node("d/f")
    tree.tree.setflags(node, FS_APPEND_FL)
    tree.tree.setattr(node, SetAttr(mtime_ns=1))
    tree.tree.setflags(node, FS_IMMUTABLE_FL)
    with pytest.raises(PermissionError):
        tree.tree.setattr(node, SetAttr(mtime_ns=2))


def test_fields_show_and_set_the_same_flags(stack: Build) -> None:
    tree = stack(LAYER)
    node = tree.node("d/f")
    fields = tree.tree.getfields(node)
    wanted = fields._replace(xflags=fields.xflags | FS_XFLAG_IMMUTABLE)
    tree.tree.setfields(node, wanted)
    assert tree.tree.getfields(node) == wanted
    assert tree.tree.getflags(node) & FS_IMMUTABLE_FL
    tree.tree.setfields(node, fields._replace(xflags=fields.xflags | FS_XFLAG_APPEND))
    assert tree.tree.getflags(node) & (FS_IMMUTABLE_FL | FS_APPEND_FL) == FS_APPEND_FL


def test_what_would_change_the_meaning_of_names_is_refused(stack: Build) -> None:
    tree = stack(LAYER)
    node = tree.node("d")
    for flag in (FS_CASEFOLD_FL, FS_PROJINHERIT_FL):
        with pytest.raises(OSError, match="not supported"):
            tree.tree.setflags(node, tree.tree.getflags(node) | flag)
    fields = tree.tree.getfields(node)
    with pytest.raises(OSError, match="not supported"):
        tree.tree.setfields(node, fields._replace(project=7))
    assert not node.up


def test_only_files_and_directories_have_flags(stack: Build) -> None:
    tree = stack({"d/f": b""})
    node = tree.tree.symlink(tree.tree.root, b"l", b"to", uid=0, gid=0)
    with pytest.raises(OSError, match="Inappropriate ioctl"):
        tree.tree.getflags(node)


def test_a_view_shows_flags_and_takes_none(stack: Build) -> None:
    tree = stack(LAYER, view=True)
    node = tree.node("d/f")
    flags = tree.tree.getflags(node)
    with pytest.raises(OSError, match="Read-only"):
        tree.tree.setflags(node, flags | FS_NODUMP_FL)


def test_a_new_file_in_an_immutable_directory_is_refused_without_a_name_too(stack: Build) -> None:
    tree = stack(LAYER)
    tree.tree.setflags(tree.node("d"), FS_IMMUTABLE_FL)
    node, fd = tree.tree.tmpfile(tree.node("e"), 0o600, os.O_RDWR, **WHO)
    os.close(fd)
    tree.inodes.remember(node)
    with pytest.raises(PermissionError):
        tree.tree.link(node, tree.node("d"), b"n")
    tree.inodes.forget(node.ino, 1)
