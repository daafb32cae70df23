"""A lane whose kernel never says OPEN: what is asked, when a file is copied up, which descriptors
are kept."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import subprocess
from pathlib import Path

import pytest

from snapfs.fuse import noopen
from snapfs.fuse.modes import Mode
from tests.fuse.test_fast_lane_after_changes import asked_stat
from tests.support.daemon import eventually
from tests.support.lanes import House, Tree, drop_dentries

pytestmark = [pytest.mark.fuse, pytest.mark.root]
MODES = (Mode.NO_OPEN,)
MANY = 2 * noopen.KEPT + 200


def fill(layer: Path) -> None:
    (layer / "file").write_text("lower")
    (layer / "tool").write_text("#!/bin/sh\n")
    (layer / "tool").chmod(0o4755)
    os.link(layer / "file", layer / "link")
    for number in range(MANY):
        (layer / f"many{number}").write_text(str(number))


@pytest.fixture
def tree(house: House) -> Tree:
    return house.active(fill)


def test_the_worker_keeps_no_handles_for_open_files(house: House, tree: Tree) -> None:
    with (tree / "file").open() as first, (tree / "file").open() as second:
        assert first.read() == second.read() == "lower"
        assert house.worker().files <= 1


def test_looks_at_files_that_were_read_or_written_do_not_come_to_python(
    house: House, tree: Tree
) -> None:
    def asked() -> int:
        before = house.worker().answered.get("GETATTR", 0)
        for _ in range(5):
            asked_stat(tree / "many0")
        return house.worker().answered.get("GETATTR", 0) - before

    assert (tree / "many0").read_text() == "0"
    assert asked() == 5
    with (tree / "many0").open("r+") as file:
        file.write("UPPER")
    assert asked() == 5
    assert (tree / "many0").stat().st_size == 5


def test_descriptors_are_kept_for_the_last_files_only(house: House, tree: Tree) -> None:
    def kept() -> bool:
        """Read all files; the kernel may forget some at any time, and their descriptors go."""
        for number in range(MANY):
            assert (tree / f"many{number}").read_text() == str(number)
        files = house.worker().files
        assert files <= 2 * noopen.KEPT
        return files >= noopen.KEPT - 1

    assert eventually(kept, what="as many descriptors as are kept")
    assert len(os.listdir(f"/proc/{house.worker().pid}/fd")) < 2 * noopen.KEPT + 100


def test_descriptors_go_with_the_nodes_that_the_kernel_forgets(house: House, tree: Tree) -> None:
    assert (tree / "file").read_text() == "lower"
    drop_dentries()
    eventually(lambda: house.worker().files == 0 and not house.worker().trees, what="the end")


def test_nameless_files_are_used_and_go_when_they_are_closed(house: House, tree: Tree) -> None:
    house.worker()
    assert (tree / "file").read_text() == "lower"
    for flags in (os.O_RDWR, os.O_WRONLY):
        fd = os.open(tree.path, os.O_TMPFILE | flags, 0o600)
        assert os.write(fd, b"nameless") == 8
        os.fsync(fd)
        assert os.fstat(fd).st_size == 8
        if flags == os.O_RDWR:
            assert os.pread(fd, 100, 0) == b"nameless"
        os.close(fd)
    fd = os.open(tree.path, os.O_TMPFILE | os.O_WRONLY, 0o600)
    os.write(fd, b"named")
    os.link(f"/proc/self/fd/{fd}", tree / "named", src_dir_fd=fd, follow_symlinks=True)
    os.close(fd)
    assert (tree / "named").read_text() == "named"
    drop_dentries()
    eventually(lambda: house.worker().files == 0 and not house.worker().trees, what="the end")
    assert not [it for it in os.listdir(tree.upper.parent / "work" / "snapfs") if it[0] == "o"]


def test_an_open_for_writing_copies_nothing_up_and_a_write_does(tree: Tree) -> None:
    with (tree / "file").open("r+") as file:
        assert not (tree.upper / "file").exists()
        file.write("UPPER")
        file.flush()
        assert (tree.upper / "file").read_text() == "UPPER"
    assert (tree / "link").read_text() == "UPPER"


@pytest.mark.parametrize("flags", [os.O_TRUNC, os.O_CREAT | os.O_TRUNC])
def test_an_open_that_truncates_does(tree: Tree, flags: int) -> None:
    fd = os.open(tree / "file", os.O_WRONLY | flags, 0o644)
    try:
        assert (tree / "file").stat().st_size == 0
        assert os.write(fd, b"new") == 3
    finally:
        os.close(fd)
    assert (tree / "file").read_text() == "new"
    assert (tree.upper / "file").read_text() == "new"


def test_a_reader_sees_what_a_later_writer_writes(tree: Tree) -> None:
    with (tree / "file").open() as reader:
        assert reader.read() == "lower"
        with (tree / "link").open("r+") as writer:
            writer.write("LATER")
        reader.seek(0)
        assert reader.read() == "LATER"


def test_new_files_are_made_exclusively_and_with_the_umask(tree: Tree) -> None:
    before = os.umask(0o027)
    try:
        fd = os.open(tree / "new", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    finally:
        os.umask(before)
    with os.fdopen(fd, "w+b") as file:
        assert file.write(b"x" * 3_000_000) == 3_000_000
        os.fsync(fd)
        file.seek(2_999_999)
        assert file.read() == b"x"
    assert stat.S_IMODE((tree / "new").stat().st_mode) == 0o640
    with pytest.raises(FileExistsError):
        os.open(tree / "new", os.O_RDWR | os.O_CREAT | os.O_EXCL)


def test_a_removed_file_lives_while_it_is_open(tree: Tree) -> None:
    for name in ("file", "fresh"):
        path = tree / name
        with path.open("a+") as file:
            path.unlink()
            file.write("more")
            file.flush()
            file.seek(0)
            assert file.read().endswith("more")
            assert os.fstat(file.fileno()).st_size == file.tell()
        assert not path.exists()
    assert (tree / "link").read_text() == "lowermore"


def test_shared_mappings_reach_the_layer_at_a_commit(house: House, tree: Tree) -> None:
    with (tree / "file").open("r+b") as file, mmap.mmap(file.fileno(), 5) as mapped:
        mapped[0:5] = b"DIRTY"
        name = house.name()
        house.snapshots.commit(tree.key, name)
        assert (tree.upper / "file").read_bytes() == b"DIRTY"


def test_a_write_by_who_may_not_takes_the_set_id_bits(house: House, tree: Tree) -> None:
    tool = tree / "tool"
    tool.chmod(0o4777)
    with tool.open("a") as file:
        file.write("# by root, who may keep them\n")
    assert stat.S_IMODE(tool.stat().st_mode) == 0o4777
    fd = os.open(tool, os.O_WRONLY | os.O_APPEND)
    try:  # the descriptor is root's, the writer is not
        subprocess.run(
            ["setpriv", "--reuid=65534", "--clear-groups", "echo", "x"], check=True, stdout=fd
        )
    finally:
        os.close(fd)
    assert stat.S_IMODE(tool.stat().st_mode) == 0o777


def test_a_write_to_a_tree_that_was_dropped_is_refused(house: House, tree: Tree) -> None:
    with (tree / "file").open("r+") as file:
        house.snapshots.commit(tree.key, house.name())
        with pytest.raises(OSError) as refused:
            os.pwrite(file.fileno(), b"X", 0)
        assert refused.value.errno == errno.EROFS
        assert file.read() == "lower"


def test_direct_io_goes_through(tree: Tree) -> None:
    page = mmap.mmap(-1, 4096)
    page[:] = b"d" * 4096
    fd = os.open(tree / "direct", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    try:
        assert os.pwrite(fd, page, 4096) == 4096
        assert os.preadv(fd, [page], 0) == 4096
        assert page[:] == bytes(4096)
    finally:
        os.close(fd)
    assert (tree / "direct").read_bytes() == bytes(4096) + b"d" * 4096


def big(layer: Path) -> None:
    (layer / "dir" / "deep").mkdir(parents=True)
    for name in ("file", "gone", "moved"):
        (layer / "dir" / "deep" / name).write_bytes(name.encode() * 100_000)


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
def test_a_new_worker_finds_what_was_looked_up_before(own_house: House) -> None:
    tree = own_house.active(big)
    deep = tree / "dir" / "deep"
    with (deep / "file").open("r+b") as file, (deep / "moved").open("rb") as moved:
        assert file.read(4) == b"file"
        (deep / "moved").rename(tree / "elsewhere")
        (tree / "dir").rename(tree / "renamed")
        here = os.open(tree / "renamed" / "deep", os.O_RDONLY | os.O_DIRECTORY)
        own_house.kill_worker()
        file.seek(390_000)
        moved.seek(490_000)
        assert file.read(4) == b"file"
        assert moved.read(5) == b"moved"
        assert os.pwrite(file.fileno(), b"FILE", 0) == 4
        assert os.stat("gone", dir_fd=here).st_size == 400_000
        os.close(os.open("new", os.O_WRONLY | os.O_CREAT, dir_fd=here))
        os.close(here)
    assert (tree / "renamed" / "deep" / "file").read_bytes()[:8] == b"FILEfile"
    assert (tree / "renamed" / "deep" / "new").exists()


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
def test_a_removed_file_of_a_dead_worker_goes_on(own_house: House) -> None:
    tree = own_house.active(big)
    gone = tree / "dir" / "deep" / "gone"
    with gone.open("rb") as file:
        whole = file.read()
        gone.unlink()
        own_house.kill_worker()
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(file.fileno(), 4, 390_000) == whole[390_000:390_004]
        assert os.fstat(file.fileno()).st_nlink == 0
