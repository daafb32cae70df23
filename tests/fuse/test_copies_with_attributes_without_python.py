"""What `cp -a` asks for of each file is answered without Python: attributes, ACLs, small copies."""

from __future__ import annotations

import errno
import os
import signal
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from tests.support.daemon import eventually
from tests.support.lanes import House, Tree
from tests.support.past_python import assert_usage_is_a_walk, fresh, without_python

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.channel("the fast lane"),
    pytest.mark.modes(Mode.PASSTHROUGH, Mode.NO_OPEN),
]
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
USER_OBJ, USER, GROUP_OBJ, MASK, OTHER, NOBODY = 1, 2, 4, 16, 32, 0xFFFFFFFF
KIB = 1 << 10
SMALL, BIG = 100 * KIB, 200 * KIB


def fill(layer: Path) -> None:
    (layer / "lower").write_bytes(b"lower" * 1000)
    (layer / "big").write_bytes(os.urandom(BIG))
    (layer / "directory").mkdir()


@pytest.fixture
def tree(house: House) -> Tree:
    return house.on(house.base_layers(fill))


def packed(*entries: tuple[int, int, int]) -> bytes:
    """An ACL as the kernel takes it."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *it) for it in entries)


def plain(owner: int, group: int, other: int) -> bytes:
    """An ACL that a mode can say."""
    return packed((USER_OBJ, owner, NOBODY), (GROUP_OBJ, group, NOBODY), (OTHER, other, NOBODY))


@contextmanager
def sets(house: House, count: int) -> Iterator[None]:
    with without_python(house, "SETXATTR", count):
        yield


def copied(house: House) -> int:
    """How many copies were made without Python, of whichever request the kernel has for them."""
    found = Counter(house.worker().answered)
    return found["COPY_FILE_RANGE"] + found["COPY_FILE_RANGE_64"]


@contextmanager
def copies(house: House, count: int) -> Iterator[None]:
    """The block has so many copies without Python."""
    wait_until_quick(house)
    before = copied(house)
    yield
    assert copied(house) == before + count


def wait_until_quick(house: House) -> None:
    """Return when copies are made without Python: after a slow one they are not, for a second."""
    tree = house.active()
    (tree / "source").write_bytes(b"x")

    def is_quick() -> bool:
        before = copied(house)
        with (tree / "source").open("rb") as reader, (tree / "target").open("wb") as writer:
            assert os.copy_file_range(reader.fileno(), writer.fileno(), 1) == 1
        return copied(house) > before

    eventually(is_quick, what="a quick copy")


def test_attributes_of_files_and_directories_of_the_upper_layer_are_set(
    house: House, tree: Tree
) -> None:
    directory = fresh(tree, "new")
    (directory / "file").write_text("content")
    with sets(house, 6):
        for path in (directory / "file", directory):
            os.setxattr(path, "user.one", b"1")
            os.setxattr(path, "user.one", b"two")
            os.setxattr(path, "user.empty", b"")
    for path in (directory / "file", directory):
        assert os.getxattr(path, "user.one") == b"two"
        assert os.getxattr(path, "user.empty") == b""
        assert os.getxattr(tree.upper / path.relative_to(tree.path), "user.one") == b"two"
    assert_usage_is_a_walk(house, tree)


def test_an_acl_that_a_mode_can_say_becomes_the_mode(house: House, tree: Tree) -> None:
    directory = fresh(tree, "new")
    (directory / "file").write_text("content")
    (directory / "file").stat()
    with sets(house, 2):
        os.setxattr(directory / "file", ACCESS, plain(6, 4, 0))
        os.setxattr(directory, ACCESS, plain(7, 5, 1))
    assert (directory / "file").stat().st_mode & 0o7777 == 0o640
    assert directory.stat().st_mode & 0o7777 == 0o751
    with pytest.raises(OSError) as caught:
        os.getxattr(directory / "file", ACCESS)
    assert caught.value.errno == errno.ENODATA


def test_an_acl_of_others_is_kept_and_obeyed(house: House, tree: Tree) -> None:
    directory = fresh(tree, "new")
    (directory / "file").write_text("content")
    (directory / "file").chmod(0o600)
    named = packed(
        (USER_OBJ, 6, NOBODY), (USER, 4, 12345), (GROUP_OBJ, 0, NOBODY), (MASK, 4, NOBODY),
        (OTHER, 0, NOBODY),
    )  # fmt: skip
    reader = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", "cat"]
    assert subprocess.run([*reader, "file"], cwd=directory, capture_output=True).returncode
    with sets(house, 1):
        os.setxattr(directory / "file", ACCESS, named)
    assert os.getxattr(directory / "file", ACCESS) == named
    assert (directory / "file").stat().st_mode & 0o777 == 0o640
    assert subprocess.check_output([*reader, "file"], cwd=directory) == b"content"


def test_what_has_rules_is_left_to_them(house: House, tree: Tree) -> None:
    directory = fresh(tree, "new")
    for name in ("file", "set-group", "immutable"):
        (directory / name).write_text(name)
    (directory / "link").symlink_to("file")
    (directory / "set-group").chmod(0o2755)
    subprocess.run(["chattr", "+i", directory / "immutable"], check=True)
    with sets(house, 0):
        os.setxattr(directory / "file", "user.new", b"1", os.XATTR_CREATE)
        with pytest.raises(FileExistsError):
            os.setxattr(directory / "file", "user.new", b"2", os.XATTR_CREATE)
        os.setxattr(directory / "file", "user.new", b"3", os.XATTR_REPLACE)
        os.setxattr(directory / "file", "trusted.own", b"4")
        os.setxattr(directory / "file", "trusted.overlay.opaque", b"5")
        os.setxattr(directory / "set-group", ACCESS, plain(7, 5, 5))
        os.setxattr(directory, DEFAULT, plain(7, 5, 0))
        with pytest.raises(OSError):
            os.setxattr(directory / "link", "user.x", b"", follow_symlinks=False)
        with pytest.raises(PermissionError):
            os.setxattr(directory / "immutable", "user.x", b"")
    subprocess.run(["chattr", "-i", directory / "immutable"], check=True)
    assert os.getxattr(directory / "file", "user.new") == b"3"
    assert os.getxattr(directory / "file", "trusted.overlay.opaque") == b"5"
    (directory / "inherits").write_text("")
    assert (directory / "inherits").stat().st_mode & 0o777 == 0o640


def test_lower_files_and_directories_are_copied_up_first(house: House, tree: Tree) -> None:
    for name in ("lower", "directory"):
        os.setxattr(tree / name, "user.x", b"above")
        assert os.getxattr(tree / name, "user.x") == b"above"
        assert os.getxattr(tree.upper / name, "user.x") == b"above"
    assert (tree / "lower").read_bytes() == b"lower" * 1000
    with sets(house, 2):
        for name in ("lower", "directory"):
            os.setxattr(tree / name, "user.x", b"again")
    assert_usage_is_a_walk(house, tree)


def test_a_lower_file_that_python_was_asked_about_is_answered_without_it_again(
    house: House, tree: Tree
) -> None:
    os.listdir(tree.path)
    fd = os.open(tree / "big", os.O_RDONLY)
    try:
        assert os.lseek(fd, 0, os.SEEK_HOLE) == BIG  # Python makes a node
        with without_python(house, "LISTXATTR", 1):
            assert os.listxattr(fd) == []
    finally:
        os.close(fd)


def test_small_files_are_copied(house: House, tree: Tree) -> None:
    directory = fresh(tree, "new")
    content = os.urandom(SMALL)
    (directory / "source").write_bytes(content)
    with copies(house, 3):
        for name in ("source", "target", "again"):
            source = directory / name
            target = directory / {"source": "target", "target": "again", "again": "last"}[name]
            with source.open("rb") as reader, target.open("wb") as writer:
                found = os.copy_file_range(reader.fileno(), writer.fileno(), 1 << 30)
                assert found == SMALL
                assert os.copy_file_range(reader.fileno(), writer.fileno(), 1 << 30) == 0
                assert os.fstat(writer.fileno()).st_size == SMALL
    assert (directory / "last").read_bytes() == content
    assert_usage_is_a_walk(house, tree)


def test_lower_files_are_copied(house: House, tree: Tree) -> None:
    directory = fresh(tree, "new")
    os.listdir(tree.path)
    (tree / "lower").read_bytes()  # into memory
    with (
        (tree / "lower").open("rb") as reader,
        (directory / "copy").open("wb") as writer,
        copies(house, 1),
    ):
        assert os.copy_file_range(reader.fileno(), writer.fileno(), 1 << 20) == 5000
    assert (directory / "copy").read_bytes() == b"lower" * 1000


def test_the_rest_of_a_file_goes_where_it_is_wanted(house: House, tree: Tree) -> None:
    directory = fresh(tree, "new")
    (directory / "source").write_bytes(b"0123456789")
    (directory / "target").write_bytes(b"abcdefghijklmno")
    with (
        (directory / "source").open("rb") as reader,
        (directory / "target").open("r+b") as writer,
        copies(house, 1),
    ):
        assert os.copy_file_range(reader.fileno(), writer.fileno(), 4, 2, 1) == 4  # Python's
        assert os.copy_file_range(reader.fileno(), writer.fileno(), 100, 7, 20) == 3
    assert (directory / "target").read_bytes() == b"a2345fghijklmno\0\0\0\0\x00789"


def test_what_is_written_after_a_mapping_changed_it_is_copied(house: House, tree: Tree) -> None:
    directory = fresh(tree, "new")
    (directory / "source").write_bytes(b"old" * 1000)
    (directory / "target").write_bytes(b"")
    for turn in range(5):
        with (directory / "source").open("r+b") as changer:
            changer.write(b"%3d" % turn)
        with (directory / "source").open("rb") as reader, (directory / "target").open("r+b") as to:
            assert os.copy_file_range(reader.fileno(), to.fileno(), 1 << 20) == 3000
            to.seek(0)
            assert to.read(6) == b"%3dold" % turn


@pytest.mark.parametrize("what", ["big", "set-user", "removed", "itself"])
def test_what_has_rules_is_copied_by_them(house: House, tree: Tree, what: str) -> None:
    directory = fresh(tree, "new")
    content = os.urandom(BIG if what == "big" else SMALL)
    (directory / "source").write_bytes(content)
    (directory / "target").write_bytes(b"")
    if what == "set-user":
        (directory / "target").chmod(0o4755)
    target = directory / ("source" if what == "itself" else "target")
    with (directory / "source").open("rb") as reader, target.open("r+b") as writer:
        if what == "removed":
            target.unlink()
        with copies(house, 0):
            at = len(content) if what == "itself" else 0
            assert os.copy_file_range(reader.fileno(), writer.fileno(), BIG, 0, at) == len(content)
        writer.seek(at)
        assert writer.read() == content
    assert_usage_is_a_walk(house, tree)


def test_copies_between_snapshots(house: House, tree: Tree) -> None:
    other = house.active()
    one, two = fresh(tree, "one"), fresh(other, "two")
    (one / "source").write_bytes(b"x" * 5000)
    with (
        (one / "source").open("rb") as reader,
        (two / "target").open("wb") as writer,
        copies(house, 1),
    ):
        assert os.copy_file_range(reader.fileno(), writer.fileno(), 1 << 20) == 5000
    assert (two / "target").read_bytes() == b"x" * 5000
    assert_usage_is_a_walk(house, other)


def test_a_copied_tree_is_the_same(house: House, tree: Tree) -> None:
    made = fresh(tree, "made")
    for number in range(40):
        (made / f"d{number % 4}").mkdir(exist_ok=True)
        path = made / f"d{number % 4}" / f"f{number}"
        path.write_bytes(os.urandom(number * 5 * KIB))
        path.chmod(0o600 + number % 8)
        os.setxattr(path, "user.number", str(number).encode())
    subprocess.run(["cp", "-a", made, tree / "copy"], check=True)
    listing = ["rsync", "-aAXni", "--delete", "--checksum", f"{made}/", f"{tree / 'copy'}/"]
    assert subprocess.check_output(listing) == b""
    assert_usage_is_a_walk(house, tree)


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
def test_what_was_answered_holds_when_the_worker_dies(own_house: House) -> None:
    tree = own_house.on(own_house.base_layers(fill))
    directory = fresh(tree, "new")
    content = os.urandom(SMALL)
    (directory / "source").write_bytes(content)
    with (directory / "source").open("rb") as reader, (directory / "target").open("wb") as writer:
        os.copy_file_range(reader.fileno(), writer.fileno(), SMALL)
        os.setxattr(directory / "target", "user.x", b"y")
        os.kill(own_house.worker().pid, signal.SIGKILL)
        assert os.getxattr(directory / "target", "user.x") == b"y"
        assert os.copy_file_range(reader.fileno(), writer.fileno(), SMALL, 0, SMALL) == SMALL
    assert (directory / "target").read_bytes() == content * 2
