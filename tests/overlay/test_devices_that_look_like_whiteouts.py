"""A user's 0:0 devices: what an overlayfs inside a container makes. They hide nothing in ours."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable

import pytest

from snapfs.overlay import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, Attributes
from snapfs.overlay.devices import STAND_IN
from snapfs.overlay.diff import changes
from tests.overlay.conftest import Stack

Build = Callable[..., Stack]
pytestmark = pytest.mark.root
WHO = {"uid": 3, "gid": 4, "umask": 0o22}
DEVICE = stat.S_IFCHR


def make(tree: Stack, path: str) -> None:
    parent, _, name = path.rpartition("/")
    tree.tree.mknod(tree.node(parent), name.encode(), DEVICE | 0o666, 0, **WHO)


def at(tree: Stack, path: str) -> Attributes:
    return tree.tree.getattr(tree.node(path))


def is_device(found: Attributes) -> bool:
    return stat.S_ISCHR(found.mode) and found.rdev == 0


def test_it_is_a_device_with_its_makers_owner_and_mode(stack: Build) -> None:
    tree = stack({"d/f": b"f"})
    make(tree, "d/w")
    for _ in range(2):
        assert at(tree, "d/w")[1:6] == (DEVICE | 0o644, 1, 3, 4, 0)
        assert tree.names("d") == ["f", "w"]
        assert tree.tree.listxattr(tree.node("d/w")) == []
        assert [it.type for it in tree.tree.readdir(tree.node("d")) if it.name == b"w"] == [DEVICE]
        tree.reopen()


def test_it_hides_nothing_in_the_layers_below_once_committed(stack: Build) -> None:
    """A whiteout of this name would; a removal of the device gives nothing back."""
    below = stack({"d/f": b"f"})
    make(below, "d/w")
    tree = stack(below.upper, below.lowers[0])
    assert is_device(at(tree, "d/w"))
    assert tree.names("d") == ["f", "w"]
    tree.files.unlink(b"d/w")
    assert tree.names("d") == ["f"]


def test_it_moves_is_linked_replaced_and_copied_up_as_a_device(stack: Build) -> None:
    below = stack({"d/f": b"f"})
    make(below, "w")
    tree = stack(below.upper, below.lowers[0])
    number = at(tree, "w").ino
    tree.files.chmod(b"w", 0o600)  # copies up
    tree.files.rename(b"w", b"d/moved", 0)
    tree.files.link(b"d/moved", b"linked")
    found = at(tree, "linked")
    assert is_device(found)
    assert (found.ino, found.nlink) == (number, 2)
    tree.files.rename(b"linked", b"d/f", 0)
    tree.reopen()
    assert is_device(at(tree, "d/f"))
    assert tree.names("") == ["d"]


def test_a_device_that_has_the_stand_ins_number_is_shown_as_it_is(stack: Build) -> None:
    tree = stack({"d/f": b"f"})
    tree.tree.mknod(tree.tree.root, b"odd", DEVICE | 0o600, STAND_IN, **WHO)
    assert at(tree, "odd").rdev == STAND_IN
    name = b"trusted.overlay.snapfs.device"
    tree.tree.setxattr(tree.node("odd"), name, b"0:0")
    assert at(tree, "odd").rdev == STAND_IN
    assert tree.tree.listxattr(tree.node("odd")) == [name]


@pytest.mark.parametrize("source", ["lower", "upper", "merged", "lower/deep"])
@pytest.mark.parametrize("target", [None, "other"])
def test_a_rename_can_leave_one_behind(stack: Build, source: str, target: str | None) -> None:
    tree = stack({"lower/deep": b"deep", "merged/f": b"f", "other": b"other"})
    tree.files.create(b"upper", 0o644, b"upper")
    tree.files.create(b"merged/g", 0o644, b"g")
    is_dir = source in ("lower", "merged")
    new = b"new" if target is None or is_dir else target.encode()
    tree.files.rename(source.encode(), new, RENAME_WHITEOUT)
    for _ in range(2):
        assert is_device(at(tree, source))
        assert stat.S_ISDIR(at(tree, new.decode()).mode) == is_dir
        tree.reopen()
    assert not tree.leftovers()


def test_renames_with_flags_that_exclude_each_other_are_refused(stack: Build) -> None:
    tree = stack({"a": b"a", "b": b"b"})
    for flags, number in (
        (RENAME_WHITEOUT | RENAME_EXCHANGE, errno.EINVAL),
        (RENAME_WHITEOUT | RENAME_NOREPLACE, errno.EEXIST),
        (8, errno.EINVAL),
    ):
        with pytest.raises(OSError) as caught:
            tree.files.rename(b"a", b"b", flags)
        assert caught.value.errno == number
    assert tree.names("") == ["a", "b"]


def test_changes_of_a_layer_show_it_as_an_entry_and_whiteouts_as_deletions(stack: Build) -> None:
    tree = stack({"gone": b"", "hidden": b""})
    tree.files.unlink(b"gone")
    make(tree, "device")
    tree.files.unlink(b"hidden")
    make(tree, "hidden")
    found = {(it.kind, it.path) for it in changes(tree.upper, tree.lowers)}
    assert found == {("deleted", b"gone"), ("added", b"device"), ("changed", b"hidden")}
