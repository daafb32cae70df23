"""Lanes in which a change of attributes copies no data: nobody sees that, and commits have it."""

from __future__ import annotations

import errno
import mmap
import os
import sqlite3
import stat
import subprocess
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from snapfs.overlay.ordering import Order, order_of
from snapfs.overlay.syscalls import AT_FDCWD, RENAME_EXCHANGE, rename
from tests.fuse.test_programs_in_each_lane import git, make_database
from tests.support.lanes import House, Tree, drop_dentries, killing_at
from tests.support.overlay.census import differences, of_mount
from tests.support.past_python import assert_usage_is_a_walk, begun, listed, without_python

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.plain]
MODES = (Mode.PASSTHROUGH, Mode.NO_OPEN)
TIMEOUT_S = 40
MARK = "trusted.overlay.metacopy"
FILES = 40
BIG = bytes(range(256)) * 4096


def fill(layer: Path) -> None:
    (layer / "d").mkdir()
    for number in range(FILES):
        (layer / f"d/file{number}").write_bytes(content(number))
    (layer / "big").write_bytes(BIG)
    (layer / "big").chmod(0o4755)
    os.setxattr(layer / "big", "user.a", b"1")
    (layer / "program").write_text("#!/bin/sh\necho runs\n")
    os.sync()


def content(number: int) -> bytes:
    return bytes([number]) * (number * 700 + 1)


@pytest.fixture
def tree(house: House) -> Tree:
    return house.active(fill)


def marked(tree: Tree) -> list[str]:
    """Files of a layer whose data is below."""
    found = [it for it in tree.upper.rglob("*") if it.is_file() and MARK in os.listxattr(it)]
    return sorted(str(it.relative_to(tree.upper)) for it in found)


def unread(tree: Tree, *names: str) -> list[str]:
    """Of files without their data, which have been read since: those that still are so."""
    return [] if tree.house.passes_through else sorted(names)


def test_changes_of_attributes_leave_all_data_below(house: House, tree: Tree) -> None:
    before = {path.name: path.stat() for path in (tree / "d").iterdir()}
    subprocess.run(["chown", "-R", "7:8", tree.path], check=True, timeout=TIMEOUT_S)
    assert len(marked(tree)) == FILES + 2
    for _ in range(2):
        for path in (tree / "d").iterdir():
            found, was = path.stat(), before[path.name]
            assert (found.st_uid, found.st_gid, found.st_ino) == (7, 8, was.st_ino)
            assert (found.st_size, found.st_blocks) == (was.st_size, was.st_blocks)
            assert found.st_mtime_ns == was.st_mtime_ns
            assert path.read_bytes() == content(int(path.name.removeprefix("file")))
        assert (tree / "big").read_bytes() == BIG
        assert not (tree / "big").stat().st_mode & stat.S_ISUID
        drop_dentries()
    assert_usage_is_a_walk(house, tree)


@pytest.mark.channel("the fast lane")
def test_changes_need_no_python(house: House, tree: Tree) -> None:
    directory = tree / "d"
    before = begun(directory, "file0")
    with without_python(house, "SETATTR", 3 * (FILES - 1)):
        for number in range(1, FILES):
            path = directory / f"file{number}"
            os.chown(path, 7, 8)
            path.chmod(0o600 | number)
            os.utime(path, ns=(1, number))
    for _ in range(2):
        for name, found in listed(directory).items():
            number = int(name.removeprefix("file"))
            assert (directory / name).read_bytes() == content(number)
            if number:
                assert (found.st_uid, found.st_gid, found.st_mtime_ns) == (7, 8, number)
                assert found.st_mode & 0o7777 == 0o600 | number
            was = before[name]
            assert (found.st_ino, found.st_size) == (was.st_ino, was.st_size)
            assert found.st_blocks == was.st_blocks
        drop_dentries()
    assert len(marked(tree)) == (0 if house.passes_through else FILES)
    for number in range(FILES):
        with (directory / f"file{number}").open("r+b") as file:
            file.write(b"new")
        assert (directory / f"file{number}").read_bytes() == b"new" + content(number)[3:]
        assert os.stat(directory / f"file{number}").st_uid == (7 if number else 0)
    assert marked(tree) == []
    assert_usage_is_a_walk(house, tree)


@pytest.mark.channel("the fast lane")
@pytest.mark.modes(Mode.PASSTHROUGH)
def test_changes_of_what_was_read_or_is_need_no_python(house: House, tree: Tree) -> None:
    directory = tree / "d"
    begun(directory, "file0")
    paths = [directory / f"file{number}" for number in range(1, FILES)]
    for path in paths:
        path.read_bytes()
    with ExitStack() as readers:
        files = [readers.enter_context(path.open("rb", buffering=0)) for path in paths[::2]]
        with without_python(house, "SETATTR", 2 * len(paths)):
            for path in paths:
                os.chown(path, 7, 8)
                path.chmod(0o600)
        for file, path in zip(files, paths[::2], strict=True):
            assert file.read() == content(int(path.name.removeprefix("file")))
            assert os.fstat(file.fileno()).st_uid == 7
        for path in paths:
            data = content(int(path.name.removeprefix("file")))
            with path.open("r+b", buffering=0) as file:
                file.write(b"new")
            assert path.read_bytes() == b"new" + data[3:]
            assert path.stat().st_uid == 7
    assert marked(tree) == ["d/file0"]
    assert_usage_is_a_walk(house, tree)


CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
ACL = bytes.fromhex(
    "02000000 01000600ffffffff 02000700e8030000 04000400ffffffff 10000700ffffffff 20000000ffffffff"
)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("user.note", b"note"),
        ("trusted.note", b"note"),
        ("security.capability", CAPABILITY),
        ("system.posix_acl_access", ACL),
    ],
)
def test_extended_attributes_leave_all_data_below(tree: Tree, name: str, value: bytes) -> None:
    """As setfattr, setcap and setfacl set them."""
    path = tree / "big"
    for _ in range(2):
        os.setxattr(path, name, value)
        drop_dentries()
        assert os.getxattr(path, name) == value
        os.removexattr(path, name)
        assert name not in os.listxattr(path)
    os.removexattr(tree / "big", "user.a")
    assert marked(tree) == ["big"]
    assert path.read_bytes() == BIG
    os.setxattr(path, name, value)
    with path.open("r+b") as file:
        file.seek(0, os.SEEK_END)
    os.truncate(path, len(BIG) - 1)
    assert path.read_bytes() == BIG[:-1]
    assert marked(tree) == []
    assert "user.a" not in os.listxattr(path)
    if name != "security.capability":  # a change takes it
        assert os.getxattr(path, name) == value


def test_removing_what_is_not_there_copies_nothing(tree: Tree) -> None:
    with pytest.raises(OSError, match="No data"):
        os.removexattr(tree / "big", "user.none")
    assert not (tree.upper / "big").exists()


@pytest.mark.channel("the fast lane")
@pytest.mark.modes(Mode.PASSTHROUGH)
def test_open_for_reading_gives_a_file_its_data(house: House, tree: Tree) -> None:
    """Once: who reads it past the worker would not see what is written later."""
    directory = tree / "d"
    begun(directory, "file0")
    for number in range(FILES):
        os.chown(directory / f"file{number}", 7, 8)
    with ExitStack() as readers:
        for number in range(FILES):
            path = directory / f"file{number}"
            reader = readers.enter_context(path.open("rb", buffering=0))
            assert reader.read() == content(number)
            with path.open("ab") as writer:
                writer.write(b"more")
            assert reader.read() == b"more"
            assert os.fstat(reader.fileno()).st_uid == 7
    assert marked(tree) == []
    with without_python(house, "OPEN", FILES):
        for number in range(FILES):
            assert (directory / f"file{number}").read_bytes() == content(number) + b"more"
    assert_usage_is_a_walk(house, tree)


@pytest.mark.channel("passthrough")
@pytest.mark.modes(Mode.PASSTHROUGH)
def test_without_room_for_its_data_a_file_is_read_below(house: House, tree: Tree) -> None:
    house.snapshots.set_quota(tree.key, size_bytes=256 * 1024)
    (tree / "big").chmod(0o600)
    assert (tree / "big").read_bytes() == BIG
    assert marked(tree) == ["big"]
    house.snapshots.set_quota(tree.key, size_bytes=4 * len(BIG))
    assert (tree / "big").read_bytes() == BIG
    assert marked(tree) == []


def test_first_change_of_a_commit_later_marks_the_layer_again(house: House, tree: Tree) -> None:
    """What was settled, and goes on."""
    begun(tree / "d", "file0")
    for number in range(5):
        os.chown(tree / f"d/file{number}", 7, 8)
    with house.snapshots.held(tree.key):
        assert marked(tree) == []
    for number in range(10):
        os.chown(tree / f"d/file{number}", 9, 9)
    assert marked(tree) == [f"d/file{number}" for number in range(5, 10)]
    assert "trusted.overlay.snapfs.metacopies" in os.listxattr(tree.upper)
    house.snapshots.commit(tree.key, house.name())
    assert marked(tree) == []


def test_committed_layer_has_the_data_and_no_mark(house: House, tree: Tree) -> None:
    subprocess.run(["chown", "-R", "7:8", tree.path], check=True, timeout=TIMEOUT_S)
    (tree / "d/file3").write_bytes(b"new")
    census = of_mount(tree.path)
    name = house.name()
    house.snapshots.commit(tree.key, name)
    assert marked(tree) == []
    assert "trusted.overlay.snapfs.metacopies" not in os.listxattr(tree.upper)
    assert (tree.upper / "big").read_bytes() == BIG
    assert not differences(census, of_mount(house.on(name).path))


def test_held_snapshot_has_the_data_and_goes_on(house: House, tree: Tree) -> None:
    """As for a diff of a running container, and a copy of a volume."""
    (tree / "big").chmod(0o700)
    (tree / "d/file1").chmod(0o600)
    with (tree / "big").open("rb", buffering=0) as reader:
        assert reader.read(10) == BIG[:10]
        with house.snapshots.held(tree.key) as (upper, _):
            assert (upper / "big").read_bytes() == BIG
            assert marked(tree) == []
            assert reader.read(10) == BIG[10:20]
        (tree / "d/file2").chmod(0o600)
        assert marked(tree) == ["d/file2"]
        with (tree / "big").open("r+b") as writer:
            writer.write(b"new")
        reader.seek(20)
        assert reader.read() == BIG[20:]
        if house.mode is Mode.NO_OPEN:
            assert os.pread(reader.fileno(), 3, 0) == b"new"
    assert (tree / "big").read_bytes() == b"new" + BIG[3:]
    assert (tree / "big").stat().st_mode & 0o7777 == 0o700


def test_mapping_of_before_and_writer_after_a_change(house: House, tree: Tree) -> None:
    path = tree / "big"
    ino = path.stat().st_ino
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        os.chown(path, 7, 8)
        assert mapped[:] == BIG
        assert os.fstat(file.fileno()).st_uid == 7
        with path.open("r+b") as writer:
            writer.write(b"new")
            writer.flush()
            assert os.fstat(writer.fileno()).st_uid == 7
        assert mapped[100:] == BIG[100:]
        assert path.read_bytes() == b"new" + BIG[3:]
        assert path.stat().st_ino == ino
    assert path.read_bytes() == b"new" + BIG[3:]
    assert marked(tree) == []
    assert_usage_is_a_walk(house, tree)


def test_every_way_to_the_data_copies_it(house: House, tree: Tree) -> None:
    at = tree.path
    for number in range(10):
        os.chown(at / f"d/file{number}", 7, 8)
    os.truncate(at / "d/file1", 3)
    os.link(at / "d/file2", at / "second")
    (at / "d/file3").rename(at / "moved")
    rename(AT_FDCWD, bytes(at / "d/file4"), AT_FDCWD, bytes(at / "d/file5"), RENAME_EXCHANGE)
    with (at / "d/file6").open("wb") as file:
        file.write(b"six")
    with (at / "d/file7").open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, 100_000)
    (at / "d/file30").rename(at / "d/file8")
    (at / "d/file9").unlink()
    expected = {
        "d/file1": content(1)[:3], "d/file2": content(2), "second": content(2),
        "moved": content(3), "d/file4": content(5), "d/file5": content(4), "d/file6": b"six",
        "d/file7": content(7).ljust(100_000, b"\0"), "d/file8": content(30),
    }  # fmt: skip
    for _ in range(2):
        for name, data in expected.items():
            assert (at / name).read_bytes() == data, name
            assert (at / name).stat().st_uid == (0 if name == "d/file8" else 7), name
        assert not (at / "d/file9").exists()
        drop_dentries()
    assert marked(tree) == ["d/file0"]
    assert_usage_is_a_walk(house, tree)


def test_removed_file_is_read_and_written_on(tree: Tree) -> None:
    path = tree / "big"
    with path.open("rb", buffering=0) as reader:
        os.chown(path, 7, 8)
        path.unlink()
        assert reader.read(10) == BIG[:10]
        assert os.fstat(reader.fileno()).st_uid == 7
        assert os.fstat(reader.fileno()).st_nlink == 0
        os.fchmod(reader.fileno(), 0o600)
        assert os.pread(reader.fileno(), 1 << 21, 0) == BIG


def test_du_cp_and_a_program(tree: Tree, tmp_path: Path) -> None:
    blocks = (tree / "big").stat().st_blocks
    os.chown(tree / "big", 7, 8)
    (tree / "program").chmod(0o755)
    drop_dentries()
    assert (tree / "big").stat().st_blocks == blocks
    done = subprocess.run(["du", "-k", tree / "big"], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[0]) * 2 == blocks
    subprocess.run(["cp", "-a", tree / "big", tmp_path / "copy"], check=True, timeout=TIMEOUT_S)
    assert (tmp_path / "copy").read_bytes() == BIG
    subprocess.run(["cp", "-a", tree / "big", tree / "copy"], check=True, timeout=TIMEOUT_S)
    assert (tree / "copy").read_bytes() == BIG
    assert subprocess.check_output([tree / "program"], timeout=TIMEOUT_S) == b"runs\n"
    assert marked(tree) == unread(tree, "big", "program")


@pytest.mark.channel("SEEK_DATA")
def test_holes_are_those_of_the_data(house: House) -> None:
    def sparse(layer: Path) -> None:
        with (layer / "f").open("wb") as file:
            file.truncate(1 << 20)
            file.seek(1 << 19)
            file.write(b"data")

    tree = house.active(sparse)
    os.chown(tree / "f", 7, 8)
    with (tree / "f").open("rb") as file:
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 1 << 19
    (tree / "f").open("r+b").close()
    assert (tree.upper / "f").stat().st_blocks * 512 < 1 << 18
    assert (tree / "f").read_bytes()[1 << 19 :][:4] == b"data"


def test_database_of_the_image_after_a_change_of_its_owner(house: House) -> None:
    tree = house.active(lambda layer: make_database(layer / "db"))
    os.chown(tree / "db", 7, 8)
    for number in range(3):
        base = sqlite3.connect(tree / "db")
        assert base.execute("pragma journal_mode").fetchone() == ("wal",)
        with base:
            base.execute("insert into seen values (?, ?)", ("one", number))
        assert base.execute("select count(*) from seen").fetchone() == (number + 1,)
        assert base.execute("pragma integrity_check").fetchone() == ("ok",)
        base.close()
        (tree / "db").chmod(0o600 | number)
    assert (tree / "db").stat().st_uid == 7


def test_repository_of_the_image_after_a_change_of_its_owner(house: House, tree: Tree) -> None:
    git(tree, "init", "--quiet")
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "-m", "first")
    name = house.name()
    house.snapshots.commit(tree.key, name)
    again = house.on(name)
    subprocess.run(["chmod", "-R", "g+w", again.path], check=True, timeout=TIMEOUT_S)
    git(again, "config", "core.fileMode", "false")
    assert git(again, "status", "--short") == ""
    (again / "d/file1").write_text("changed\n")
    git(again, "commit", "--quiet", "--all", "-m", "second")
    git(again, "repack", "-a", "-d", "--quiet")
    git(again, "checkout", "--quiet", "HEAD~1")
    assert (again / "d/file1").read_bytes() == content(1)
    git(again, "fsck", "--full", "--strict")


def test_reader_follows_a_log_whose_owner_changed(house: House) -> None:
    tree = house.active(lambda layer: (layer / "log").write_text("first\n"))
    os.chown(tree / "log", 7, 8)
    tail = subprocess.Popen(
        ["tail", "-n", "+1", "-f", "-s", "0.05", tree / "log"], stdout=subprocess.PIPE, text=True
    )
    assert tail.stdout is not None
    try:
        with tail.stdout as lines:
            assert lines.readline() == "first\n"
            with (tree / "log").open("a") as log:
                log.write("second\n")
            assert lines.readline() == "second\n"
    finally:
        tail.kill()
        tail.wait(TIMEOUT_S)


def test_changes_beside_writers_are_not_lost(tree: Tree) -> None:
    """Each file gets its owner, whenever its data is copied."""
    failed: list[BaseException] = []

    def write() -> None:
        try:
            for number in range(FILES):
                with (tree / f"d/file{number}").open("r+b") as file:
                    file.write(b"new")
        except OSError as error:
            failed.append(error)

    def own() -> None:
        for number in range(FILES):
            os.chown(tree / f"d/file{number}", number, 1)
            (tree / f"d/file{number}").chmod(0o600 | number)

    threads = [threading.Thread(target=it) for it in (own, write, own)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert not failed
    for number in range(FILES):
        found = (tree / f"d/file{number}").stat()
        assert (found.st_uid, found.st_mode & 0o7777) == (number, 0o600 | number)
        assert (tree / f"d/file{number}").read_bytes() == b"new" + content(number)[3:]


def test_fsync_of_a_file_whose_data_is_below(tree: Tree) -> None:
    with (tree / "big").open("rb") as file:
        os.chown(tree / "big", 7, 8)
        os.fsync(file.fileno())
        os.fdatasync(file.fileno())
    assert marked(tree) == ["big"]


def test_quota_holds_data_that_is_copied(house: House, tree: Tree) -> None:
    house.snapshots.set_quota(tree.key, size_bytes=256 * 1024)
    subprocess.run(["chown", "7:8", tree / "big", tree / "d/file1"], check=True, timeout=TIMEOUT_S)
    with (
        pytest.raises(OSError, match="quota") as caught,
        (tree / "big").open("r+b", buffering=0) as file,
    ):
        file.write(b"new")
    assert caught.value.errno == errno.EDQUOT
    assert (tree / "big").read_bytes() == BIG
    assert marked(tree) == ["big", "d/file1"]
    name = house.name()
    house.snapshots.commit(tree.key, name)
    assert (tree.upper / "big").read_bytes() == BIG


@pytest.mark.channel("handles of a dead worker")
@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
def test_next_worker_finds_where_the_data_is(own_house: House) -> None:
    tree = own_house.active(fill)
    for number in range(FILES):
        os.chown(tree / f"d/file{number}", 7, 8)
    inos = [(tree / f"d/file{number}").stat().st_ino for number in range(FILES)]
    with (
        (tree / "d/file20").open("rb", buffering=0) as reader,
        (tree / "d/file21").open("rb", buffering=0) as removed,
        (tree / "d/file22").open("rb", buffering=0) as written,
    ):
        assert reader.read(5) == removed.read(5)[:0] + content(20)[:5]
        (tree / "d/file21").unlink()
        own_house.kill_worker()
        own_house.worker()
        assert reader.read() == content(20)[5:]
        assert removed.read() == content(21)[5:]
        assert os.fstat(removed.fileno()).st_uid == 7
        with (tree / "d/file22").open("r+b") as writer:
            writer.write(b"new")
        assert written.read()[3:] == content(22)[3:]
        with (tree / "d/file20").open("r+b") as writer:
            writer.write(b"new")
    for number in range(FILES):
        if number == 21:
            continue
        path, data = tree / f"d/file{number}", content(number)
        assert path.read_bytes() == (b"new" + data[3:] if number in (20, 22) else data)
        assert (path.stat().st_uid, path.stat().st_ino) == (7, inos[number])
    assert "d/file20" not in marked(tree)
    assert_usage_is_a_walk(own_house, tree)
    own_house.snapshots.commit(tree.key, own_house.name())
    assert marked(tree) == []


STEPS = [("fsetxattr", 1), ("fsetxattr", 2), ("renameat2", 1), ("fchown", 1), ("ftruncate", 1)]


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
@pytest.mark.parametrize(("call", "when"), STEPS)
def test_change_is_whole_when_the_worker_dies(
    own_house: House, call: str, when: int, tmp_path: Path
) -> None:
    tree = own_house.active(fill)
    (tree / "d/file1").chmod(0o600)
    with killing_at(own_house, call, when, tmp_path / "calls"):
        os.chown(tree / "d/file9", 7, 8)
    assert marked(tree) == ["d/file1", "d/file9"]
    for _ in range(2):
        assert (tree / "d/file9").stat().st_uid == 7
        assert (tree / "d/file9").read_bytes() == content(9)
        drop_dentries()
    assert os.listdir(tree.upper.parent / "work/snapfs") == []
    assert_usage_is_a_walk(own_house, tree)


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
@pytest.mark.parametrize("call", ["wait", "renameat", "fsetxattr", "fchown"])
def test_data_is_whole_when_the_worker_dies_while_it_is_copied(
    own_house: House, call: str, tmp_path: Path
) -> None:
    if call == "wait":
        call = "sync_file_range" if order_of(own_house.root) is Order.WRITTEN else "fsync"
    tree = own_house.active(fill)
    os.chown(tree / "big", 7, 8)
    with (
        killing_at(own_house, call, 1, tmp_path / "calls"),
        (tree / "big").open("r+b") as writer,
    ):
        writer.write(b"new")
    for _ in range(2):
        assert (tree / "big").read_bytes() == b"new" + BIG[3:]
        assert (tree / "big").stat().st_uid == 7
        assert os.getxattr(tree / "big", "user.a") == b"1"
        drop_dentries()
    assert marked(tree) == []
    assert_usage_is_a_walk(own_house, tree)


def test_lane_without_the_option_goes_on_with_what_is_there(own_house: House) -> None:
    tree = own_house.active(fill)
    for number in range(10):
        os.chown(tree / f"d/file{number}", 7, 8)
    own_house.metacopy = False
    own_house.restart()
    (tree / "d/file20").chmod(0o600)
    assert marked(tree) == [f"d/file{number}" for number in range(10)]
    for number in range(10):
        assert (tree / f"d/file{number}").read_bytes() == content(number)
    (tree / "d/file1").write_bytes(b"new")
    (tree / "d/file2").chmod(0o600)
    assert "d/file1" not in marked(tree)
    own_house.snapshots.commit(tree.key, own_house.name())
    assert marked(tree) == []
    assert (tree.upper / "d/file2").read_bytes() == content(2)
