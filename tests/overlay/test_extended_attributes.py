"""Users' attributes pass through; the overlay's own are never seen and never changed by users."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial

import pytest

from tests.overlay.conftest import Stack
from tests.support.overlay.census import differences
from tests.support.overlay.layers import Dir, File, Link, redirect

Build = Callable[..., Stack]
pytestmark = pytest.mark.root


def errno_of(call: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:
        call()
    return caught.value.errno


def test_attributes_of_lower_and_upper_files_are_read_set_and_removed(stack: Build) -> None:
    tree = stack({"f": File(b"x", xattrs={"user.a": b"1"}), "d": Dir(xattrs={"trusted.b": b"2"})})
    assert tree.tree.listxattr(tree.node("f")) == [b"user.a"]
    assert tree.tree.getxattr(tree.node("d"), b"trusted.b") == b"2"
    tree.tree.setxattr(tree.node("f"), b"user.c", b"3")
    tree.tree.setxattr(tree.node("d"), b"security.e", b"4")
    tree.tree.removexattr(tree.node("f"), b"user.a")
    assert tree.tree.listxattr(tree.node("f")) == [b"user.c"]
    assert sorted(tree.tree.listxattr(tree.node("d"))) == [b"security.e", b"trusted.b"]


def test_create_and_replace_flags_and_missing_attributes(stack: Build) -> None:
    tree = stack({"f": File(b"x", xattrs={"user.a": b"1"})})
    node = tree.node("f")
    assert errno_of(lambda: tree.tree.getxattr(node, b"user.none")) == errno.ENODATA
    assert errno_of(lambda: tree.tree.removexattr(node, b"user.none")) == errno.ENODATA
    assert not node.up
    create, replace = os.XATTR_CREATE, os.XATTR_REPLACE
    assert errno_of(lambda: tree.tree.setxattr(node, b"user.a", b"", create)) == errno.EEXIST
    assert errno_of(lambda: tree.tree.setxattr(node, b"user.n", b"", replace)) == errno.ENODATA


def test_the_overlays_own_attributes_are_hidden(stack: Build) -> None:
    tree = stack({"n": redirect(b"o"), "f": b""}, {"o/x": b"", "g": b""})
    tree.files.write(b"g", 0, b"x")
    tree.files.rename(b"n", b"m", 0)
    for path in ("", "m", "f", "g"):
        node = tree.node(path)
        assert tree.tree.listxattr(node) == []
        for name in (b"redirect", b"opaque", b"snapfs.ino", b"snapfs.impure"):
            call = partial(tree.tree.getxattr, node, b"trusted.overlay." + name)
            assert errno_of(call) == errno.ENODATA


def test_a_users_overlay_attributes_are_kept_escaped_and_mean_nothing_to_us(stack: Build) -> None:
    tree = stack({"d/f": b"f", "e/g": b"g"})
    for name, value in ((b"opaque", b"y"), (b"redirect", b"/e"), (b"snapfs.ino", b"12")):
        tree.tree.setxattr(tree.node("d"), b"trusted.overlay." + name, value)
    stored = [name for name in os.listxattr(tree.upper / "d") if "overlay.overlay" in name]
    assert sorted(stored) == [
        "trusted.overlay.overlay.opaque",
        "trusted.overlay.overlay.redirect",
        "trusted.overlay.overlay.snapfs.ino",
    ]
    tree.reopen()
    assert tree.names("d") == ["f"]
    assert tree.tree.getxattr(tree.node("d"), b"trusted.overlay.opaque") == b"y"
    assert sorted(tree.tree.listxattr(tree.node("d")))[0] == b"trusted.overlay.opaque"
    assert not differences(tree.census(), tree.kernel_census())
    tree.tree.removexattr(tree.node("d"), b"trusted.overlay.opaque")
    assert b"trusted.overlay.opaque" not in tree.tree.listxattr(tree.node("d"))


def test_a_users_escaped_attributes_are_copied_up(stack: Build) -> None:
    escaped = {"trusted.overlay.overlay.opaque": b"y", "trusted.overlay.origin": b"zz"}
    tree = stack({"f": File(b"f", xattrs=escaped)})
    tree.files.write(b"f", 0, b"x")
    assert tree.tree.listxattr(tree.node("f")) == [b"trusted.overlay.opaque"]
    assert "trusted.overlay.origin" not in os.listxattr(tree.upper / "f")


def test_symbolic_links_have_no_user_attributes_and_are_not_followed(stack: Build) -> None:
    tree = stack({"l": Link("f"), "f": b""})
    node = tree.node("l")
    assert errno_of(lambda: tree.tree.setxattr(node, b"user.a", b"1")) == errno.EPERM
    assert not node.up
    tree.tree.setxattr(node, b"trusted.a", b"1")
    assert tree.tree.listxattr(node) == [b"trusted.a"]
    assert tree.tree.listxattr(tree.node("f")) == []


def test_chmod_and_acls_agree(stack: Build) -> None:
    access = bytes.fromhex(
        "02000000 01000600ffffffff 02000700e8030000 04000400ffffffff"
        "10000700ffffffff 20000000ffffffff"
    )
    tree = stack({"f": File(b"", 0o644)})
    node = tree.node("f")
    tree.tree.setxattr(node, b"system.posix_acl_access", access)
    assert tree.tree.getattr(node).mode & 0o777 == 0o670
    tree.files.chmod(b"f", 0o640)
    masked = tree.tree.getxattr(node, b"system.posix_acl_access")
    assert masked != access
    assert tree.tree.getattr(node).mode & 0o777 == 0o640
