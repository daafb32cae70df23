"""The usage of a snapshot that is shown is its worker's count, and is what a walk finds."""

from __future__ import annotations

import mmap
import os
import subprocess
import threading
from pathlib import Path

import pytest

from snapfs.model import Committed, Usage
from snapfs.snapshots import counted
from snapfs.snapshots.usage import measure
from tests.support.daemon import eventually
from tests.support.lanes import House, Tree, bind_mount, drop_dentries

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.plain,
    pytest.mark.logs("lane.worker_died", "lane.worker_restarted", "lane.left_in_use"),
]


def fill(layer: Path) -> None:
    (layer / "file").write_bytes(b"lower" * 10_000)
    (layer / "dir" / "deep").mkdir(parents=True)
    (layer / "dir" / "deep" / "file").write_text("deep")
    os.link(layer / "dir" / "deep" / "file", layer / "link")


def counted_usage(house: House, tree: Tree) -> Usage:
    """The worker's own count, once it has one; the kernel may have let go of the tree."""

    def ask() -> Usage | None:
        list(tree.path.iterdir())
        return house.lane.usage(tree.id)

    found: Usage = eventually(ask, what="a count")
    return found


def assert_is_a_walk(house: House, tree: Tree) -> None:
    """Blocks move by themselves: the walks before and after the question must agree."""

    def still() -> tuple[Usage, Usage] | None:
        before, said, after = measure(tree.upper), counted_usage(house, tree), measure(tree.upper)
        return (said, after) if before == after else None

    said, walked = eventually(still, what="a layer that holds still")
    assert said == walked


def test_count_follows_what_programs_do(house: House) -> None:
    tree = house.active(fill)
    list(tree.path.iterdir())
    assert_is_a_walk(house, tree)
    script = """
        mkdir -p a/b && head -c 300000 /dev/urandom > a/b/f && cp -r dir copy && mv dir moved
        ln file hard && echo more >> link && rm file && : > a/b/empty && ln -s target sym
        truncate -s 10M a/sparse && tar cf all.tar moved a && rm -rf moved && mv a z
        setfattr -n user.big -v "$(head -c 3000 /dev/zero | tr '\\0' x)" z/b/f
    """
    for line in script.replace("&&", "\n").splitlines():
        if line.strip():
            subprocess.run(["bash", "-ec", line], cwd=tree.path, check=True)
            assert_is_a_walk(house, tree)
    assert house.snapshots.usage(tree.key) == measure(tree.upper)


def test_open_and_mapped_files_are_counted_as_they_grow(house: House) -> None:
    tree = house.active()
    with (tree / "f").open("w+b") as file:
        os.ftruncate(file.fileno(), 1 << 20)
        assert_is_a_walk(house, tree)
        with mmap.mmap(file.fileno(), 1 << 20) as mapped:
            mapped[: 1 << 19] = b"m" * (1 << 19)
            mapped.flush()
            assert_is_a_walk(house, tree)
        os.unlink(tree / "f")
        assert_is_a_walk(house, tree)
        os.pwrite(file.fileno(), b"x" * 500_000, 0)
        assert_is_a_walk(house, tree)
    assert_is_a_walk(house, tree)


def test_question_is_answered_while_writers_write(house: House) -> None:
    tree = house.active(fill)
    stop = threading.Event()

    def write(number: int) -> None:
        while not stop.is_set():
            path = tree / f"f{number}"
            path.write_bytes(os.urandom(200_000))
            path.rename(tree / f"g{number}")

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(50):
            assert counted_usage(house, tree).size_bytes >= 0
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert_is_a_walk(house, tree)


def test_commit_records_the_count_and_it_is_true(house: House) -> None:
    tree = house.active(fill)
    (tree / "file").write_bytes(b"x" * 100_000)
    (tree / "dir" / "new").write_text("new")
    (tree / "link").unlink()
    name = house.name()
    house.snapshots.commit(tree.key, name)
    found = house.snapshots.stat(name)
    assert isinstance(found, Committed)
    assert found.usage == measure(tree.upper)
    assert not [it for it in house.snapshots.fsck().problems if it.kind == "wrong-usage"]


def test_killed_worker_counts_again_and_nobody_is_told_wrong(
    own_house: House, tmp_path: Path
) -> None:
    tree = own_house.active(fill)
    with bind_mount(tree.path, tmp_path / "container") as container:
        subprocess.run(["cp", "-r", "/usr/lib/python3", container / "copy"], check=True)
        with (container / "open").open("wb") as file:
            file.write(b"x" * 100_000)
            file.flush()
            own_house.kill_worker()
            assert own_house.snapshots.usage(tree.key) == measure(tree.upper)
            (container / "after").write_bytes(b"y" * 10_000)
            os.rename(container / "copy", container / "moved")
        assert counted_usage(own_house, tree)
        assert_is_a_walk(own_house, tree)


@pytest.mark.channel("passthrough")
def test_files_that_the_kernel_writes_for_us_are_counted_as_they_grow(
    own_house: House, tmp_path: Path
) -> None:
    tree = own_house.active(fill)
    with bind_mount(tree.path, tmp_path / "container") as container:
        fd = os.open(container / "native", os.O_RDWR | os.O_CREAT)
        os.pwrite(fd, b"x" * 300_000, 0)
        assert_is_a_walk(own_house, tree)
        os.ftruncate(fd, 4 << 20)
        with mmap.mmap(fd, 4 << 20) as mapped:
            os.close(fd)
            mapped[1 << 20 : 2 << 20] = b"m" * (1 << 20)
            assert_is_a_walk(own_house, tree)
        fd = os.open(container / "native", os.O_RDWR)
        own_house.kill_worker()
        os.pwrite(fd, b"y" * (1 << 20), 2 << 20)
        for _ in range(3):
            assert own_house.snapshots.usage(tree.key) == measure(tree.upper)
        os.pwrite(fd, b"z" * (1 << 20), 3 << 20)
        assert own_house.snapshots.usage(tree.key) == measure(tree.upper)
        os.close(fd)
        assert_is_a_walk(own_house, tree)


def test_clean_close_leaves_the_count_until_the_next_opening(own_house: House) -> None:
    tree = own_house.active(fill)
    (tree / "file").write_bytes(b"x" * 100_000)
    (tree / "dir" / "deep" / "file").unlink()
    work = tree.upper.parent / "work"

    def left() -> Usage | None:
        drop_dentries()
        return counted.read(work)

    assert eventually(left, what="the record") == measure(tree.upper)
    assert own_house.lane.usage(tree.id) is None
    assert own_house.snapshots.usage(tree.key) == measure(tree.upper)
    (tree / "again").write_text("again")
    assert counted.read(work) is None
    assert_is_a_walk(own_house, tree)
    assert eventually(left, what="the record") == measure(tree.upper)
    own_house.restart()
    assert (tree / "again").read_text() == "again"
    assert counted.read(work) is None
    assert_is_a_walk(own_house, tree)


def test_layer_that_is_not_empty_is_counted_in_the_background(own_house: House) -> None:
    own_house.snapshots.prepare("filled")
    layer = own_house.layer(own_house.snapshots.stat("filled").id)
    fill(layer)
    tree = Tree(own_house, "filled")
    os.rename(tree / "dir", tree / "moved")
    assert counted_usage(own_house, tree)
    assert_is_a_walk(own_house, tree)
