"""Real programs against a snapshot with a quota: EDQUOT, df, and never more than a request over."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from snapfs.model import Unbound
from snapfs.overlay.filecalls import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, fallocate
from snapfs.snapshots.quota import INODES_LABEL, SIZE_LABEL
from snapfs.snapshots.usage import measure
from tests.support.daemon import eventually
from tests.support.lanes import Fill, House, Tree

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.plain,
    pytest.mark.logs("lane.worker_died", "lane.worker_restarted", "lane.left_in_use"),
]

MIB = 1 << 20
LIMIT = 8 * MIB
REQUEST = MIB
"""The longest write that the kernel sends at once."""


def limited(house: House, *fills: Fill, **labels: int) -> Tree:
    parent = house.base_layers(*fills)
    key = house.name()
    names = {"size": SIZE_LABEL, "inodes": INODES_LABEL}
    house.snapshots.prepare(key, parent, {names[it]: str(value) for it, value in labels.items()})
    return Tree(house, key)


def refused(call: Callable[[], object]) -> bool:
    """Whether a call is refused for the quota; any other error is raised."""
    try:
        call()
    except OSError as error:
        if error.errno != errno.EDQUOT:
            raise
        return True
    return False


def used(tree: Tree) -> int:
    return measure(tree.upper).size_bytes


def fill_up(tree: Tree) -> None:
    """Leave no room for another block."""
    with (tree / "filler").open("wb", buffering=0) as file:
        for size in (MIB, 64 << 10, 4096):
            while not refused(lambda size=size: file.write(b"f" * size)):  # type: ignore[misc]
                pass


def lower(layer: Path) -> None:
    (layer / "big").write_bytes(os.urandom(6 * MIB))
    (layer / "small").write_bytes(b"s" * 100)
    (layer / "dir").mkdir()
    (layer / "dir" / "file").write_text("lower")


def test_dd_stops_at_the_quota(house: House) -> None:
    tree = limited(house, size=LIMIT)
    done = subprocess.run(
        ["dd", "if=/dev/urandom", f"of={tree / 'f'}", "bs=300K", "count=100"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Disk quota exceeded" in done.stderr
    assert LIMIT - REQUEST <= used(tree) <= LIMIT
    (tree / "f").unlink()
    (tree / "f").write_bytes(b"x" * 6 * MIB)


def test_direct_and_synchronous_writes_stop_at_the_quota(house: House) -> None:
    tree = limited(house, size=LIMIT)
    for flag in ("direct", "dsync"):
        done = subprocess.run(
            ["dd", "if=/dev/zero", f"of={tree / 'f'}", "bs=1M", "count=20", f"oflag={flag}"],
            capture_output=True,
            text=True,
        )
        assert "Disk quota exceeded" in done.stderr
        assert LIMIT - 2 * REQUEST <= used(tree) <= LIMIT


def test_parallel_writers_together_stop_at_the_quota(house: House) -> None:
    tree = limited(house, size=LIMIT)

    def write(number: int) -> None:
        with (tree / f"f{number}").open("wb", buffering=0) as file:
            while not refused(lambda: file.write(os.urandom(200_000))):
                pass

    writers = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert LIMIT - REQUEST <= used(tree) <= LIMIT + REQUEST


def test_what_has_its_blocks_can_be_written_again(house: House) -> None:
    tree = limited(house, size=LIMIT)
    fill_up(tree)
    with (tree / "filler").open("r+b", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        for at in range(0, size - size % MIB, MIB):
            assert os.pwrite(file.fileno(), b"g" * MIB, at) == MIB
        assert refused(lambda: os.pwrite(file.fileno(), b"g" * MIB, size))
        os.ftruncate(file.fileno(), size - MIB)
        assert os.pwrite(file.fileno(), b"g" * (MIB // 2), size) == MIB // 2
    assert used(tree) <= LIMIT


def test_sparse_files_take_what_they_have(house: House) -> None:
    tree = limited(house, size=LIMIT)
    with (tree / "f").open("wb", buffering=0) as file:
        os.ftruncate(file.fileno(), 1 << 30)
        os.pwrite(file.fileno(), b"end", 1 << 30)
        assert (tree / "f").stat().st_size == (1 << 30) + 3
        assert refused(lambda: [os.pwrite(file.fileno(), b"x" * MIB, n * MIB) for n in range(99)])
    assert used(tree) <= LIMIT


def test_names_directories_links_and_attributes_stop_at_the_quota(house: House) -> None:
    tree = limited(house, lower, size=LIMIT)
    fill_up(tree)
    assert refused(lambda: (tree / "d").mkdir())
    assert refused(lambda: (tree / "l").symlink_to("x" * 200))
    assert refused(lambda: (tree / "n").touch())
    assert refused(lambda: (tree / "small").chmod(0o600))  # a copy-up
    assert refused(lambda: os.setxattr(tree / "filler", "user.x", b"x" * 2000))
    assert refused(lambda: (tree / "small").unlink())  # a whiteout, and nothing given back
    assert used(tree) <= LIMIT
    (tree / "filler").rename(tree / "renamed")
    (tree / "renamed").unlink()
    (tree / "small").unlink()
    (tree / "d").mkdir()


def test_copy_up_of_what_does_not_fit_is_refused(house: House) -> None:
    tree = limited(house, lower, size=LIMIT)
    (tree / "filler").write_bytes(b"f" * 3 * MIB)
    (tree / "big").chmod(0o600)  # copies no data
    assert refused(lambda: (tree / "big").open("r+b"))
    assert (tree / "big").stat().st_mode & 0o777 == 0o600
    (tree / "big").write_bytes(b"cut")  # without its data it fits
    assert used(tree) <= LIMIT


def test_inodes_are_bounded(house: House) -> None:
    tree = limited(house, lower, inodes=6)
    for name in ("a", "b", "c", "d"):
        (tree / name).mkdir()
    (tree / "a" / "last").touch()
    for call in (
        lambda: (tree / "x").touch(),
        lambda: (tree / "x").mkdir(),
        lambda: (tree / "x").symlink_to("y"),
        lambda: os.mkfifo(tree / "x"),
        lambda: (tree / "small").chmod(0o600),
        lambda: (tree / "small").unlink(),
    ):
        assert refused(call)
    os.link(tree / "a" / "last", tree / "a" / "second")
    (tree / "a" / "last").write_bytes(b"x" * 3 * MIB)
    assert measure(tree.upper).inodes == 6
    (tree / "d").rmdir()
    (tree / "x").touch()
    assert measure(tree.upper).inodes == 6


def test_removed_files_count_while_they_are_open(house: House) -> None:
    tree = limited(house, size=LIMIT)
    with (tree / "f").open("wb", buffering=0) as file:
        file.write(b"x" * 5 * MIB)
        (tree / "f").unlink()
        assert used(tree) < MIB
        assert refused(lambda: (tree / "g").write_bytes(b"y" * 5 * MIB))
        (tree / "g").unlink()
        assert refused(lambda: [file.write(b"x" * MIB) for _ in range(9)])

    def fits() -> bool:
        return not refused(lambda: (tree / "g").write_bytes(b"y" * 5 * MIB))

    assert eventually(fits, what="room after the last close")


def test_mapped_writes_do_not_pass_the_quota(house: House) -> None:
    tree = limited(house, size=LIMIT)
    script = f"""
import mmap, os, sys
fd = os.open({os.fspath(tree / "f")!r}, os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, {16 * MIB})
mapped = mmap.mmap(fd, {16 * MIB})
for at in range(0, {16 * MIB}, 4096):
    mapped[at:at + 4096] = b"m" * 4096
try:
    mapped.flush()
except OSError as error:
    sys.exit(7)
"""
    done = subprocess.run(["python3", "-c", script])
    assert done.returncode == 7
    assert used(tree) <= LIMIT + REQUEST


@pytest.mark.channel("statfs of a snapshot")
def test_df_shows_the_quota(house: House) -> None:
    tree = limited(house, size=LIMIT, inodes=100)
    (tree / "f").write_bytes(b"x" * 3 * MIB)
    figures = os.statvfs(tree.path)
    assert figures.f_blocks * figures.f_frsize == LIMIT
    left = LIMIT - used(tree)
    assert left - figures.f_frsize < figures.f_bavail * figures.f_frsize <= left
    assert (figures.f_files, figures.f_ffree) == (100, 98)
    shown = subprocess.run(
        ["df", "-B1", "--output=size", tree.path], capture_output=True, text=True, check=True
    )
    assert shown.stdout.split()[-1] == str(LIMIT)
    other = house.active()
    assert os.statvfs(other.path).f_blocks == os.statvfs(house.root).f_blocks


@pytest.mark.channel("statfs of a snapshot")
def test_df_shows_what_is_used_of_a_quota_that_is_bigger_than_the_disk(house: House) -> None:
    disk = os.statvfs(house.root)
    limit = 2 * disk.f_blocks * disk.f_frsize
    tree = limited(house, size=limit)
    (tree / "f").write_bytes(b"x" * 3 * MIB)
    shown = subprocess.run(
        ["df", "-B1", "--output=size,used,avail", tree.path],
        capture_output=True,
        text=True,
        check=True,
    )
    size, taken, available = map(int, shown.stdout.split()[-3:])
    assert size == limit
    assert taken - disk.f_frsize < used(tree) <= taken
    assert available <= disk.f_blocks * disk.f_frsize


@pytest.mark.channel("statfs of a snapshot")
def test_raising_the_quota_helps_at_once_and_lowering_stops_growth(house: House) -> None:
    tree = limited(house, size=LIMIT)
    with (tree / "f").open("wb", buffering=0) as file:
        assert refused(lambda: [file.write(b"x" * MIB) for _ in range(9)])
        house.snapshots.set_quota(tree.key, size_bytes=2 * LIMIT)
        file.write(b"x" * 6 * MIB)
        house.snapshots.set_quota(tree.key, size_bytes=MIB)
        assert refused(lambda: file.write(b"x" * MIB))
        assert os.statvfs(tree.path).f_bavail == 0
        os.pwrite(file.fileno(), b"y" * MIB, 0)
        house.snapshots.set_quota(tree.key, size_bytes=0)
        file.write(b"x" * 20 * MIB)
    assert house.snapshots.quota(tree.key).size_bytes is None


@pytest.mark.channel("passthrough")
@pytest.mark.logs("quota.passed_by_open_files")
def test_files_open_for_writing_before_the_first_quota_are_named_until_they_are_closed(
    own_house: House,
) -> None:
    tree = own_house.active(lower)
    snapshots = own_house.snapshots
    (tree / "read").write_bytes(b"r" * 100)
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context((tree / "read").open("rb"))
        for name in "abcdef":
            stack.enter_context((tree / name).open("wb"))
        gone = stack.enter_context((tree / "gone").open("wb", buffering=0))
        (tree / "gone").unlink()
        assert snapshots.unbound(tree.key) == Unbound()  # there is no quota to pass
        snapshots.set_quota(tree.key, size_bytes=MIB)
        named = Unbound(7, ("/a", "/b", "/c", "/d", "/e"))
        assert snapshots.unbound(tree.key) == named
        own_house.kill_worker()
        own_house.worker()
        assert snapshots.unbound(tree.key).files == 7
        gone.write(b"g" * 2 * MIB)
        assert reader.read() == b"r" * 100
    eventually(lambda: snapshots.unbound(tree.key) == Unbound(), what="the files' end")
    with (tree / "a").open("wb") as again:
        assert snapshots.unbound(tree.key) == Unbound()
        assert refused(lambda: again.write(b"a" * 2 * MIB) and again.flush())
    snapshots.set_quota(tree.key, size_bytes=0, inodes=100)
    with (tree / "a").open("wb"):
        assert snapshots.unbound(tree.key) == Unbound()


def test_quota_and_usage_survive_the_worker(own_house: House) -> None:
    tree = limited(own_house, size=LIMIT)
    (tree / "f").write_bytes(b"x" * 5 * MIB)
    own_house.kill_worker()
    assert refused(lambda: (tree / "g").write_bytes(b"x" * 5 * MIB))
    assert used(tree) <= LIMIT
    own_house.restart()
    assert refused(lambda: (tree / "h").write_bytes(b"x" * 5 * MIB))
    assert used(tree) <= LIMIT


def filled(house: House, *, killing: bool) -> list[int]:
    """Write until not a byte fits, and say where each size of write was refused, and what is free.

    With `killing` a worker dies before, between, and after.
    """
    tree = limited(house, size=LIMIT, inodes=100)
    seen = []
    with (tree / "f").open("wb", buffering=0) as file:
        for size in (MIB // 2 + 7, 10_007, 1):
            if killing:
                before = os.statvfs(tree.path)
                house.kill_worker()
                assert os.statvfs(tree.path) == before
            while not refused(lambda size=size: file.write(b"x" * size)):  # type: ignore[misc]
                pass
            seen.append(file.tell())
        assert os.fstat(file.fileno()).st_size == file.tell()
    figures = os.statvfs(tree.path)
    assert used(tree) <= LIMIT < used(tree) + figures.f_frsize
    return [*seen, figures.f_bfree, used(tree)]


@pytest.mark.channel("statfs of a snapshot")
@pytest.mark.modes(Mode.PASSTHROUGH, Mode.NO_OPEN)
def test_quota_ends_at_the_same_byte_however_often_workers_are_killed(own_house: House) -> None:
    assert filled(own_house, killing=True) == filled(own_house, killing=False)


def test_quota_is_not_inherited(house: House) -> None:
    tree = limited(house, size=LIMIT)
    (tree / "f").write_bytes(b"x" * 5 * MIB)
    name = house.name()
    house.snapshots.commit(tree.key, name)
    child = house.on(name)
    (child / "g").write_bytes(b"y" * 12 * MIB)
    assert used(child) >= 12 * MIB


@pytest.mark.channel("fallocate")
def test_reserved_and_copied_space_stops_at_the_quota(house: House) -> None:
    tree = limited(house, lower, size=LIMIT)
    with (tree / "f").open("wb+", buffering=0) as file, (tree / "big").open("rb") as source:
        assert refused(lambda: fallocate(file.fileno(), 0, 0, LIMIT + MIB))
        fallocate(file.fileno(), 0, 0, LIMIT // 2)
        copy = partial(os.copy_file_range, source.fileno(), file.fileno(), 6 * MIB, 0)
        assert copy(0) > 0
        assert refused(lambda: [copy(offset) for offset in range(0, 10 * LIMIT, 6 * MIB)])
        assert used(tree) <= LIMIT
        fallocate(file.fileno(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, LIMIT)
        fallocate(file.fileno(), 0, 0, LIMIT // 2)
    assert used(tree) <= LIMIT


@pytest.mark.channel("O_TMPFILE")
def test_files_without_a_name_stop_at_the_quota(house: House) -> None:
    tree = limited(house, size=LIMIT, inodes=3)
    with open(os.open(tree.path, os.O_TMPFILE | os.O_RDWR), "wb", buffering=0) as file:
        assert refused(lambda: [file.write(b"x" * MIB) for _ in range(100)])
        (tree / "f").touch()
        assert refused(lambda: os.open(tree.path, os.O_TMPFILE | os.O_RDWR))
