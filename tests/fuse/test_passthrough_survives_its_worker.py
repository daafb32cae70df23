"""What is open past a worker goes on when that dies, and the next one goes on with it."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from snapfs.fuse.backing import BackingIds, Kind
from snapfs.fuse.channel import INCARNATION
from snapfs.fuse.incarnations import Incarnations
from snapfs.overlay import Tree, TreeSpec
from tests.support.daemon import eventually
from tests.support.lanes import House, bind_mount, drop_dentries

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.logs("lane.worker_died", "lane.worker_restarted", "lane.left_in_use"),
]

DEADLINE_S = 20.0
RESENT = 1 << 63
"""In the number of a request that the kernel sends again."""


def fill(layer: Path) -> None:
    (layer / "file").write_bytes(b"lower" * 1000)
    (layer / "other").write_bytes(b"other" * 1000)
    os.link(layer / "file", layer / "second name")


def test_open_files_go_on_and_are_opened_again_after_a_kill(own_house: House) -> None:
    tree = own_house.active(fill)
    (tree / "new").write_bytes(b"upper" * 1000)
    held = {name: os.open(tree / name, os.O_RDONLY) for name in ("file", "other", "new")}
    writer = os.open(tree / "new", os.O_RDWR)
    mapped = mmap.mmap(writer, 5000)
    for turn in range(3):
        own_house.kill_worker()
        mapped[0:5] = b"MAP%02d" % turn
        assert os.pread(held["new"], 5, 0) == b"MAP%02d" % turn
        assert os.pread(held["file"], 5, 0) == b"lower"
        for name in held:
            with (tree / name).open("rb") as again:
                assert again.read(5) == os.pread(held[name], 5, 0)
        with (tree / "new").open("r+b", buffering=0) as again:
            again.write(b"N")
        assert os.pread(held["new"], 1, 0) == b"N"
    mapped.close()
    for fd in (*held.values(), writer):
        os.close(fd)
    for name in held:
        (tree / name).open("r+b").close()


def test_copy_up_after_a_kill_leaves_readers_of_before_it_alone(own_house: House) -> None:
    tree = own_house.active(fill)
    fd = os.open(tree / "file", os.O_RDONLY)
    number = os.fstat(fd).st_ino
    own_house.kill_worker()
    with (tree / "file").open("r+b") as writer:
        writer.write(b"UPPER")
    assert os.pread(fd, 5, 0) == b"lower"
    for name in ("file", "second name"):
        assert (tree / name).read_bytes()[:5] == b"UPPER"
        assert (tree / name).stat().st_ino == number
    os.close(fd)
    assert (tree / "file").read_bytes()[:5] == b"UPPER"


def test_kill_after_a_copy_up_under_readers(own_house: House) -> None:
    tree = own_house.active(fill)
    old = os.open(tree / "file", os.O_RDONLY)
    with (tree / "file").open("r+b") as writer:
        writer.write(b"UPPER")
    new = os.open(tree / "file", os.O_RDWR)
    for _ in range(2):
        own_house.kill_worker()
        for name in ("file", "second name"):
            with (tree / name).open("r+b", buffering=0) as again:
                assert again.read(5) == b"UPPER"
        assert os.pread(old, 5, 0) == b"lower"
        assert os.pread(new, 5, 0) == b"UPPER"
        drop_dentries()
        assert (tree / "file").read_bytes()[:5] == b"UPPER"
    os.close(old)
    os.close(new)
    assert (tree / "file").read_bytes()[:5] == b"UPPER"


def test_ids_of_a_dead_worker_end_with_the_last_close(own_house: House) -> None:
    tree = own_house.active(fill)
    fd = os.open(tree / "file", os.O_RDONLY)
    (tree / "gone").write_bytes(b"x" * 1000)
    gone = os.open(tree / "gone", os.O_RDWR)
    (tree / "gone").unlink()
    own_house.kill_worker()
    assert own_house.worker().backing >= 2
    os.close(fd)
    os.close(gone)

    def ended() -> bool:
        drop_dentries()
        return own_house.worker().backing == 0

    eventually(ended, what="the end of the ids")


def test_program_that_writes_all_the_time_sees_no_error_through_kills(
    own_house: House, tmp_path: Path
) -> None:
    tree = own_house.active(fill)
    script = (
        "import os, sys\n"
        "for turn in range(300):\n"
        "    with open(sys.argv[1], 'ab', buffering=0) as log: log.write(b'%06d\\n' % turn)\n"
        "    assert open(sys.argv[2], 'rb').read(5) == b'lower'\n"
    )
    with bind_mount(tree.path, tmp_path / "container") as container:
        files = [container / "log", container / "file"]
        with subprocess.Popen([sys.executable, "-c", script, *files]) as program:
            for _ in range(2):
                threading.Event().wait(0.3)
                own_house.kill_worker()
                own_house.worker()
            assert program.wait(60) in (0, 1)
        lines = (container / "log").read_bytes().splitlines()
    assert lines == sorted(set(lines))


def test_adopted_worker_and_its_successor_go_on_with_the_ids(own_house: House) -> None:
    tree = own_house.active(fill)
    fd = os.open(tree / "file", os.O_RDONLY)
    own_house.restart()
    assert own_house.worker().backing >= 1
    own_house.kill_worker()
    assert (tree / "file").read_bytes()[:5] == b"lower"
    assert os.pread(fd, 5, 0) == b"lower"
    os.close(fd)


def test_counts_are_read_back_as_they_were_written() -> None:
    fd = os.memfd_create("journal")
    ids = BackingIds(-1, fd).opened
    for number in range(1, 3000):
        ids.add(1 << 63 | number, Kind.UPPER, number, 7, number)
        ids.enter(1 << 63 | number, True, 1, 0)
        ids.enter(1 << 63 | number, False, 1, 0)
    for number in range(1, 3000, 2):
        assert ids.remove(1 << 63 | number) == number
    again = BackingIds(-1, fd)
    assert len(again) == 1499
    for number in range(2, 3000, 2):
        entry = again.get(1 << 63 | number)
        assert entry == (1 << 63 | number, Kind.UPPER, number, 7, number, 2, 1, True)
    assert again.get(1 << 63 | 1) is None
    assert again.opened.total == 2 * 1499
    os.close(fd)


def test_request_that_was_counted_before_a_crash_is_not_counted_when_it_comes_again() -> None:
    fd = os.memfd_create("journal")
    ids = BackingIds(-1, fd).opened
    ids.add(5, Kind.UPPER, 1, 7, 5)
    assert ids.enter(5, True, 1, 100)
    again = BackingIds(-1, fd).opened
    assert not again.enter(5, True, 1, RESENT | 100)
    assert again.enter(5, False, 1, RESENT | 98)  # was read, and not counted
    assert again.leave(5, False, 102)
    third = BackingIds(-1, fd).opened
    assert not third.leave(5, False, RESENT | 102)
    found = third.find(5)
    assert found is not None
    assert found[5:7] == (1, 1)
    os.close(fd)


def test_journal_of_an_older_release_is_begun_anew() -> None:
    fd = os.memfd_create("journal")
    os.write(fd, b"\1" * 6400)
    ids = BackingIds(-1, fd)
    assert len(ids) == 0
    ids.opened.add(5, Kind.UPPER, 1, 7, 5)
    assert len(BackingIds(-1, fd)) == 1
    os.close(fd)


def test_lower_files_are_refused_to_writers_before_the_kernel_is_asked() -> None:
    fd = os.memfd_create("journal")
    ids = BackingIds(-1, fd)
    with pytest.raises(PermissionError):
        ids.enter(1, Kind.LOWER, lambda: fd, writing=True)
    with pytest.raises(OSError, match="read-only mount"):
        ids.enter(1, Kind.LOWER, lambda: fd, writing=False)  # not opened through a sealed layer
    assert len(ids) == 0
    os.close(fd)


def test_open_file_is_synced_and_cut_after_a_kill(own_house: House) -> None:
    tree = own_house.active(fill)
    (tree / "new").write_bytes(b"upper" * 1000)
    with (tree / "new").open("r+b", buffering=0) as writer, (tree / "file").open("rb") as reader:
        own_house.kill_worker()
        os.ftruncate(writer.fileno(), 7)
        os.pwrite(writer.fileno(), b"U", 0)
        os.fsync(writer.fileno())
        os.fdatasync(writer.fileno())
        os.fsync(reader.fileno())
        os.fchmod(writer.fileno(), 0o640)
        assert os.fstat(writer.fileno()).st_size == 7
        assert os.pread(writer.fileno(), 10, 0) == b"Upperup"
    (tree / "new").unlink()


def test_second_number_that_a_dead_worker_gave_out_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "lower").mkdir()
    fill(tmp_path / "lower")
    tree = Tree(TreeSpec(1, (tmp_path / "lower",), None, None))
    node = tree.lookup(tree.root, b"file")
    numbers = Incarnations(lambda ino: False)
    second = node.ino | INCARNATION
    numbers.forget(second, node, numbers.lookups(second, node))
    assert numbers.nodeid(node) == node.ino
    tree.close()
