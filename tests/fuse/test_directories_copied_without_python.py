"""Directories of lower layers are copied up without Python, as Python would have it, and once."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from tests.support.daemon import eventually
from tests.support.lanes import House, Tree, drop_dentries, killing_at
from tests.support.overlay.census import Census, differences, of_mount
from tests.support.past_python import assert_usage_is_a_walk, listed, without_python

pytestmark = [pytest.mark.fuse, pytest.mark.root]

MODES = [Mode.PASSTHROUGH, Mode.NO_OPEN]
OLD_NS = 1_000_000_000_123_456_789
DIRECTORIES = 10
DEFAULT_ACL = bytes.fromhex(
    "02000000 01000700ffffffff 02000700e8030000 04000500ffffffff 10000700ffffffff 20000500ffffffff"
)


def fill(layer: Path) -> None:
    """Layers that are merged with each other, of which the upper one says what a directory is."""
    for number in range(DIRECTORIES):
        path = layer / f"d{number}"
        path.mkdir()
        (path / "file").write_text(f"{number}")
        (path / "inner" / "deep").mkdir(parents=True)
        (path / "inner" / "deep" / "file").write_text("deep")
        path.chmod(0o700 | number)
        os.chown(path, number, number + 1)
        os.setxattr(path, "user.a", b"%d" % number)
        os.utime(path, ns=(OLD_NS, OLD_NS + number))
    (layer / "d1").chmod(0o1777)
    (layer / "d2").chmod(0o2775)
    os.setxattr(layer / "d3", "system.posix_acl_default", DEFAULT_ACL)
    os.setxattr(layer / "d3", "system.posix_acl_access", DEFAULT_ACL)
    os.setxattr(layer / "d4", "trusted.a", b"4")
    for number in range(DIRECTORIES):
        os.utime(layer / f"d{number}", ns=(OLD_NS, OLD_NS + number))
    os.utime(layer, ns=(OLD_NS, OLD_NS))


def fill_below(layer: Path) -> None:
    for number in range(DIRECTORIES):
        (layer / f"d{number}").mkdir(0o777)
        (layer / f"d{number}" / "below").write_text("below")


@pytest.fixture
def tree(house: House) -> Tree:
    return seen(house.active(fill_below, fill))


def seen(tree: Tree) -> Tree:
    """Let the kernel know all that there is."""
    for above, _, _ in os.walk(tree.path):
        os.stat(above)
        listed(Path(above))
    return tree


def changes(house: House, count: int, operation: str) -> AbstractContextManager[None]:
    return without_python(house, operation, count)


def census(house: House, tree: Tree) -> Census:
    return of_mount(house.on(house.snapshots.stat(tree.key).parent).path)


def test_copies_are_like_their_directories_but_for_the_change(house: House, tree: Tree) -> None:
    before = census(house, tree)
    house.lane.usage(tree.id)
    numbers = {path.name: path.stat().st_ino for path in tree.path.iterdir()}
    plain = [number for number in range(DIRECTORIES) if number != 2]  # of set-group-id, Python's
    with changes(house, len(plain), "SETATTR"):
        for number in plain:
            os.utime(tree / f"d{number}", ns=(OLD_NS, OLD_NS))
    os.utime(tree / "d2", ns=(OLD_NS, OLD_NS))
    for number in range(DIRECTORIES):
        path = tree / f"d{number}"
        assert path.stat().st_mtime_ns == OLD_NS
        assert path.stat().st_ino == numbers[path.name]
        assert path.stat().st_nlink == 1
        os.utime(path, ns=(OLD_NS, OLD_NS + number))
    for _ in range(2):
        assert not differences(before, of_mount(tree.path))
        assert {path.name: path.stat().st_ino for path in tree.path.iterdir()} == numbers
        drop_dentries()
    assert sorted(os.listdir(tree.upper)) == sorted(numbers)
    assert all(os.listdir(tree.upper / name) == [] for name in numbers)
    assert os.listdir(tree.upper.parent / "work/snapfs") == []
    assert_usage_is_a_walk(house, tree)


def make_file(above: Path) -> None:
    (above / "new").touch()


def make_directory(above: Path) -> None:
    (above / "new").mkdir()


def make_link(above: Path) -> None:
    (above / "new").symlink_to("file")


@pytest.mark.parametrize("make", [make_file, make_directory, make_link])
def test_first_new_name_needs_no_python(
    house: House, tree: Tree, make: Callable[[Path], None]
) -> None:
    new = {"make_directory": "MKDIR", "make_link": "SYMLINK"}.get(make.__name__)
    operation = new or ("MKNOD" if house.mode is Mode.NO_OPEN else "CREATE")
    for number in range(4, DIRECTORIES):
        above = tree / f"d{number}" / "inner" / "deep"
        with changes(house, 1, operation):
            make(above)
        for _ in range(2):
            assert sorted(os.listdir(above)) == ["file", "new"]
            assert sorted(os.listdir(tree / f"d{number}")) == ["below", "file", "inner"]
            assert (tree / f"d{number}").stat().st_mtime_ns == OLD_NS + number
            drop_dentries()
        seen(tree)
    assert_usage_is_a_walk(house, tree)


def test_first_change_of_a_link_copies_the_directories_above_it(house: House) -> None:
    def with_links(layer: Path) -> None:
        (layer / "a" / "b").mkdir(parents=True)
        for number in range(3):
            (layer / "a" / "b" / f"link{number}").symlink_to("nowhere")

    tree = seen(house.active(with_links))
    number = (tree / "a" / "b" / "link0").lstat().st_ino
    with changes(house, 3, "SETATTR"):
        for it in range(3):
            os.chown(tree / "a" / "b" / f"link{it}", 7, 8, follow_symlinks=False)
    for _ in range(2):
        found = (tree / "a" / "b" / "link0").lstat()
        assert (found.st_ino, found.st_uid, found.st_gid) == (number, 7, 8)
        drop_dentries()
    assert os.getxattr(tree.upper / "a" / "b", "trusted.overlay.snapfs.impure") == b"y"
    assert os.getxattr(tree.upper / "a", "trusted.overlay.snapfs.impure") == b"y"
    assert_usage_is_a_walk(house, tree)


def test_directory_that_was_copied_is_moved_listed_and_removed(house: House, tree: Tree) -> None:
    for number in range(4):
        os.utime(tree / f"d{number}", ns=(OLD_NS, OLD_NS))
    (tree / "d0").rename(tree / "moved")
    (tree / "moved" / "new").write_text("new")
    (tree / "d1" / "below").unlink()
    for _ in range(2):
        assert sorted(os.listdir(tree / "moved")) == ["below", "file", "inner", "new"]
        assert (tree / "moved" / "inner" / "deep" / "file").read_text() == "deep"
        assert sorted(os.listdir(tree / "d1")) == ["file", "inner"]
        assert not (tree / "d0").exists()
        drop_dentries()
    assert_usage_is_a_walk(house, tree)


def test_protected_directory_stays_as_it_is(house: House) -> None:
    def protect(layer: Path) -> None:
        fill(layer)
        os.setxattr(layer / "d5", "trusted.overlay.protattr", b"i")
        os.setxattr(layer, "trusted.overlay.snapfs.protected", b"y")

    tree = seen(house.active(protect))
    with changes(house, 0, "SETATTR"), pytest.raises(OSError, match="not permitted") as caught:
        (tree / "d5").chmod(0o777)
    assert caught.value.errno == errno.EPERM
    assert stat.S_IMODE((tree / "d5").stat().st_mode) == 0o705
    assert os.listdir(tree.upper) == []


STEPS = [
    *("mkdirat", "fchown", "fsetxattr", "fchmod"),
    *("lsetxattr", "renameat2", "utimensat", "linkat,writev"),
]


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
@pytest.mark.parametrize("call", STEPS)
def test_copy_is_whole_or_not_there_when_the_worker_dies(
    own_house: House, call: str, tmp_path: Path
) -> None:
    tree = own_house.active(fill_below, fill)
    before = census(own_house, tree)
    seen(tree)
    (tree / "d9" / "below").unlink()  # the first whiteout is Python's
    seen(tree)
    number = (tree / "d6").stat().st_ino
    with killing_at(own_house, call, 1, tmp_path / "calls"):
        (tree / "d6" / "inner" / "deep" / "file").unlink()
    for name in (b"d6/inner/deep/file", b"d9/below"):
        del before[name]
    for _ in range(2):
        assert not differences(before, of_mount(tree.path), leave_out=("mtime_ns",))
        assert (tree / "d6").stat().st_ino == number
        drop_dentries()
    left = os.listdir(tree.upper.parent / "work/snapfs")
    assert [name for name in left if name.startswith("t")] == []
    assert_usage_is_a_walk(own_house, tree)


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
def test_copies_that_python_had_not_heard_of_when_the_worker_died_hold(own_house: House) -> None:
    tree = seen(own_house.active(fill_below, fill))
    numbers = {path.name: path.stat().st_ino for path in tree.path.iterdir()}
    for number in range(3, DIRECTORIES):
        os.chown(tree / f"d{number}", 1000, 1000)
    own_house.kill_worker()
    for number in range(3, DIRECTORIES):
        path = tree / f"d{number}"
        found = path.stat()
        assert (found.st_uid, found.st_ino) == (1000, numbers[path.name])
        assert sorted(os.listdir(path)) == ["below", "file", "inner"]
        (path / "below").unlink()
        assert sorted(os.listdir(path)) == ["file", "inner"]
    eventually(lambda: own_house.worker(), what="the worker")
    assert_usage_is_a_walk(own_house, tree)
