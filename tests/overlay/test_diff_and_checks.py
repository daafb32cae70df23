"""What a layer changes, told from the layer; what a file system must offer."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from snapfs.overlay import check_upper, diff
from tests.overlay.conftest import Stack
from tests.support.overlay.kernel import mount, tmpfs, unmount
from tests.support.overlay.layers import make_layer

_REMOUNT, _RDONLY = 32, 1

Build = Callable[..., Stack]
pytestmark = pytest.mark.root


def changes(tree: Stack) -> list[tuple[str, str]]:
    tree.tree.settle()
    found = diff.changes(tree.upper, tree.lowers)
    return sorted((change.path.decode(), change.kind) for change in found)


def test_a_layer_without_changes_says_nothing(stack: Build) -> None:
    tree = stack({"d/f": b"f"})
    assert changes(tree) == []


def test_added_changed_and_deleted_paths(stack: Build) -> None:
    tree = stack({"d/s/f": b"f", "d/g": b"g", "e/h": b"h", "e/i": b"i"}, {"d/low": b""})
    tree.files.write(b"d/s/f", 0, b"F")
    tree.files.unlink(b"d/low")
    tree.files.mkdir(b"n", 0o755)
    tree.files.create(b"n/new", 0o644, b"")
    tree.files.chmod(b"e", 0o700)
    tree.files.unlink(b"e/h")
    assert changes(tree) == [
        ("d/low", "deleted"),
        ("d/s/f", "changed"),
        ("e", "changed"),
        ("e/h", "deleted"),
        ("n", "added"),
        ("n/new", "added"),
    ]


def test_a_moved_directory_is_deleted_and_added_with_all_in_it(stack: Build) -> None:
    tree = stack({"d/s/f": b"f"})
    tree.files.rename(b"d", b"e", 0)
    assert changes(tree) == [
        ("d", "deleted"),
        ("e", "added"),
        ("e/s", "added"),
        ("e/s/f", "added"),
    ]


def test_a_replaced_directory_lists_what_is_gone_and_what_is_new(stack: Build) -> None:
    tree = stack({"d/a": b"a", "d/b": b"b", "f": b"f", "g/x": b"x"})
    for name in (b"d/a", b"d/b"):
        tree.files.unlink(name)
    tree.files.rmdir(b"d")
    tree.files.mkdir(b"d", 0o755)
    tree.files.create(b"d/b", 0o644, b"new")
    tree.files.unlink(b"f")
    tree.files.mkdir(b"f", 0o755)
    tree.files.create(b"f/in", 0o644, b"")
    tree.files.unlink(b"g/x")
    tree.files.rmdir(b"g")
    tree.files.create(b"g", 0o644, b"")
    assert changes(tree) == [
        ("d/a", "deleted"),
        ("d/b", "changed"),
        ("f", "changed"),
        ("f/in", "added"),
        ("g", "changed"),
    ]


def test_everything_in_a_base_layer_is_added(tmp_path: Path) -> None:
    layer = make_layer(tmp_path / "l", {"a/b": b"", "c": b""})
    found = [(change.kind, change.path) for change in diff.changes(layer, [])]
    assert found == [("added", b"a"), ("added", b"c"), ("added", b"a/b")]


def test_ordinary_directories_pass_the_check_and_are_left_clean(tmp_path: Path) -> None:
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    check_upper(tmp_path / "upper", tmp_path / "work")
    assert os.listdir(tmp_path / "work") == os.listdir(tmp_path / "upper") == []


def test_upper_and_work_on_two_file_systems_are_refused(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "one") as one:
        with pytest.raises(OSError, match="put both on one") as caught:
            check_upper(tmp_path, one)
        assert caught.value.errno == errno.EXDEV


def test_a_read_only_file_system_is_named_with_what_cannot_be_done(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "one") as one:
        mount("tmpfs", one, "", _REMOUNT | _RDONLY)
        with pytest.raises(OSError, match=f"cannot make files in {one}: Read-only") as caught:
            check_upper(one, one)
        assert caught.value.errno == errno.EROFS


def test_a_file_system_without_trusted_attributes_is_refused_by_name(tmp_path: Path) -> None:
    target = tmp_path / "ramfs"
    target.mkdir()
    mount("ramfs", target)
    try:
        with pytest.raises(OSError, match=r"takes no trusted\.\* attributes.*ext4, xfs"):
            check_upper(target, target)
        assert os.listdir(target) == []
    finally:
        unmount(target)
