"""Usage and quota where blocks move by themselves: each file system in an image of its own."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from snapfs.snapshots.quota import SIZE_LABEL
from snapfs.snapshots.usage import measure
from tests.support import lanes
from tests.support.lanes import House, Tree
from tests.support.overlay.kernel import image_fs, tmpfs

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(240)]

MIB = 1 << 20
LIMIT = 16 * MIB
DEADLINE_S = 60.0


@pytest.fixture(scope="module", params=["ext4", "xfs", "btrfs", "tmpfs"])
def other(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    """A house whose root is on that file system."""
    base = tmp_path_factory.mktemp("other")
    kind = request.param
    with (
        tmpfs(base / kind) if kind == "tmpfs" else image_fs(base, kind) as mounted,
        lanes.house(base / "house", root=mounted / "root") as made,
    ):
        yield made


def limited(house: House) -> Tree:
    key = house.name()
    house.snapshots.prepare(key, "", {SIZE_LABEL: str(LIMIT)})
    return Tree(house, key)


def assert_is_a_walk(house: House, tree: Tree) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline_s:
        list(tree.path.iterdir())
        before, said, after = measure(tree.upper), house.lane.usage(tree.id), measure(tree.upper)
        if before == after and said is not None:
            assert said == after
            return
    raise AssertionError("the layer does not hold still")


def test_dd_stops_at_the_quota_and_goes_on_after_a_removal(other: House) -> None:
    tree = limited(other)
    for name in ("first", "second"):
        done = subprocess.run(
            ["dd", "if=/dev/urandom", f"of={tree / name}", "bs=100K", "count=1000"],
            capture_output=True,
            text=True,
        )
        assert "Disk quota exceeded" in done.stderr
        assert LIMIT - 2 * MIB <= measure(tree.upper).size_bytes <= LIMIT + MIB
        assert_is_a_walk(other, tree)
        (tree / name).unlink()
        assert_is_a_walk(other, tree)


def test_many_files_written_at_once_stop_at_the_quota(other: House) -> None:
    tree = limited(other)
    errors = set()

    def write(number: int) -> None:
        directory = tree / f"d{number}"
        try:
            directory.mkdir()
            for count in range(2000):
                (directory / f"f{count}").write_bytes(os.urandom(20_000))
        except OSError as error:
            errors.add(error.errno)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(DEADLINE_S)
    assert errors == {errno.EDQUOT}
    assert LIMIT - 2 * MIB <= measure(tree.upper).size_bytes <= LIMIT + MIB
    assert_is_a_walk(other, tree)
    subprocess.run(["rm", "-rf", tree / "d0", tree / "d1"], check=True)
    assert_is_a_walk(other, tree)


def test_allocated_space_can_be_written(other: House) -> None:
    tree = limited(other)
    with (tree / "f").open("w+b", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, 15 * MIB)
        with pytest.raises(OSError, match="quota"):
            os.posix_fallocate(file.fileno(), 15 * MIB, 15 * MIB)
        for at in range(0, 15 * MIB, MIB):
            assert os.pwrite(file.fileno(), b"x" * MIB, at) == MIB
        assert_is_a_walk(other, tree)
    assert measure(tree.upper).size_bytes <= LIMIT + MIB


def test_a_growing_file_is_counted_until_it_is_quiet(other: House) -> None:
    """On xfs space is taken in advance, and given back by the commit that measures."""
    key = other.name()
    other.snapshots.prepare(key)
    tree = Tree(other, key)
    for _ in range(20):
        with (tree / "log").open("ab", buffering=0) as file:
            file.write(b"line" * 25_000)
        assert_is_a_walk(other, tree)
    name = other.name()
    other.snapshots.commit(key, name)
    assert other.snapshots.usage(name) == measure(tree.upper)
    assert measure(tree.upper).size_bytes < 20 * 100_000 + MIB
    assert not [it for it in other.snapshots.fsck().problems if it.kind == "wrong-usage"]
