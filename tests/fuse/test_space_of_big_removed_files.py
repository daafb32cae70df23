"""A disk that is nearly full: what a removed file held is there for who asks next."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
import trio.testing

from snapfs.fuse.gate import Gate
from snapfs.fuse.modes import Mode
from snapfs.fuse.trees import FREED_S, Shown
from snapfs.model import SnapshotId
from snapfs.overlay import Tree, TreeSpec
from snapfs.overlay.freeing import LET_GO_S
from tests.support import lanes
from tests.support.daemon import eventually
from tests.support.frozen_disk import own_disk

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.timeout(120)]
TURNS = 8


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with own_disk(tmp_path) as made:
        yield made


def room_bytes(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def reserved(fd: int, size_bytes: int) -> bool:
    try:
        os.posix_fallocate(fd, 0, size_bytes)
    except OSError as error:
        assert error.errno == errno.ENOSPC  # noqa: PT017
        return False
    return True


@pytest.mark.parametrize("mode", [Mode.PASSTHROUGH, Mode.NO_OPEN])
def test_space_of_a_removed_file_can_be_reserved(disk: Path, tmp_path: Path, mode: Mode) -> None:
    """As soon as the worker has heard that the kernel forgot it."""
    with lanes.house(tmp_path / "house", root=disk / "root", mode=mode) as house:
        tree = house.active()
        size_bytes = room_bytes(disk) * 3 // 4
        for turn in range(TURNS):
            path = tree / f"big{turn}"
            fd = os.open(path, os.O_CREAT | os.O_WRONLY)
            try:
                eventually(lambda fd=fd: reserved(fd, size_bytes), timeout_s=2, what="the space")
            finally:
                os.close(fd)
            path.unlink()


@pytest.mark.plain
def test_space_of_a_removed_file_is_there_for_who_writes_next(disk: Path, tmp_path: Path) -> None:
    with lanes.house(tmp_path / "house", root=disk / "root", mode=Mode.NO_OPEN) as house:
        tree = house.active()
        size_bytes = room_bytes(disk) * 19 // 20
        for turn in range(TURNS):
            path = tree / f"big{turn}"
            with path.open("wb") as file:  # each write is a request
                left = size_bytes
                while left > 0:
                    left -= file.write(b"x" * min(left, 1 << 20))
            path.unlink()


def took_s(change: Callable[[], object]) -> float:
    began_s = time.monotonic()
    change()
    return time.monotonic() - began_s


@pytest.mark.plain
@pytest.mark.parametrize("removed", [1, 2, 3])
def test_a_change_waits_for_what_was_removed_and_a_removal_does_not(
    disk: Path, tmp_path: Path, removed: int
) -> None:
    """The files are open, so they give no space; nobody says so to a worker of this lane."""
    with lanes.house(tmp_path / "house", root=disk / "root", mode=Mode.NO_OPEN) as house:
        tree = house.active()
        paths = [tree / f"big{number}" for number in range(removed)]
        for path in paths:
            path.write_bytes(b"x" * (2 << 20))
        with (disk / "filler").open("wb") as filler, ExitStack() as held:
            os.posix_fallocate(filler.fileno(), 0, room_bytes(disk) - (8 << 20))
            for path in paths:
                held.enter_context(path.open("rb"))
            for path in paths:
                assert took_s(path.unlink) < LET_GO_S * 0.8
            assert took_s((tree / "dir").mkdir) > LET_GO_S * 0.8
            assert took_s((tree / "dir" / "below").mkdir) < LET_GO_S * 0.8


@pytest.fixture
def shown(disk: Path) -> Iterator[Shown]:
    """A tree on the disk, as a session shows it."""
    for name in ("upper", "work"):
        (disk / name).mkdir()
    tree = Tree(TreeSpec(SnapshotId(1), (), disk / "upper", disk / "work"))
    try:
        yield Shown(tree, tree, Gate())
    finally:
        tree.close()


async def begin(shown: Shown, seen: list[str]) -> None:
    tree = await shown.begin()
    shown.end()
    assert tree is shown.tree
    seen.append("begun")


async def test_a_change_waits_for_space_that_it_may_need(
    shown: Shown, disk: Path, autojump_clock: trio.testing.MockClock
) -> None:
    assert isinstance(shown.tree, Tree)
    freeing, seen = shown.tree.inodes.freeing, list[str]()
    freeing.bytes = room_bytes(disk)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(begin, shown, seen)
        await trio.sleep(FREED_S / 2)
        assert seen == []
        freeing.bytes = 0
    assert seen == ["begun"]
    assert trio.current_time() < FREED_S


async def test_a_change_waits_for_no_space_where_there_is_enough(
    shown: Shown, autojump_clock: trio.testing.MockClock
) -> None:
    assert isinstance(shown.tree, Tree)
    shown.tree.inodes.freeing.bytes = 1 << 20
    began_s = trio.current_time()
    await begin(shown, [])
    assert trio.current_time() == began_s


async def test_a_change_does_not_wait_for_ever(
    shown: Shown, disk: Path, autojump_clock: trio.testing.MockClock
) -> None:
    assert isinstance(shown.tree, Tree)
    shown.tree.inodes.freeing.bytes = room_bytes(disk)
    began_s = trio.current_time()
    await begin(shown, [])
    assert trio.current_time() <= began_s + FREED_S * 1.01
