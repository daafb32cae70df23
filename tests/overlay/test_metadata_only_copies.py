"""A change of attributes copies no data, and nobody ever sees that."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapfs.model import Quota
from snapfs.overlay import (
    RENAME_EXCHANGE,
    LayerCopy,
    Node,
    SetAttr,
    Tree,
    TreeSpec,
    settle_offline,
)
from snapfs.overlay.filecalls import FS_NODUMP_FL
from snapfs.snapshots.usage import blocks_by_inode, measure
from tests.overlay.conftest import Stack
from tests.support.overlay.census import differences, of_mount
from tests.support.overlay.kernel import mount, overlay, tmpfs, unmount
from tests.support.overlay.layers import Dir, File, Link, Same, make_layer
from tests.support.overlay.operations import OLD_NS

pytestmark = pytest.mark.root

Build = Callable[..., Stack]
MARK = "trusted.overlay.metacopy"
LAYER_MARK = "trusted.overlay.snapfs.metacopies"
BIG = bytes(range(256)) * 1024
ACL = bytes.fromhex(
    "02000000 01000600ffffffff 02000700e8030000 04000400ffffffff 10000700ffffffff 20000000ffffffff"
)
LOWER = {
    "d": Dir(0o2751, 5, 6, {"user.d": b"d"}),
    "d/f": File(BIG, 0o4675, 1000, 1001, {"user.a": b"1", "system.posix_acl_access": ACL}),
    "d/g": b"g" * 5000,
    "a": b"many",
    "b": Same("a"),
    "empty": b"",
    "link": Link("d/f"),
}


@pytest.fixture
def tree(stack: Build) -> Iterator[Stack]:
    made = stack(LOWER)
    reopened(made, metacopy=True)
    return made


def reopened(made: Stack, *, metacopy: bool, resumed: bool = False) -> None:
    made.files.forget()
    made.tree.close()
    upper, work = made.upper, made.work
    spec = TreeSpec(7, tuple(made.lowers), upper, work, metacopy=metacopy, resumed=resumed)
    made.tree = made.files.tree = Tree(spec, made.inodes)


def is_metacopy(made: Stack, path: str) -> bool:
    return MARK in os.listxattr(made.upper / path)


def is_hole(made: Stack, path: str) -> bool:
    real = (made.upper / path).stat()
    return real.st_blocks * 512 < real.st_size


def test_change_of_owner_copies_no_data(tree: Stack) -> None:
    before = tree.tree.getattr(tree.node("d/f"))
    directory = tree.tree.getattr(tree.node("d"))
    tree.files.chown(b"d/f", 7, 8)
    assert is_metacopy(tree, "d/f")
    assert is_hole(tree, "d/f")
    after = tree.tree.getattr(tree.node("d/f"))
    assert (after.uid, after.gid, after.ino) == (7, 8, before.ino)
    assert (after.size, after.blocks, after.mtime_ns) == (len(BIG), before.blocks, OLD_NS)
    assert after.blocks * 512 >= len(BIG)
    assert not after.mode & stat.S_ISUID
    assert tree.tree.getxattr(tree.node("d/f"), b"user.a") == b"1"
    assert MARK.encode() not in tree.tree.listxattr(tree.node("d/f"))
    assert tree.read("d/f") == BIG
    assert tree.tree.getattr(tree.node("d")).mtime_ns == directory.mtime_ns
    assert tree.leftovers() == []


@pytest.mark.parametrize(
    "change",
    [
        lambda files: files.chmod(b"d/g", 0o600),
        lambda files: files.utime(b"d/g", 1, 2),
        lambda files: files.setxattr(b"d/g", b"user.b", b"2", 0),
        lambda files: files.setxattr(b"d/g", b"system.posix_acl_access", ACL, 0),
    ],
    ids=["mode", "times", "attribute", "acl"],
)
def test_other_attributes_copy_no_data_either(
    tree: Stack, change: Callable[[object], None]
) -> None:
    change(tree.files)
    assert is_metacopy(tree, "d/g")
    assert tree.read("d/g") == b"g" * 5000


def test_removing_an_attribute_copies_no_data(tree: Stack) -> None:
    tree.files.removexattr(b"d/f", b"user.a")
    assert is_metacopy(tree, "d/f")
    assert b"user.a" not in tree.tree.listxattr(tree.node("d/f"))


def test_without_the_option_data_is_copied(tree: Stack) -> None:
    reopened(tree, metacopy=False)
    tree.files.chown(b"d/f", 7, 8)
    assert (tree.upper / "d/f").read_bytes() == BIG
    assert not is_metacopy(tree, "d/f")
    assert LAYER_MARK not in os.listxattr(tree.upper)


CHANGES: dict[str, Callable[[Stack], None]] = {
    "open": lambda it: os.close(it.tree.open(it.node("d/f"), os.O_RDWR)),
    "write": lambda it: it.files.write(b"d/f", 3, b"new"),
    "rewrite": lambda it: it.files.rewrite(b"d/f", b"new"),
    "truncate": lambda it: it.files.truncate(b"d/f", 10),
    "truncate to nothing": lambda it: it.files.truncate(b"d/f", 0),
    "extend": lambda it: it.files.truncate(b"d/f", len(BIG) + 10),
    "link": lambda it: it.files.link(b"d/f", b"second"),
    "rename": lambda it: it.files.rename(b"d/f", b"moved", 0),
    "rename over": lambda it: it.files.rename(b"d/f", b"a", 0),
    "exchange": lambda it: it.files.rename(b"d/f", b"a", RENAME_EXCHANGE),
    "be exchanged": lambda it: it.files.rename(b"a", b"d/f", RENAME_EXCHANGE),
    "be replaced": lambda it: it.files.rename(b"a", b"d/f", 0),
    "unlink": lambda it: it.files.unlink(b"d/f"),
    "flags": lambda it: it.tree.setflags(
        it.node("d/f"), it.tree.getflags(it.node("d/f")) | FS_NODUMP_FL
    ),
    "settle": lambda it: it.tree.settle(),
}


@pytest.mark.parametrize("again", ["as it is", "forgotten", "opened again", "opened without"])
@pytest.mark.parametrize("name", CHANGES)
def test_what_needs_the_data_copies_it(stack: Build, name: str, again: str) -> None:
    """It ends as it does where all is copied at once."""
    ends = []
    for metacopy in (True, False):
        made = stack(LOWER)
        reopened(made, metacopy=metacopy)
        made.files.chown(b"d/f", 7, 8)
        made.files.removexattr(b"d/f", b"user.a")
        made.files.setxattr(b"d/f", b"user.b", b"2", 0)
        made.files.utime(b"d/f", 123_000, 456_000)
        assert is_metacopy(made, "d/f") is metacopy
        if again == "forgotten":
            made.files.forget()
        elif again != "as it is":
            reopened(made, metacopy=again == "opened again" and metacopy)
        before = made.tree.getattr(made.node("d/f")).ino & 0xFFFFFFFF
        CHANGES[name](made)
        assert not [
            path
            for path in made.upper.rglob("*")
            if not path.is_symlink() and MARK in os.listxattr(path)
        ]
        if name not in ("unlink", "be replaced"):
            where = {"rename": "moved", "rename over": "a", "exchange": "a", "be exchanged": "a"}
            found = made.tree.getattr(made.node(where.get(name, "d/f")))
            assert found.ino & 0xFFFFFFFF == before
            assert (found.uid, found.gid) == (7, 8)
        ends.append(made.census())
        made.files.forget()
        assert not [it for it in made.leftovers() if not it.startswith("l")]
        assert not differences(ends[-1], made.kernel_census(), leave_out=("nlink",))
    late = name in ("write", "rewrite", "truncate", "truncate to nothing", "extend")
    left_out = ("mtime_ns",) if late or name in ("unlink", "be replaced") else ()
    left_out += ("mtime_ns",) if "e" in name else ()  # directories change now
    assert not differences(*ends, leave_out=left_out)


def test_times_stay_through_completion(tree: Stack) -> None:
    tree.files.utime(b"d/g", 123_000, 456_000)
    directory = tree.tree.getattr(tree.node("d")).mtime_ns
    os.close(tree.tree.open(tree.node("d/g"), os.O_RDWR))
    found = tree.tree.getattr(tree.node("d/g"))
    assert not is_metacopy(tree, "d/g")
    assert (found.atime_ns, found.mtime_ns) == (123_000, 456_000)
    assert tree.tree.getattr(tree.node("d")).mtime_ns == directory


def test_capability_goes_with_the_owner_and_stays_without(tree: Stack) -> None:
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    os.setxattr(tree.lowers[0] / "d/g", "security.capability", capability)
    tree.files.chmod(b"d/g", 0o755)
    assert tree.tree.getxattr(tree.node("d/g"), b"security.capability") == capability
    job = tree.tree.start_copy_up(tree.node("d/g"))
    job.run()
    tree.tree.finish_copy_up(job)
    assert tree.tree.getxattr(tree.node("d/g"), b"security.capability") == capability
    tree.files.chown(b"d/f", 7, 8)
    tree.files.setxattr(b"d/f", b"security.capability", capability, 0)
    tree.files.chown(b"d/f", 9, 8)
    assert b"security.capability" not in tree.tree.listxattr(tree.node("d/f"))
    assert is_metacopy(tree, "d/f")


@pytest.mark.parametrize("path", ["a", "empty", "link", "protected"])
def test_other_files_are_copied_whole(tree: Stack, path: str) -> None:
    if path == "protected":
        (tree.lowers[0] / path).write_bytes(b"protected")
        os.setxattr(tree.lowers[0] / path, "trusted.overlay.protattr", b"a")
        os.setxattr(tree.lowers[0], "trusted.overlay.snapfs.protected", b"y")
        reopened(tree, metacopy=True)
        tree.tree.setattr(tree.node(path), SetAttr(atime_ns=5, mtime_ns=5))
    else:
        tree.files.chown(path.encode(), 7, 8)
    assert MARK not in os.listxattr(tree.upper / path, follow_symlinks=False)
    assert LAYER_MARK not in os.listxattr(tree.upper)


def test_reader_of_a_removed_file_reads_on(tree: Stack) -> None:
    tree.files.chown(b"d/f", 7, 8)
    node = tree.node("d/f")
    tree.files.unlink(b"d/f")
    with open(tree.tree.open(node, os.O_RDONLY), "rb") as file:
        assert file.read() == BIG
    with open(tree.tree.open(node, os.O_RDWR), "r+b") as file:
        file.write(b"new")
        file.seek(0)
        assert file.read() == b"new" + BIG[3:]
    assert tree.tree.getattr(node).uid == 7
    assert tree.tree.getattr(node).nlink == 0
    tree.files.forget()
    assert tree.leftovers() == []


@pytest.mark.parametrize("way", ["unlink", "rename", "rmdir too", "no room"])
def test_removed_file_is_found_by_its_number(stack: Build, way: str, tmp_path: Path) -> None:
    """As a worker does that comes after one that died."""
    made = stack({"p/d/f": BIG, "p/a": b"a"})
    reopened(made, metacopy=True, resumed=True)
    made.files.rename(b"p", b"q", 0)
    made.files.chown(b"q/d/f", 7, 8)
    parent, ino = made.node("q/d"), made.node("q/d/f").ino
    if way == "rename":
        made.files.rename(b"q/a", b"q/d/f", 0)
    else:
        made.files.unlink(b"q/d/f")
    kept = made.work / "snapfs" / f"o{ino & (1 << 40) - 1:x}"
    if way == "no room":
        os.removexattr(kept, "trusted.overlay.redirect")
    if way == "rmdir too":
        made.files.rmdir(b"q/d")
    other = Tree(made.tree.spec)  # as it finds it, and not after a close, which ends it
    above: Node | None = (
        None if way == "rmdir too" else other.lookup(other.lookup(other.root, b"q"), b"d")
    )
    node = other.nameless(ino, above)
    assert node is not None
    assert parent.is_dir
    with open(other.open(node, os.O_RDONLY), "rb") as file:
        assert file.read() == BIG
    assert other.getattr(node).uid == 7
    with open(other.open(node, os.O_RDWR), "r+b") as file:
        file.write(b"new")
        file.seek(0)
        assert file.read() == b"new" + BIG[3:]
    assert other.getattr(node).uid == 7
    other.close()
    made.files.forget()


def test_data_is_found_where_its_directory_moved_to(tree: Stack) -> None:
    tree.files.chown(b"d/f", 7, 8)
    tree.files.mkdir(b"new", 0o755)
    tree.files.rename(b"d", b"new/place", 0)
    for _ in range(2):
        assert tree.read("new/place/f") == BIG
        assert is_metacopy(tree, "new/place/f")
        reopened(tree, metacopy=False)
    tree.files.write(b"new/place/f", 0, b"new")
    assert tree.read("new/place/f") == b"new" + BIG[3:]


def test_change_during_the_copy_of_the_data_is_not_lost(tree: Stack) -> None:
    tree.files.chown(b"d/f", 7, 8)
    job = tree.tree.start_copy_up(tree.node("d/f"))
    job.run()
    tree.files.chown(b"d/f", 9, 10)
    tree.tree.finish_copy_up(job)
    assert tree.tree.getattr(tree.node("d/f")).uid == 9
    assert tree.read("d/f") == BIG
    assert (tree.upper / "d/f").read_bytes() == BIG
    assert tree.leftovers() == []


def test_copy_that_is_given_up_leaves_what_was_there(tree: Stack) -> None:
    tree.files.chown(b"d/f", 7, 8)
    job = tree.tree.start_copy_up(tree.node("d/f"))
    job.run()
    tree.tree.abort_copy_up(job)
    assert tree.leftovers() == []
    tree.files.chown(b"d/f", 9, 10)
    assert is_metacopy(tree, "d/f")
    assert tree.read("d/f") == BIG


def test_file_moves_to_its_copy_while_that_is_made(tree: Stack) -> None:
    tree.files.chown(b"d/f", 7, 8)
    job = tree.tree.start_copy_up(tree.node("d/f"))
    job.run()
    tree.files.mkdir(b"new", 0o755)
    tree.files.rename(b"d", b"new/place", 0)
    tree.tree.finish_copy_up(job)
    assert (tree.upper / "new/place/f").read_bytes() == BIG
    assert tree.read("new/place/f") == BIG
    assert tree.leftovers() == []


def test_settled_layer_stands_for_itself(tree: Stack) -> None:
    for path in (b"d/f", b"d/g", b"a", b"link"):
        tree.files.chown(path, 7, 8)
    before = tree.census()
    tree.files.forget()
    tree.tree.settle()
    assert (tree.upper / "d/f").read_bytes() == BIG
    assert (tree.upper / "d/g").read_bytes() == b"g" * 5000
    assert LAYER_MARK not in os.listxattr(tree.upper)
    assert not differences(before, tree.census())
    with overlay(tree.base / "kernel", [tree.upper, *tree.lowers]) as mounted:
        assert not differences(before, of_mount(mounted), leave_out=("nlink",))
    tree.files.chmod(b"d/g", 0o600)
    assert LAYER_MARK not in os.listxattr(tree.upper)


def test_layer_can_be_settled_without_a_tree(tree: Stack) -> None:
    tree.files.chown(b"d/f", 7, 8)
    before = tree.census()
    tree.files.forget()
    tree.tree.close()
    settle_offline(tree.upper, tree.work, tree.lowers)
    assert (tree.upper / "d/f").read_bytes() == BIG
    tree.open()
    assert not differences(before, tree.census())


def test_copy_of_a_settled_layer_has_the_data(tree: Stack) -> None:
    tree.files.chown(b"d/f", 7, 8)
    for name in ("copy", "ahead"):
        (tree.base / name).mkdir()
    copy = LayerCopy(tree.upper, tree.lowers, tree.base / "copy", tree.base / "ahead", None)
    copy.warm()
    tree.tree.settle()
    copy.make()
    copy.clear()
    assert (tree.base / "copy/d/f").read_bytes() == BIG
    assert MARK not in os.listxattr(tree.base / "copy/d/f")


def test_kernel_reads_the_data_or_refuses(tree: Stack) -> None:
    """Of a layer that was not settled: never zeros."""
    tree.files.chown(b"d/f", 7, 8)
    place = tree.base / "kernel"
    options = "metacopy=on,redirect_dir=on,index=off,xino=off"
    place.mkdir()
    lowers = ":".join(map(str, [tree.upper, *tree.lowers]))
    mount("overlay", place, f"lowerdir={lowers},{options}")
    try:
        assert (place / "d/f").read_bytes() == BIG
        assert (place / "d/f").stat().st_uid == 7
    finally:
        unmount(place)
    with (
        overlay(tree.base / "plain", [tree.upper, *tree.lowers]) as mounted,
        pytest.raises(OSError, match="d/f"),
    ):
        (mounted / "d/f").read_bytes()


def test_usage_is_what_a_walk_finds(tree: Stack) -> None:
    count = tree.tree.usage
    count.begin()
    tree.files.chown(b"d/g", 1, 1)
    assert count.finish(blocks_by_inode(tree.upper))
    steps: list[Callable[[], None]] = [
        lambda: tree.files.chown(b"d/f", 7, 8),
        lambda: tree.files.write(b"d/f", 0, b"new"),
        lambda: tree.files.unlink(b"d/g"),
        lambda: tree.files.forget(),
        lambda: tree.tree.settle(),
    ]
    for step in steps:
        step()
        os.sync()
        assert count.usage() == measure(tree.upper)


def test_usage_is_right_when_data_is_copied_during_a_count(tree: Stack) -> None:
    count = tree.tree.usage
    tree.files.chown(b"d/f", 7, 8)
    count.begin()
    first = blocks_by_inode(tree.upper)
    tree.files.write(b"d/f", 0, b"new")
    os.sync()
    assert count.finish({**first, **blocks_by_inode(tree.upper)})
    assert count.usage() == measure(tree.upper)


def test_quota_counts_data_when_it_is_copied(tree: Stack) -> None:
    count = tree.tree.usage
    count.begin()
    assert count.finish(blocks_by_inode(tree.upper))
    tree.tree.allowance.quota = Quota(64 * 1024, None)
    tree.files.chown(b"d/f", 7, 8)
    with pytest.raises(OSError, match="quota") as caught:
        tree.files.write(b"d/f", 0, b"new")
    assert caught.value.errno == errno.EDQUOT
    assert is_metacopy(tree, "d/f")
    assert tree.read("d/f") == BIG
    tree.tree.settle()
    assert (tree.upper / "d/f").read_bytes() == BIG


def test_full_disk_leaves_the_copy_as_it_was(tmp_path: Path) -> None:
    lower = make_layer(tmp_path / "lower", {"f": os.urandom(1 << 20)})
    with tmpfs(tmp_path / "place", "size=512k") as place:
        for name in ("upper", "work"):
            (place / name).mkdir()
        tree = Tree(TreeSpec(1, (lower,), place / "upper", place / "work", metacopy=True))
        node = tree.lookup(tree.root, b"f")
        tree.setattr(node, SetAttr(uid=7))
        for change in (lambda: tree.open(node, os.O_RDWR), tree.settle):
            with pytest.raises(OSError, match="No space"):
                change()
            assert os.listdir(place / "work/snapfs") == []
            with open(tree.open(node, os.O_RDONLY), "rb") as file:
                assert file.read() == (lower / "f").read_bytes()
            assert tree.getattr(node).uid == 7
        mount("tmpfs", place, "size=4m", 32)
        tree.settle()
        assert (place / "upper/f").read_bytes() == (lower / "f").read_bytes()
        tree.close()


def test_mark_stays_for_a_copy_that_was_made_since_the_last_walk(tree: Stack) -> None:
    tree.files.chown(b"d/f", 7, 8)
    tree.tree.settle()
    tree.files.chown(b"d/g", 7, 8)
    tree.tree.all_complete()
    assert LAYER_MARK in os.listxattr(tree.upper)
    assert [it.name for nodes in tree.tree.metacopies() for it in nodes] == [b"g"]


def test_copy_whose_data_is_gone_is_an_error_and_never_zeros(tree: Stack) -> None:
    tree.files.chown(b"d/f", 7, 8)
    tree.files.forget()
    tree.tree.close()
    (tree.lowers[0] / "d/f").unlink()
    tree.open()
    for flags in (os.O_RDONLY, os.O_RDWR):
        with pytest.raises(OSError, match="metadata-only") as caught:
            tree.tree.open(tree.node("d/f"), flags)
        assert caught.value.errno == errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        tree.tree.settle()
