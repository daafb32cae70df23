"""What a worker had in hand when it died happens exactly once, as the program sees it."""

from __future__ import annotations

import ctypes
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapfs.fuse.backing import BackingIds, Kind
from snapfs.fuse.channel import RESENT
from snapfs.fuse.inflight import FIRST_SLOTS, RECORD_BYTES, InFlight, State
from snapfs.fuse.modes import Mode
from tests.support import lanes
from tests.support.daemon import eventually
from tests.support.dying_worker import workers_die_to_order
from tests.support.lanes import House, Tree

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.logs("lane.worker_died", "lane.worker_restarted", "lane.left_in_use"),
]
RENAME_EXCHANGE, RENAME_WHITEOUT = 2, 4
POINTS = ("intended", "done")


def fill(layer: Path) -> None:
    for name in ("file", "target", "linked"):
        (layer / name).write_text(f"lower {name}")
    (layer / "dir" / "deep").mkdir(parents=True)
    (layer / "dir" / "deep" / "file").write_text("deep")
    (layer / "empty").mkdir()
    (layer / "bare").mkdir()
    (layer / "shared").mkdir()
    (layer / "shared").chmod(0o2755)  # what is made there is made by Python
    os.setxattr(layer / "file", "user.old", b"old")


class Dying:
    """A house whose workers die to order."""

    def __init__(self, house: House, order: Path) -> None:
        self.house = house
        self.order = order

    def during(self, point: str, change: Callable[[], object]) -> object:
        """Do one thing, in which the worker dies; return what came of it."""
        before = self.house.worker().pid
        self.order.write_text(point)
        result = change()
        assert not self.order.exists(), f"no worker came to {point!r}"
        assert self.house.worker().pid != before
        return result


@pytest.fixture(scope="module")
def dying(tmp_path_factory: pytest.TempPathFactory, mode: Mode) -> Iterator[Dying]:
    base = tmp_path_factory.mktemp("dying")
    with (
        pytest.MonkeyPatch.context() as patch,
        workers_die_to_order(base / "order", patch),
        lanes.house(base / "house", mode) as made,
    ):
        yield Dying(made, base / "order")


def rename(old: Path, new: Path, flags: int = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, bytes(old), -100, bytes(new), flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(old))


def create(tree: Tree) -> Callable[[], object]:
    def change() -> None:
        new = tree / "shared" / "new"
        with new.open("xb") as file:
            file.write(b"written")
        assert new.read_bytes() == b"written"
        assert new.stat().st_mode & 0o777 == 0o666 & ~_umask()

    return change


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def mknod(tree: Tree) -> Callable[[], object]:
    def change() -> None:
        os.mkfifo(tree / "pipe")
        assert stat.S_ISFIFO((tree / "pipe").stat().st_mode)

    return change


def mkdir(tree: Tree) -> Callable[[], object]:
    def change() -> None:
        (tree / "made").mkdir()
        assert os.listdir(tree / "made") == []
        (tree / "made" / "in it").touch()

    return change


def symlink(tree: Tree) -> Callable[[], object]:
    def change() -> None:
        (tree / "symlink").symlink_to("somewhere")
        assert os.readlink(tree / "symlink") == "somewhere"

    return change


def link(tree: Tree) -> Callable[[], object]:
    def change() -> None:
        os.link(tree / "linked", tree / "second")
        assert (tree / "second").stat().st_nlink == 2
        assert (tree / "second").samefile(tree / "linked")

    return change


def unlink(tree: Tree) -> Callable[[], object]:
    def change() -> None:
        (tree / "file").unlink()
        assert "file" not in os.listdir(tree.path)

    return change


def rmdir(tree: Tree) -> Callable[[], object]:
    def change() -> None:
        (tree / "empty").rmdir()
        assert "empty" not in os.listdir(tree.path)

    return change


def move(tree: Tree) -> Callable[[], object]:
    def change() -> None:
        number = (tree / "file").stat().st_ino
        rename(tree / "file", tree / "target")
        assert (tree / "target").read_text() == "lower file"
        assert (tree / "target").stat().st_ino == number
        assert "file" not in os.listdir(tree.path)

    return change


def move_directory(tree: Tree) -> Callable[[], object]:
    def change() -> None:
        rename(tree / "dir", tree / "bare" / "moved")
        assert (tree / "bare" / "moved" / "deep" / "file").read_text() == "deep"
        assert "dir" not in os.listdir(tree.path)

    return change


def replace_directory(tree: Tree) -> Callable[[], object]:
    def change() -> None:
        rename(tree / "dir", tree / "empty")
        assert (tree / "empty" / "deep" / "file").read_text() == "deep"

    return change


def exchange(tree: Tree) -> Callable[[], object]:
    def change() -> None:
        rename(tree / "file", tree / "target", RENAME_EXCHANGE)
        assert (tree / "file").read_text() == "lower target"
        assert (tree / "target").read_text() == "lower file"

    return change


def move_leaving_a_device(tree: Tree) -> Callable[[], object]:
    def change() -> None:
        rename(tree / "file", tree / "moved", RENAME_WHITEOUT)
        left = (tree / "file").lstat()
        assert stat.S_ISCHR(left.st_mode)
        assert left.st_rdev == 0
        assert (tree / "moved").read_text() == "lower file"

    return change


def new_attribute(tree: Tree) -> Callable[[], object]:
    def change() -> None:
        os.setxattr(tree / "file", "user.new", b"1", os.XATTR_CREATE)
        assert os.getxattr(tree / "file", "user.new") == b"1"

    return change


def remove_attribute(tree: Tree) -> Callable[[], object]:
    def change() -> None:
        os.removexattr(tree / "file", "user.old")
        assert os.listxattr(tree / "file") == []

    return change


CHANGES = (
    create,
    mknod,
    mkdir,
    symlink,
    link,
    unlink,
    rmdir,
    move,
    move_directory,
    replace_directory,
    exchange,
    move_leaving_a_device,
    new_attribute,
    remove_attribute,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda it: it.__name__)
def test_change_happens_once_wherever_its_worker_dies(
    dying: Dying, change: Callable[[Tree], Callable[[], object]]
) -> None:
    for point in POINTS:
        tree = dying.house.active(fill)
        dying.during(point, change(tree))


def test_change_that_had_not_begun_is_made_by_the_next_worker(dying: Dying) -> None:
    for change in (create, move):
        dying.during("begun", change(dying.house.active(fill)))


def test_nameless_file_is_made_once_wherever_its_worker_dies(dying: Dying) -> None:
    for point in ("begun", "done"):
        tree = dying.house.active(fill)

        def change(tree: Tree = tree) -> None:
            fd = os.open(tree.path, os.O_TMPFILE | os.O_RDWR, 0o600)
            os.write(fd, b"nameless")
            os.link(f"/proc/self/fd/{fd}", tree / "named", src_dir_fd=fd, follow_symlinks=True)
            os.close(fd)
            assert (tree / "named").read_text() == "nameless"

        dying.during(point, change)


def test_file_is_emptied_once_and_keeps_what_another_wrote_since(dying: Dying) -> None:
    tree = dying.house.active(fill)
    other = os.open(tree / "new", os.O_RDWR | os.O_CREAT)
    os.write(other, b"old and long")

    def write() -> None:
        eventually(lambda: not dying.order.exists(), what="the worker's death")
        os.pwrite(other, b"kept", 0)

    def change() -> int:
        writer.start()
        return os.open(tree / "new", os.O_WRONLY | os.O_TRUNC)

    writer = threading.Thread(target=write)
    fd = dying.during("counted", change)
    writer.join(10.0)
    assert (tree / "new").read_bytes() == b"kept"
    assert isinstance(fd, int)
    os.close(fd)
    os.close(other)


def test_open_and_release_are_counted_once_wherever_their_worker_dies(dying: Dying) -> None:
    tree = dying.house.active(fill)
    (tree / "new").write_text("new")
    before = dying.house.worker().backing
    for name in ("file", "new"):
        for _ in range(2):
            fd = dying.during("counted", lambda name=name: os.open(tree / name, os.O_RDONLY))
            assert isinstance(fd, int)
            assert os.pread(fd, 5, 0) in (b"lower", b"new")
            second = os.open(tree / name, os.O_RDONLY)
            os.close(fd)
            assert os.pread(second, 5, 0) in (b"lower", b"new")
            os.close(second)
    (tree / "new").write_text("again")
    assert dying.house.worker().backing <= before + 2


def test_records_are_found_by_the_next_worker_and_freed_by_the_answer() -> None:
    fd = os.memfd_create("inflight")
    number = 0
    journal = InFlight(fd, lambda: number)
    for number in range(2, 40_000, 2):
        with journal.request() as once:
            once.intend(number + 1, 7)
    assert len(journal) == 1
    number = 50_002
    once = journal.request()
    once.intend(1, 2)
    once.did(5)
    number = 50_004
    journal.request().intend(3, 4)
    found = InFlight(fd, lambda: number)
    number = 50_002 | RESENT
    note = found.request().earlier
    assert note is not None
    assert (note.state, note.first, note.second) == (State.DONE, 5, 2)
    number = 50_004 | RESENT
    note = found.request().earlier
    assert note is not None
    assert (note.state, note.first, note.second) == (State.INTENDED, 3, 4)
    number = 50_006 | RESENT
    assert found.request().earlier is None
    os.close(fd)


def test_journal_grows_with_what_is_in_flight() -> None:
    fd = os.memfd_create("inflight")
    number = 0
    journal = InFlight(fd, lambda: number)
    for number in range(2, 10_002, 2):
        journal.request().intend(number)
    assert len(list(journal.records())) == 5000
    again = InFlight(fd, lambda: number | RESENT)
    assert again.earlier(number | RESENT) is not None
    assert os.fstat(fd).st_size >= 5000 * RECORD_BYTES
    os.close(fd)


def test_record_waits_with_its_request_however_long_and_goes_with_its_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fd = os.memfd_create("inflight")
    number = 10
    journal = InFlight(fd, lambda: number)
    journal.request().did(7)
    found = InFlight(fd, lambda: number)
    began_s = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: began_s + 3600.0)
    number = 12
    with found.request() as other:
        other.intend()
    number = 10 | RESENT
    with found.request() as once:
        assert once.earlier is not None
        assert (once.earlier.state, once.earlier.first) == (State.DONE, 7)
        again = InFlight(fd, lambda: number).earlier(number)
        assert again == once.earlier, "a worker that dies too leaves it to the next"
    number = 14
    with found.request() as other:
        other.intend()
    assert [unique for unique, _ in found.records()] == [14]
    os.close(fd)


def test_oldest_record_that_was_left_makes_room() -> None:
    fd = os.memfd_create("inflight")
    numbers = iter(range(2, 2 * FIRST_SLOTS + 4, 2))
    journal = InFlight(fd, lambda: next(numbers))
    for _ in range(FIRST_SLOTS - 1):  # one is the fast lane's
        journal.request().intend()
    found = InFlight(fd, lambda: next(numbers))
    found.request().intend()
    assert found.earlier(2 | RESENT) is None
    assert found.earlier(4 | RESENT) is not None
    assert os.fstat(fd).st_size == FIRST_SLOTS * RECORD_BYTES
    os.close(fd)


def test_count_is_told_by_the_number_of_its_request() -> None:
    fd = os.memfd_create("journal")
    number = 10
    ids = BackingIds(-1, fd, number=lambda: number)
    ids.enter(1, Kind.CACHED, lambda: fd, writing=True)
    again = BackingIds(-1, fd, number=lambda: number)
    number = 10 | RESENT
    again.enter(1, Kind.CACHED, lambda: fd, writing=True)
    entry = again.get(1)
    assert entry is not None
    assert (entry.opens, entry.writers) == (1, 1)
    number = 12 | RESENT
    assert again.enter(1, Kind.CACHED, lambda: fd, writing=True).opens == 2
    os.close(fd)
