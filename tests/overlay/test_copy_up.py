"""Copy-up keeps everything but the place, is atomic, and leaves nothing behind when it fails."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from snapfs.overlay import SetAttr, Tree, TreeSpec, layer
from tests.overlay.conftest import WHO, Stack
from tests.support.overlay.census import differences
from tests.support.overlay.kernel import tmpfs
from tests.support.overlay.layers import Dir, File, Link, make_layer
from tests.support.overlay.operations import OLD_NS

Build = Callable[..., Stack]
pytestmark = pytest.mark.root
ACL = bytes.fromhex(
    "02000000 01000600ffffffff 02000700e8030000 04000400ffffffff 10000700ffffffff 20000000ffffffff"
)


def touch_up(tree: Stack, path: str) -> None:
    """Copy up without a change that shows."""
    job = tree.tree.start_copy_up(tree.node(path))
    job.run()
    tree.tree.finish_copy_up(job)


def test_owner_mode_times_and_attributes_stay(stack: Build) -> None:
    xattrs = {
        "user.a": b"1",
        "trusted.b": b"2",
        "security.capability": bytes.fromhex("0100000200040000000000000000000000000000"),
        "system.posix_acl_access": ACL,
    }
    file = File(b"content", 0o4675, 1000, 1001, xattrs)
    tree = stack({"d/e/f": file, "d": Dir(0o2751, 5, 6, {"user.d": b"d"}), "d/l": Link("t")})
    before = tree.census()
    times = tree.tree.getattr(tree.node("d/e/f"))
    touch_up(tree, "d/e/f")
    touch_up(tree, "d/l")
    after = tree.tree.getattr(tree.node("d/e/f"))
    assert (after.atime_ns, after.mtime_ns, after.ino) == (OLD_NS, OLD_NS, times.ino)
    assert not differences(before, tree.census())
    assert (tree.upper / "d/e/f").read_bytes() == b"content"
    assert not differences(before, tree.kernel_census())


def test_devices_fifos_and_sockets_are_copied(stack: Build) -> None:
    tree = stack({"d/x": b""})
    for name, mode in (("fifo", stat.S_IFIFO), ("sock", stat.S_IFSOCK), ("dev", stat.S_IFCHR)):
        os.mknod(tree.lowers[0] / name, mode | 0o640, 0x105 if name == "dev" else 0)
    tree.reopen()
    for name, mode in (("fifo", stat.S_IFIFO), ("sock", stat.S_IFSOCK), ("dev", stat.S_IFCHR)):
        touch_up(tree, name)
        real = os.lstat(tree.upper / name)
        assert (real.st_mode, real.st_rdev) == (mode | 0o640, 0x105 if name == "dev" else 0)


def test_copy_is_of_its_own_file_though_other_long_paths_are_walked_meanwhile(
    stack: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{way}aa/bbb/file" for way in range(8)]
    tree = stack({name: name.encode() for name in names})
    nodes = [tree.node(name) for name in names]
    monkeypatch.setattr(layer, "_LONG_BYTES", 6)
    monkeypatch.setattr(layer, "_STEPS_KEPT", 4)
    job = tree.tree.start_copy_up(nodes[0])
    for node in nodes[1:]:
        tree.tree.getattr(node)
    job.run()
    tree.tree.finish_copy_up(job)
    assert (tree.upper / names[0]).read_text() == names[0]
    counts = []
    for _ in range(3):
        tree.tree.abort_copy_up(tree.tree.start_copy_up(nodes[1]))
        counts.append(len(os.listdir("/proc/self/fd")))
    assert counts[0] == counts[2]


def test_holes_stay_holes(stack: Build) -> None:
    tree = stack({"d/x": b""})
    size = 64 << 20
    with open(tree.lowers[0] / "sparse", "wb") as file:
        file.seek(size // 2)
        file.write(b"middle")
        file.truncate(size)
    touch_up(tree, "sparse")
    real = os.stat(tree.upper / "sparse")
    assert real.st_size == size
    assert real.st_blocks * 512 < 1 << 20
    with open(tree.upper / "sparse", "rb") as file:
        file.seek(size // 2)
        assert file.read(8) == b"middle\0\0"


def test_content_is_cloned_where_the_file_system_can(tmp_path: Path, reflink_fs: Path) -> None:
    lower = make_layer(reflink_fs / "lower", {"big": os.urandom(1 << 20)})
    (reflink_fs / "upper").mkdir()
    (reflink_fs / "work").mkdir()
    tree = Tree(TreeSpec(1, (lower,), reflink_fs / "upper", reflink_fs / "work"))
    os.sync()
    free = os.statvfs(reflink_fs).f_bfree
    os.close(tree.open(tree.lookup(tree.root, b"big"), os.O_RDWR))
    os.sync()
    used = (free - os.statvfs(reflink_fs).f_bfree) * os.statvfs(reflink_fs).f_frsize
    assert used < 1 << 19
    assert (reflink_fs / "upper/big").read_bytes() == (lower / "big").read_bytes()
    tree.close()


def test_a_clone_is_no_longer_than_its_file(tmp_path: Path, reflink_fs: Path) -> None:
    content = os.urandom(100_000)
    base = make_layer(reflink_fs / "base", {"f": content})
    layer = make_layer(reflink_fs / "layer", {"f": b""})
    os.truncate(layer / "f", 50_000)
    os.setxattr(layer / "f", "trusted.overlay.metacopy", b"")
    for name in ("upper", "work"):
        (reflink_fs / name).mkdir()
    tree = Tree(TreeSpec(1, (layer, base), reflink_fs / "upper", reflink_fs / "work"))
    os.close(tree.open(tree.lookup(tree.root, b"f"), os.O_RDWR))
    assert (reflink_fs / "upper/f").read_bytes() == content[:50_000]
    tree.close()


def test_a_truncating_open_copies_no_data(stack: Build) -> None:
    tree = stack({"f": os.urandom(4096)})
    node = tree.node("f")
    fd = tree.tree.open(node, os.O_WRONLY | os.O_TRUNC)
    os.close(fd)
    attributes = tree.tree.getattr(node)
    assert attributes.size == 0
    assert attributes.mtime_ns > OLD_NS


def test_cutting_a_lower_file_to_nothing_copies_no_data(stack: Build) -> None:
    tree = stack({"f": b"x" * 4096})
    node = tree.node("f")
    tree.tree.setattr(node, SetAttr(size=0))
    assert tree.tree.getattr(node).size == 0
    assert tree.tree.getattr(node).mtime_ns > OLD_NS


def test_parents_are_copied_up_as_they_are(stack: Build) -> None:
    tree = stack({"a": Dir(0o750, 3, 4), "a/b": Dir(0o1777, 5, 6), "a/b/f": b"x", "a/g": b"g"})
    before = tree.census()
    touch_up(tree, "a/b/f")
    assert not differences(before, tree.census())
    assert not (tree.upper / "a/g").exists()


def test_the_view_does_not_change_until_the_job_is_finished(stack: Build) -> None:
    tree = stack({"d/f": b"lower"})
    node = tree.node("d/f")
    job = tree.tree.start_copy_up(node)
    thread = threading.Thread(target=job.run)
    thread.start()
    thread.join()
    assert not node.up
    assert list(tree.upper.iterdir()) == []
    tree.tree.finish_copy_up(job)
    assert node.up
    assert (tree.upper / "d/f").read_bytes() == b"lower"
    assert tree.leftovers() == []


def test_an_aborted_job_leaves_nothing(stack: Build) -> None:
    tree = stack({"f": b"lower"})
    job = tree.tree.start_copy_up(tree.node("f"))
    job.run()
    tree.tree.abort_copy_up(job)
    assert tree.leftovers() == []
    assert list(tree.upper.iterdir()) == []


def test_a_second_job_for_a_node_changes_nothing(stack: Build) -> None:
    tree = stack({"f": b"lower"})
    node = tree.node("f")
    first, second = tree.tree.start_copy_up(node), tree.tree.start_copy_up(node)
    first.run()
    second.run()
    tree.tree.finish_copy_up(first)
    tree.files.write(b"f", 0, b"UP")
    tree.tree.finish_copy_up(second)
    assert tree.read("f") == b"UPwer"
    assert tree.leftovers() == []


def test_the_file_may_be_renamed_or_removed_while_a_job_runs(stack: Build) -> None:
    tree = stack({"d/f": b"lower", "d/g": b"lower"})
    node, gone = tree.node("d/f"), tree.node("d/g")
    jobs = [tree.tree.start_copy_up(node), tree.tree.start_copy_up(gone)]
    for job in jobs:
        job.run()
    tree.files.rename(b"d", b"e", 0)
    tree.files.unlink(b"e/g")
    for job in jobs:
        tree.tree.finish_copy_up(job)
    assert tree.names("e") == ["f"]
    assert (tree.upper / "e/f").read_bytes() == b"lower"
    fd = tree.tree.open(gone, os.O_RDWR)
    os.write(fd, b"still here")
    os.close(fd)
    assert tree.tree.getattr(gone).size == 10
    assert tree.tree.getattr(gone).nlink == 0
    tree.files.forget()
    assert tree.leftovers() == []


def test_a_copy_up_that_finds_no_room_leaves_all_as_it_was(tmp_path: Path) -> None:
    lower = make_layer(tmp_path / "lower", {"d/big": os.urandom(8 << 20), "d/h": b""})
    os.link(lower / "d/big", lower / "d/same")
    with tmpfs(tmp_path / "small", "size=2m") as small:
        (small / "upper").mkdir()
        (small / "work").mkdir()
        tree = Tree(TreeSpec(1, (lower,), small / "upper", small / "work"))
        directory = tree.lookup(tree.root, b"d")
        node = tree.lookup(directory, b"big")
        with pytest.raises(OSError, match="No space") as caught:
            tree.open(node, os.O_RDWR)
        assert caught.value.errno == errno.ENOSPC
        assert not node.up
        assert os.listdir(small / "work/snapfs") == []
        assert list((small / "upper").iterdir()) == []
        with open(tree.open(node, os.O_RDONLY), "rb") as file:
            assert file.read() == (lower / "d/big").read_bytes()
        made, fd = tree.create(directory, b"new", 0o644, os.O_RDWR, **WHO)
        os.close(fd)
        assert made.up
        tree.close()


def test_changes_of_owner_clear_set_id_bits_and_capabilities_as_linux_does(stack: Build) -> None:
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    tree = stack({"f": File(b"x", 0o6755, xattrs={"security.capability": capability})})
    tree.files.chown(b"f", 1000, 1000)
    node = tree.node("f")
    assert stat.S_IMODE(tree.tree.getattr(node).mode) == 0o755
    assert tree.tree.listxattr(node) == []


def test_times_can_be_set_one_alone_before_1970_and_after_2038(stack: Build) -> None:
    tree = stack({"f": b"x"})
    node = tree.node("f")
    tree.tree.setattr(node, SetAttr(mtime_ns=-1_500_000_001))
    assert tree.tree.getattr(node).mtime_ns == -1_500_000_001
    assert tree.tree.getattr(node).atime_ns == OLD_NS
    late = 4_000_000_000_123_456_789
    tree.tree.setattr(node, SetAttr(atime_ns=late))
    assert tree.tree.getattr(node).atime_ns == late
    assert tree.tree.getattr(node).mtime_ns == -1_500_000_001
