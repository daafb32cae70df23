"""What a program holds goes on: open files, directories it is in, and what was removed under it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from snapfs.overlay import Inodes, Places, Tree, TreeSpec
from tests.support import lanes
from tests.support.daemon import eventually
from tests.support.lanes import House, drop_dentries
from tests.support.lanes import Tree as Shown

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.plain,
    pytest.mark.logs("lane.worker_died", "lane.worker_restarted", "lane.left_in_use"),
]
MODES = (Mode.PASSTHROUGH, Mode.NO_OPEN)


def fill(layer: Path) -> None:
    deep = layer / "a" / "b" / "c"
    deep.mkdir(parents=True)
    (deep / "file").write_text("lower")
    (deep / "other").write_text("other")
    os.link(deep / "other", deep / "second name")
    (layer / "gone" / "in it").mkdir(parents=True)
    (layer / "gone" / "in it" / "file").write_text("gone")


@contextmanager
def held(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def test_without_the_channel_working_directories_go_on_and_open_files_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SNAPFS_CHANNEL", "off")
    with lanes.house(tmp_path / "house") as house:
        tree = house.active(fill)
        (tree / "a" / "b" / "up").write_text("up")
        with contextlib.chdir(tree / "a" / "b"), held(Path("up"), os.O_RDWR) as up:
            house.kill_worker()
            house.worker()
            assert sorted(os.listdir()) == ["c", "up"]
            assert Path("c/file").read_text() == "lower"
            Path("new").write_text("new")
            with pytest.raises(OSError) as caught:
                os.write(up, b"UP")
            assert caught.value.errno == errno.ESTALE
            with held(Path("up"), os.O_RDWR) as again:
                assert os.write(again, b"UP") == 2
        assert (tree.upper / "a" / "b" / "new").read_text() == "new"
        assert (tree / "a" / "b" / "up").read_text() == "UP"


def test_working_directory_deep_in_a_tree_goes_on(own_house: House) -> None:
    tree = own_house.active(fill)
    with held(tree / "a" / "b" / "c", os.O_DIRECTORY) as here:
        for turn in range(2):
            own_house.kill_worker()
            assert os.stat(here).st_mode & stat.S_IFDIR
            assert os.stat("file", dir_fd=here).st_size == 5
            os.mkdir(f"made {turn}", dir_fd=here)
            os.rename(f"made {turn}", f"moved {turn}", src_dir_fd=here, dst_dir_fd=here)
            assert f"moved {turn}" in os.listdir(here)
            with open(os.open("file", os.O_RDONLY, dir_fd=here)) as file:
                assert file.read() == "lower"
            above = os.open("..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
            assert os.listdir(above) == ["c"]
            os.close(above)


def test_directory_that_was_moved_goes_on_under_its_new_name(own_house: House) -> None:
    tree = own_house.active(fill)
    with held(tree / "a" / "b" / "c", os.O_DIRECTORY) as here:
        os.rename(tree / "a" / "b", tree / "elsewhere")
        own_house.kill_worker()
        os.close(os.open("new", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=here))
        assert "new" in os.listdir(tree / "elsewhere" / "c")
        assert "new" in os.listdir(here)


def exchange(one: Path, other: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert not libc.renameat2(-100, bytes(one), -100, bytes(other), 2), ctypes.get_errno()


@pytest.mark.parametrize("how", ["file", "directory", "exchange"])
def test_what_was_moved_after_its_worker_died_is_no_removed_lower_file(
    own_house: House, how: str
) -> None:
    tree = own_house.active(fill)
    deep = tree / "a" / "b" / "c"
    new = tree / "new"
    (tree / "log").touch()
    if how == "exchange":
        new = tree / "gone" / "in it" / "file"
    for path in (deep / "file", tree / "gone" / "in it" / "file"):
        path.stat()
    with held(tree / "log", os.O_WRONLY):
        own_house.kill_worker()
        if how == "exchange":
            exchange(deep / "file", new)
        else:
            os.rename(deep if how == "directory" else deep / "file", new)
        own_house.lane.usage(tree.id)  # the count starts anew, and no node is noted any more
        file = new / "file" if how == "directory" else new
        assert file.stat().st_nlink == 1
        with file.open("a") as appending:
            appending.write(" and more")
        assert file.read_text() == "lower and more"
    real = tree.upper / file.relative_to(tree.path)
    assert real.read_text() == "lower and more"
    if how == "exchange":
        assert (deep / "file").read_text() == "gone"
        assert (deep / "file").stat().st_nlink == 1


@pytest.mark.channel("handles of a dead worker")
def test_file_that_is_removed_after_its_tree_was_walked_is_found(own_house: House) -> None:
    tree = own_house.active(fill)
    first, second = tree / "gone" / "in it" / "file", tree / "a" / "b" / "c" / "file"
    (tree / "log").touch()
    with held(first) as one, held(second) as other, held(tree / "log", os.O_WRONLY):
        first.unlink()
        own_house.kill_worker()
        assert os.fstat(one).st_nlink == 0  # the tree is walked for it
        second.unlink()
        own_house.lane.usage(tree.id)  # the count starts anew, and no node is noted any more
        assert os.fstat(other).st_nlink == 0
        assert os.pread(other, 100, 0) == b"lower"
        assert os.pread(one, 100, 0) == b"gone"


@pytest.mark.channel("handles of a dead worker")
def test_file_whose_move_nobody_could_note_is_no_removed_lower_file(own_house: House) -> None:
    tree = own_house.active(fill)
    for path in (tree / "a" / "b" / "c" / "file", tree / "gone" / "in it" / "file"):
        path.chmod(0o640)
    with held(tree / "a" / "b" / "c" / "file", os.O_RDWR) as fd:
        os.write(fd, b"upper file")
        os.fstat(fd)
        here = tree.upper / "a" / "b" / "c" / "file"
        here.rename(tree.upper / "gone" / "in it" / "moved")  # as a worker does that dies then
        os.mknod(here, stat.S_IFCHR, 0)
        own_house.kill_worker()
        assert (os.fstat(fd).st_size, os.fstat(fd).st_nlink) == (10, 1)
        assert os.pread(fd, 100, 0) == b"upper file"


def test_removed_directory_stays_empty_and_takes_nothing(own_house: House) -> None:
    tree = own_house.active(fill)
    (tree / "upper").mkdir()
    with (
        held(tree / "gone" / "in it", os.O_DIRECTORY) as lower,
        held(tree / "upper", os.O_DIRECTORY) as upper,
    ):
        (tree / "gone" / "in it" / "file").unlink()
        (tree / "gone" / "in it").rmdir()
        (tree / "gone").rmdir()
        (tree / "upper").rmdir()
        own_house.kill_worker()
        for fd in (lower, upper):
            assert os.fstat(fd).st_nlink == 0
            assert os.listdir(fd) == []
            with pytest.raises(FileNotFoundError):
                os.mkdir("new", dir_fd=fd)
    eventually(lambda: _no_rubbish(tree), what="a clean work directory")


def _no_rubbish(tree: Shown) -> bool:
    drop_dentries()
    work = tree.upper.parent / "work" / "snapfs"
    return not [it for it in os.listdir(work) if it[0] in "to"]


@pytest.mark.channel("handles of a dead worker")
@pytest.mark.parametrize("which", ["lower", "copied", "new", "one of two names", "whole directory"])
def test_removed_file_is_read_written_and_asked_for(own_house: House, which: str) -> None:
    tree = own_house.active(fill)
    path = tree / "a" / "b" / "c" / ("second name" if which == "one of two names" else "file")
    if which == "new":
        path = tree / "new"
        path.write_text("lower")
    if which == "copied":
        path.chmod(0o600)
    content = path.read_bytes()
    flags = os.O_RDONLY if which in ("lower", "whole directory") else os.O_RDWR
    with held(path, flags) as fd:
        number = os.fstat(fd).st_ino
        path.unlink()
        if which == "whole directory":
            for name in ("other", "second name"):
                (path.parent / name).unlink()
            path.parent.rmdir()
            path.parent.parent.rmdir()
        own_house.kill_worker()
        assert os.fstat(fd).st_ino == number
        assert os.fstat(fd).st_size == len(content)
        assert os.pread(fd, 100, 0) == content
        assert os.lseek(fd, 0, os.SEEK_HOLE) == len(content)
        if flags == os.O_RDWR:
            assert os.pwrite(fd, b"W", 0) == 1
            os.ftruncate(fd, 3)
            os.fchmod(fd, 0o640)
            os.fsync(fd)
            own_house.kill_worker()
            assert os.pread(fd, 100, 0) == b"W" + content[1:3]
            assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o640
    eventually(lambda: _no_rubbish(tree), what="a clean work directory")


@pytest.mark.channel("handles of a dead worker")
def test_removed_file_outlives_all_else_that_the_kernel_knew_of_its_tree(own_house: House) -> None:
    tree = own_house.active(fill)
    (tree / "new").write_text("kept")
    with held(tree / "new", os.O_RDWR) as fd:
        (tree / "new").unlink()
        own_house.kill_worker()
        (tree / "a").stat()
        eventually(lambda: own_house.worker().lookups <= 1 or drop_dentries(), what="FORGETs")
        assert os.fstat(fd).st_size == 4
        os.fchmod(fd, 0o600)
        assert os.pread(fd, 10, 0) == b"kept"
    eventually(lambda: _no_rubbish(tree), what="a clean work directory")


@pytest.mark.channel("handles of a dead worker")
def test_name_is_removed_of_a_file_that_lost_another_before_its_worker_died(
    own_house: House,
) -> None:
    """What is kept of the first name is a link to the same file: a rename onto it does nothing."""
    tree = own_house.active(fill)
    (tree / "one").write_text("two names")
    os.link(tree / "one", tree / "two")
    own_house.kill_worker()
    with held(tree / "one") as fd:
        (tree / "one").unlink()
        own_house.kill_worker()
        assert (tree / "two").stat().st_nlink == 1
        (tree / "two").unlink()
        assert "two" not in os.listdir(tree.path)
        assert "two" not in os.listdir(tree.upper)
        assert os.fstat(fd).st_nlink == 0
        assert os.pread(fd, 20, 0) == b"two names"
    eventually(lambda: _no_rubbish(tree), what="a clean work directory")


@pytest.mark.channel("handles of a dead worker")
@pytest.mark.modes(Mode.PASSTHROUGH)
def test_file_under_a_quota_is_written_on(own_house: House) -> None:
    key, limit = own_house.name(), {"containerd.io/snapshot/max-size": str(1 << 20)}
    own_house.snapshots.prepare(key, own_house.base_layers(fill), labels=limit)
    tree = Shown(own_house, key)
    (tree / "log").write_bytes(b"")
    with (
        held(tree / "log", os.O_RDWR | os.O_APPEND) as fd,
        held(tree / "log", os.O_WRONLY | os.O_SYNC) as other,
    ):
        for turn in range(3):
            own_house.kill_worker()
            assert os.write(fd, b"line %d\n" % turn) == 7
            assert os.pwrite(other, b"L", turn * 7) == 1
        assert os.pread(fd, 100, 0) == b"Line 0\nLine 1\nLine 2\n"
        os.pwrite(other, bytes(1 << 19), 1 << 19)
        with pytest.raises(OSError, match="quota"):
            os.pwrite(other, bytes(1 << 20), 1 << 20)
    (tree / "log").unlink()


def test_tree_with_many_known_files_is_not_walked_again(
    own_house: House, capfd: pytest.CaptureFixture[str]
) -> None:
    def many(layer: Path) -> None:
        for directory in range(20):
            (layer / "many" / str(directory)).mkdir(parents=True)
            for name in range(100):
                (layer / "many" / str(directory) / str(name)).touch()

    tree = own_house.active(many)
    with ExitStack() as stack:
        fds = [
            stack.enter_context(held(tree / "many" / str(number % 20) / str(number // 20)))
            for number in range(400)
        ]
        for found, _, names in os.walk(tree.path):
            for name in names:
                os.stat(os.path.join(found, name))
        own_house.kill_worker()
        for fd in fds:
            os.fchmod(fd, 0o640)
        assert all(stat.S_IMODE(os.fstat(fd).st_mode) == 0o640 for fd in fds)
    assert "tree.walked" not in capfd.readouterr().err


def test_places_are_found_by_the_next_process_and_end_with_the_node(tmp_path: Path) -> None:
    for name in ("lower/dir", "upper", "work"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "lower/dir/file").touch()
    fd = os.memfd_create("places")
    places = Places(fd)
    spec = TreeSpec(1, (tmp_path / "lower",), tmp_path / "upper", tmp_path / "work")
    tree = Tree(spec, Inodes(places))
    directory = tree.lookup(tree.root, b"dir")
    file = tree.lookup(directory, b"file")
    for node in (directory, file):
        tree.inodes.remember(node)
    later = Places(fd)
    assert later.get(file.ino) == directory.ino
    assert later.get(directory.ino) == tree.root.ino
    tree.mkdir(tree.root, b"new", 0o700, uid=0, gid=0, umask=0)
    new = tree.lookup(tree.root, b"new")
    tree.rename(directory, b"file", new, b"moved")
    assert places.get(file.ino) == new.ino
    tree.inodes.forget(file.ino, 1)
    assert places.get(file.ino) == 0
    tree.close()
    os.close(fd)


def test_places_of_one_tree_are_told_from_those_of_others() -> None:
    fd = os.memfd_create("places")
    places = Places(fd)
    for tree in range(1, 4):
        for number in range(2, 500):
            places.note(tree << 40 | number, tree << 40)
    later = Places(fd)
    assert sorted(later.below(2 << 40, 40)) == [2 << 40 | number for number in range(2, 500)]
    assert later.below(4 << 40, 40) == []
    os.close(fd)
