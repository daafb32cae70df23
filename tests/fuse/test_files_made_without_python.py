"""Files that are made without Python are what Python would have made, and are made once."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from snapfs.snapshots.quota import INODES_LABEL
from snapfs.snapshots.usage import measure
from tests.support.daemon import eventually
from tests.support.lanes import House, Tree, drop_dentries, killing_at
from tests.support.past_python import end_of_opens

pytestmark = [pytest.mark.fuse, pytest.mark.root]
MODES = (Mode.PASSTHROUGH, Mode.NO_OPEN)

UMASK = 0o027


def fill(layer: Path) -> None:
    (layer / "lower").write_text("lower")
    (layer / "merged").mkdir()
    (layer / "merged" / "hidden").write_text("hidden")
    (layer / "group").mkdir()
    os.chown(layer / "group", 0, 1234)
    (layer / "group").chmod(0o2775)
    (layer / "acl").mkdir()
    subprocess.run(["setfacl", "-d", "-m", "u:1234:rwx", layer / "acl"], check=True)
    (layer / "open").mkdir()
    (layer / "open").chmod(0o777)


@pytest.fixture
def tree(house: House) -> Tree:
    return house.active(fill)


@pytest.fixture
def umask() -> Iterator[int]:
    before = os.umask(UMASK)
    yield UMASK
    os.umask(before)


def made(house: House, operation: str) -> int:
    """How many files were made without Python."""
    return Counter(house.worker().answered)[operation]


@contextmanager
def makes(house: House, count: int, operation: str = "CREATE") -> Iterator[None]:
    """The block makes so many files without Python, and no more."""
    if operation == "CREATE" and house.mode is Mode.NO_OPEN:
        operation = "MKNOD"
    before = made(house, operation)
    yield
    (eventually if count else _at_once)(
        lambda: made(house, operation) == before + count, what=f"{before} + {count} files"
    )


def _at_once(holds: Callable[[], bool], *, what: str) -> None:
    assert holds(), what


def create(path: Path, mode: int = 0o666, flags: int = os.O_WRONLY) -> int:
    return os.open(path, flags | os.O_CREAT | os.O_EXCL, mode)


def warm(directory: Path) -> None:
    """Have a directory copied up, and asked for a name since."""
    touch(directory / "warm")
    (directory / "warm").unlink()
    assert not (directory / "cold").exists()


def touch(path: Path, mode: int = 0o666) -> os.stat_result:
    fd = create(path, mode)
    os.close(fd)
    return path.stat()


def test_file_has_the_mode_owner_and_content_that_it_was_given(
    house: House, tree: Tree, umask: int
) -> None:
    places = (tree.path, tree / "open", tree / "merged")
    for directory in places:
        warm(directory)
    with makes(house, 4):
        for directory in places:
            (directory / "first").write_bytes(b"first")
            assert (directory / "first").read_bytes() == b"first"
            assert stat.S_IMODE((directory / "first").stat().st_mode) == 0o666 & ~umask
            if directory == tree.path:
                found = touch(directory / "private", 0o400)
                assert stat.S_IMODE(found.st_mode) == 0o400
                assert (found.st_uid, found.st_gid, found.st_nlink) == (0, 0, 1)
    assert sorted(os.listdir(tree / "merged")) == ["first", "hidden"]
    assert (tree.upper / "merged" / "first").read_bytes() == b"first"


def test_name_that_is_taken_is_refused_and_one_that_was_freed_is_not(
    house: House, tree: Tree
) -> None:
    with pytest.raises(FileExistsError):
        create(tree / "lower")
    touch(tree / "new")
    with pytest.raises(FileExistsError):
        create(tree / "new")
    (tree / "new").unlink()
    (tree / "lower").unlink()
    warm(tree.path)
    with makes(house, 1):
        assert touch(tree / "new").st_size == 0
        (tree / "lower").write_text("anew")  # over a whiteout
    assert (tree / "lower").read_text() == "anew"
    with pytest.raises(OSError) as refused:
        create(tree / ("n" * 256))
    assert refused.value.errno == errno.ENAMETOOLONG
    with makes(house, 1):
        touch(tree / ("n" * 255))


def test_rules_of_the_directory_and_of_the_caller_are_kept(house: House, tree: Tree) -> None:
    with makes(house, 0):
        assert touch(tree / "group" / "file").st_gid == 1234
        touch(tree / "acl" / "file", 0o640)
        assert os.getxattr(tree / "acl" / "file", "system.posix_acl_access")
        assert touch(tree / "set-id", 0o4755).st_mode & stat.S_ISUID
        subprocess.run(
            ["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups", "--", "touch", "others"],
            cwd=tree / "open",
            check=True,
        )
        found = (tree / "open" / "others").stat()
        assert (found.st_uid, found.st_gid) == (1234, 1234)
    (tree / "open" / "made").mkdir()
    warm(tree / "open" / "made")
    with makes(house, 1):
        touch(tree / "open" / "made" / "first")
    subprocess.run(["setfacl", "-d", "-m", "u:1234:rwx", tree / "open" / "made"], check=True)
    with makes(house, 0):
        touch(tree / "open" / "made" / "second")
    assert os.getxattr(tree / "open" / "made" / "second", "system.posix_acl_access")


def test_directories_and_links_are_what_they_were_asked_to_be(
    house: House, tree: Tree, umask: int
) -> None:
    warm(tree.path)
    with makes(house, 21, "MKDIR"):
        (tree / "sticky").mkdir(0o1777)
        deep = tree / "sticky"
        for number in range(20):
            deep = deep / str(number)
            deep.mkdir()
            assert deep.stat().st_nlink == 2
            assert stat.S_IMODE(deep.stat().st_mode) == 0o777 & ~umask
    with makes(house, 2, "SYMLINK"):
        (deep / "link").symlink_to("../target")
        (tree / "long").symlink_to("x" * 4000)
    with makes(house, 1):
        (deep / "file").write_text("deep")
    assert stat.S_IMODE((tree / "sticky").stat().st_mode) == 0o1777 & ~umask
    assert (tree / "sticky").stat().st_nlink == 3
    assert os.readlink(deep / "link") == "../target"
    assert os.readlink(tree / "long") == "x" * 4000
    assert (deep / "link").lstat().st_size == len("../target")
    assert sorted(os.listdir(deep)) == ["file", "link"]
    (tree / "sticky").rename(tree / "moved")
    (tree / "sticky").mkdir()
    assert os.listdir(tree / "sticky") == []
    moved = tree / "moved" / deep.relative_to(tree / "sticky")
    assert (moved / "file").read_text() == "deep"
    assert moved.stat().st_ino == (
        tree.upper / moved.relative_to(tree.path)
    ).stat().st_ino % 2**39 + (moved.stat().st_ino >> 40 << 40)
    assert house.lane.usage(tree.id) == measure(tree.upper)


def test_rules_for_directories_and_links_are_kept(house: House, tree: Tree) -> None:
    with makes(house, 0, "MKDIR"), makes(house, 0, "SYMLINK"):
        (tree / "group" / "dir").mkdir()
        found = (tree / "group" / "dir").stat()
        assert (found.st_gid, found.st_mode & stat.S_ISGID) == (1234, stat.S_ISGID)
        (tree / "group" / "link").symlink_to("x")
        assert (tree / "group" / "link").lstat().st_gid == 1234
        (tree / "acl" / "dir").mkdir()
        assert os.getxattr(tree / "acl" / "dir", "system.posix_acl_default")
        for make in (lambda path: path.mkdir(), lambda path: path.symlink_to("x")):
            with pytest.raises(FileExistsError):
                make(tree / "lower")
        with pytest.raises(OSError) as refused:
            (tree / ("n" * 256)).mkdir()
        assert refused.value.errno == errno.ENAMETOOLONG
    (tree / "merged" / "hidden").unlink()
    (tree / "merged").rmdir()
    with makes(house, 0, "MKDIR"):
        (tree / "merged").mkdir()  # over a whiteout: what was there stays hidden
    assert os.listdir(tree / "merged") == []
    view = house.view(house.base_layers(fill))
    for make in (lambda path: path.mkdir(), lambda path: path.symlink_to("x")):
        with pytest.raises(OSError) as refused:
            make(view / "new")
        assert refused.value.errno == errno.EROFS


def test_directories_and_links_change_their_attributes_without_python(
    house: House, tree: Tree
) -> None:
    warm(tree.path)
    (tree / "dir").mkdir()
    (tree / "link").symlink_to("nowhere")
    warm(tree / "merged")
    with makes(house, 8, "SETATTR"):
        os.chown(tree / "dir", 12, 34)
        (tree / "dir").chmod(0o751)
        os.utime(tree / "dir", (1, 2))
        os.chown(tree / "link", 56, 78, follow_symlinks=False)
        os.utime(tree / "link", (3, 4), follow_symlinks=False)
        os.chown(tree / "merged", 90, 12)
        (tree / "merged").chmod(0o705)
        os.utime(tree / "merged", (5, 6))
    found = (tree / "dir").stat()
    assert (found.st_uid, found.st_gid, found.st_mtime) == (12, 34, 2)
    assert (stat.S_IMODE(found.st_mode), found.st_nlink) == (0o751, 2)
    found = (tree / "link").lstat()
    assert (found.st_uid, found.st_gid, found.st_mtime) == (56, 78, 4)
    found = (tree / "merged").stat()
    assert (found.st_uid, found.st_gid, found.st_mtime, found.st_nlink) == (90, 12, 6, 1)
    (tree / "dir").chmod(0o2751)
    (tree / "dir" / "file").touch()
    assert (tree / "dir" / "file").stat().st_gid == 34
    (tree / "dir").chmod(0o751)
    (tree / "dir" / "other").touch()
    assert (tree / "dir" / "other").stat().st_gid == 0


def test_listing_shows_what_was_made_and_changed_since(house: House, tree: Tree) -> None:
    for above in (tree.path, tree / "open", tree / "merged"):
        warm(above)
        for number in range(300):
            (above / f"file{number}").write_text("x" * number)
        (above / "dir").mkdir()
        (above / "link").symlink_to("x")
        for _ in range(2):
            found = {it.name: it.stat(follow_symlinks=False) for it in os.scandir(above)}
            assert sorted(found) == sorted(os.listdir(above))
            for name, listed in found.items():
                assert (above / name).lstat() == listed
                assert name[:4] != "file" or listed.st_size == int(name[4:])
            (above / "file7").write_text("y" * 7)
            (above / "file8").chmod(0o600)
    drop_dentries()
    for above in (tree.path, tree / "open", tree / "merged"):
        assert len(os.listdir(above)) >= 302
    end_of_opens(house)


def test_immutable_directory_takes_no_file(tree: Tree) -> None:
    touch(tree / "open" / "before")
    subprocess.run(["chattr", "+i", tree / "open"], check=True)
    with pytest.raises(PermissionError):
        create(tree / "open" / "new")
    subprocess.run(["chattr", "-i", tree / "open"], check=True)
    touch(tree / "open" / "new")


def test_quota_of_inodes_counts_each(house: House) -> None:
    key = house.name()
    house.snapshots.prepare(key, house.base_layers(fill), {INODES_LABEL: "4"})
    tree = Tree(house, key)
    with makes(house, 0):
        for number in range(3):
            touch(tree / str(number))
        with pytest.raises(OSError) as refused:
            create(tree / "3")
    assert refused.value.errno == errno.EDQUOT


def test_view_takes_none(house: House) -> None:
    view = house.view(house.base_layers(fill))
    with pytest.raises(OSError) as refused:
        create(view / "new")
    assert refused.value.errno == errno.EROFS


def test_usage_listing_and_attributes_know_it_at_once(house: House, tree: Tree) -> None:
    for number in range(50):
        with (tree / "open" / str(number)).open("wb") as file:
            file.write(b"x" * 5000)
            assert os.fstat(file.fileno()).st_size in (0, 5000)
            file.flush()
            assert os.fstat(file.fileno()).st_size == 5000
        assert len(os.listdir(tree / "open")) == number + 1
        if number % 10 == 0:
            assert house.lane.usage(tree.id) == measure(tree.upper)
    assert (tree / "open").stat().st_mtime_ns == (tree.upper / "open").stat().st_mtime_ns


def test_file_is_found_again_after_it_was_forgotten_renamed_and_removed(
    house: House, tree: Tree
) -> None:
    number = touch(tree / "new").st_ino
    drop_dentries()
    assert (tree / "new").stat().st_ino == number
    os.link(tree / "new", tree / "second")
    (tree / "new").rename(tree / "third")
    assert (tree / "second").stat().st_nlink == 2
    assert (tree / "third").stat().st_ino == number
    held = create(tree / "gone", flags=os.O_RDWR)
    (tree / "gone").unlink()
    os.write(held, b"still")
    assert (os.pread(held, 9, 0), os.fstat(held).st_nlink) == (b"still", 0)
    os.close(held)
    end_of_opens(house)


@pytest.mark.modes(Mode.PASSTHROUGH)
@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
@pytest.mark.parametrize(
    "call", ["openat", "ioctl", "writev"], ids=["before it is made", "before it is open", "unsaid"]
)
def test_file_is_made_once_when_the_worker_dies_on_the_way(
    own_house: House, call: str, tmp_path: Path
) -> None:
    tree = own_house.active(fill)
    touch(tree / "open" / "first")
    os.stat(tree / "open")
    # The directory's attributes and the absent name are asked for before, and answered by writev.
    when = 3 if call == "writev" else 1
    with (
        killing_at(own_house, call, when, tmp_path / "calls"),
        (tree / "open" / "new").open("xb") as file,
    ):
        file.write(b"written")
    assert (tree / "open" / "new").read_bytes() == b"written"
    assert sorted(os.listdir(tree / "open")) == ["first", "new"]
    end_of_opens(own_house)


NEW = {
    "directory": ("mkdirat", lambda path: path.mkdir(), stat.S_ISDIR),
    "link": ("symlinkat", lambda path: path.symlink_to("target"), stat.S_ISLNK),
}


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
@pytest.mark.parametrize("is_made", [False, True], ids=["before it is made", "unsaid"])
@pytest.mark.parametrize("kind", NEW)
def test_directory_or_link_is_made_once_when_the_worker_dies_on_the_way(
    own_house: House, kind: str, is_made: bool, tmp_path: Path
) -> None:
    call, make, is_kind = NEW[kind]
    tree = own_house.active(fill)
    touch(tree / "open" / "first")
    os.stat(tree / "open")
    assert not (tree / "open" / "new").exists()
    os.stat(tree / "open")
    worker = own_house.worker().pid
    with killing_at(
        own_house, "writev" if is_made else call, 2 if is_made else 1, tmp_path / "calls"
    ):
        make(tree / "open" / "new")
    assert own_house.worker().pid != worker
    assert is_kind((tree / "open" / "new").lstat().st_mode)
    assert sorted(os.listdir(tree / "open")) == ["first", "new"]


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
def test_files_of_a_worker_that_dies_before_python_heard_of_them_go_on(own_house: House) -> None:
    tree = own_house.active(fill)
    touch(tree / "open" / "first")
    held = []
    for number in range(200):
        held.append(create(tree / "open" / str(number), flags=os.O_RDWR))
    os.kill(own_house.worker().pid, signal.SIGKILL)
    for number, fd in enumerate(held):
        os.write(fd, b"%d" % number)
        assert os.fstat(fd).st_size == len(str(number))
        os.close(fd)
    for number in range(200):
        assert (tree / "open" / str(number)).read_bytes() == b"%d" % number
    end_of_opens(own_house)
