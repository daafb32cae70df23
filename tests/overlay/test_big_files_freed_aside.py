"""What big removed files hold is freed by a thread: nobody waits for it who need not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from snapfs.overlay.freeing import BIG_BYTES, LET_GO_S, MOST_HELD, Freeing
from tests.overlay.conftest import Stack
from tests.support.daemon import eventually
from tests.support.frozen_disk import own_disk

Build = Callable[..., Stack]
pytestmark = pytest.mark.root
FILES, LARGE_BYTES = 64, 96 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with own_disk(tmp_path) as made:
        yield made


@pytest.fixture
def place(disk: Path) -> Iterator[int]:
    fd = os.open(disk, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def make(path: Path, size_bytes: int) -> None:
    path.write_bytes(b"x" * size_bytes)


def is_over(freeing: Freeing) -> bool:
    return freeing.bytes == 0


def test_who_removes_a_file_does_not_free_it(disk: Path, place: int) -> None:
    """Their own processor time says who does."""

    def used_s(freeing: Freeing | None) -> float:
        make(disk / "big", LARGE_BYTES)
        os.sync()
        began_s = time.thread_time()
        with nullcontext() if freeing is None else freeing.aside(place, b"big"):
            os.unlink(disk / "big")
        return time.thread_time() - began_s

    freeing = Freeing()
    for _ in range(3):
        assert used_s(freeing) < used_s(None) / 3
        eventually(lambda: is_over(freeing), what="the end of the file")


def test_its_space_is_back_when_nothing_is_held_any_more(disk: Path, place: int) -> None:
    freeing = Freeing()
    make(disk / "big", 8 * BIG_BYTES)
    os.sync()
    before = os.statvfs(disk)
    with freeing.aside(place, b"big"):
        os.unlink(disk / "big")
    eventually(lambda: is_over(freeing), what="the end of the file")
    after = os.statvfs(disk)
    assert (after.f_bfree - before.f_bfree) * after.f_frsize >= 8 * BIG_BYTES
    assert after.f_ffree == before.f_ffree + 1


@pytest.mark.parametrize("what", ["small", "absent", "directory", "link", "second name"])
def test_nothing_else_is_held(disk: Path, place: int, what: str) -> None:
    freeing = Freeing()
    make(disk / "big", 2 * BIG_BYTES)
    make(disk / "small", BIG_BYTES // 2)
    (disk / "directory").mkdir()
    (disk / "link").symlink_to("big")
    os.link(disk / "big", disk / "second name")
    descriptors = len(os.listdir("/proc/self/fd"))
    with freeing.aside(place, what.encode()):
        pass
    assert freeing.bytes == 0
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_more_files_than_are_held_are_freed_by_who_removes_them(disk: Path, place: int) -> None:
    freeing = Freeing()
    descriptors = len(os.listdir("/proc/self/fd"))
    for turn in range(MOST_HELD // FILES + 2):
        for number in range(FILES):
            make(disk / f"{turn}-{number}", BIG_BYTES)
            with freeing.aside(place, b"%d-%d" % (turn, number)):
                os.unlink(disk / f"{turn}-{number}")
            assert len(os.listdir("/proc/self/fd")) <= descriptors + MOST_HELD + 2
    eventually(lambda: is_over(freeing), what="the end of the files")
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_it_may_be_needed_only_where_little_else_is_free(disk: Path, place: int) -> None:
    freeing = Freeing()
    room = os.statvfs(disk)
    assert not freeing.may_be_needed(place)
    freeing.bytes = room.f_bavail * room.f_frsize // 4
    assert not freeing.may_be_needed(place)
    freeing.bytes = room.f_bavail * room.f_frsize
    assert freeing.may_be_needed(place)


def test_what_was_just_removed_is_expected_for_a_moment(disk: Path, place: int) -> None:
    freeing = Freeing()
    blocks = BIG_BYTES // 512
    freeing.expect(blocks - 1)
    assert freeing.coming == 0
    freeing.expect(blocks)
    assert freeing.coming == BIG_BYTES
    time.sleep(LET_GO_S * 1.1)
    assert freeing.coming == 0
    make(disk / "big", BIG_BYTES)
    freeing.expect(blocks)
    with freeing.aside(place, b"big"):
        os.unlink(disk / "big")
    eventually(lambda: is_over(freeing), what="the end of the file")
    assert freeing.coming == 0


def test_a_removed_file_of_a_tree_leaves_nothing_when_it_is_forgotten(stack: Build) -> None:
    tree = stack({"lower": b"x" * (2 * BIG_BYTES)})
    tree.files.create(b"upper", 0o644, b"x" * (2 * BIG_BYTES))
    tree.files.write(b"lower", 0, b"copied")
    for path in (b"upper", b"lower"):
        tree.files.unlink(path)
    tree.files.forget()
    assert tree.leftovers() == []
    eventually(lambda: is_over(tree.tree.inodes.freeing), what="the end of the files")
