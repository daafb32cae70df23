"""A layer that is committed never changes again, whoever still has its files open."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapfs.fuse.seat import LaneState
from snapfs.model import FailedPrecondition, Unavailable
from tests.support import lanes
from tests.support.daemon import eventually
from tests.support.lanes import House, bind_mount

pytestmark = [pytest.mark.fuse, pytest.mark.root]

DEADLINE_S = 20.0


def fill(layer: Path) -> None:
    (layer / "file").write_bytes(b"lower")
    (layer / "dir").mkdir()


@pytest.mark.parametrize("way", ["descriptor", "mapping"])
def test_commit_is_refused_while_a_file_may_be_written_past_us(house: House, way: str) -> None:
    tree = house.active(fill)
    (tree / "dir" / "open").write_bytes(b"12345")
    file = (tree / "dir" / "open").open("r+b", buffering=0)
    mapped = mmap.mmap(file.fileno(), 5) if way == "mapping" else None
    if mapped is not None:
        file.close()
    with pytest.raises(FailedPrecondition, match=r"/dir/open; close"):
        house.snapshots.commit(tree.key, house.name())
    if mapped is None:
        os.pwrite(file.fileno(), b"after", 0)
        file.close()
    else:
        mapped[0:5] = b"after"
        mapped.close()
    (tree / "new").touch()
    name = house.name()
    house.snapshots.commit(tree.key, name)
    assert (house.on(name) / "dir" / "open").read_bytes() == b"after"


def test_commit_just_after_the_last_close_goes_through(house: House) -> None:
    for _ in range(5):
        tree = house.active(fill)
        files = [(tree / "dir" / str(number)).open("wb") for number in range(100)]
        for file in files:
            file.write(b"x")
            file.close()
        name = house.name()
        house.snapshots.commit(tree.key, name)
        assert len(os.listdir(house.on(name) / "dir")) == 100


def test_removed_file_that_is_still_written_is_in_no_layer(house: House) -> None:
    tree = house.active(fill)
    with (tree / "gone").open("wb", buffering=0) as file:
        (tree / "gone").unlink()
        name = house.name()
        house.snapshots.commit(tree.key, name)
        file.write(b"to nowhere")
    assert sorted(os.listdir(house.on(name).path)) == ["dir", "file"]


def test_reader_of_a_committed_file_reads_on_and_cannot_write(house: House, tmp_path: Path) -> None:
    tree = house.active(fill)
    (tree / "new").write_bytes(b"committed")
    with bind_mount(tree.path, tmp_path / "held") as held:
        fd = os.open(held / "new", os.O_RDONLY)
        name = house.name()
        house.snapshots.commit(tree.key, name)
        assert os.pread(fd, 100, 0) == b"committed"
        for again in (held / "new", Path(f"/proc/self/fd/{fd}")):
            with pytest.raises(OSError, match="Read-only"):
                os.open(again, os.O_RDWR)
        os.close(fd)
    assert (tree.upper / "new").read_bytes() == b"committed"


def test_open_that_waits_for_a_commit_is_refused_after_it(house: House, tmp_path: Path) -> None:
    tree = house.active(fill)
    (tree / "new").write_bytes(b"committed")
    seen: list[str] = []

    def write(path: Path) -> None:
        try:
            path.write_bytes(b"changed")
        except OSError as error:
            seen.append(error.strerror)

    with bind_mount(tree.path, tmp_path / "held") as held:
        house.lane.freeze(tree.id, timeout_s=5)
        writer = threading.Thread(target=write, args=(held / "new",))
        writer.start()
        assert (held / "new").read_bytes() == b"committed"
        house.lane.drop(tree.id)
        writer.join(DEADLINE_S)
    assert seen == ["Read-only file system"]
    assert (tree.upper / "new").read_bytes() == b"committed"


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
def test_writers_of_a_dead_worker_are_not_overlooked(own_house: House) -> None:
    tree = own_house.active(fill)
    with (tree / "file").open("r+b", buffering=0) as file:
        own_house.kill_worker()
        own_house.worker()  # which nobody has asked for this snapshot
        with pytest.raises(FailedPrecondition, match="close what is open"):
            own_house.snapshots.commit(tree.key, "done")
        file.write(b"UPPER")

    def committed() -> bool:
        try:
            own_house.snapshots.commit(tree.key, "done")
        except FailedPrecondition:
            return False
        return True

    eventually(committed, what="the commit")
    assert (own_house.on("done") / "file").read_bytes() == b"UPPER"


# Successors of the aborted worker may be tried before it is seen that the mount has gone.
@pytest.mark.logs("lane.unmounted", "lane.worker_died", "lane.worker_restarted")
@pytest.mark.logs("lane.restart_failed")
@pytest.mark.parametrize("way", ["descriptor", "mapping"])
def test_commit_is_refused_while_an_aborted_mount_has_left_a_writer(
    own_house: House, way: str
) -> None:
    tree = own_house.active(fill)
    (tree / "dir" / "open").write_bytes(b"12345")
    (tree / "other").write_bytes(b"12345")
    file = (tree / "dir" / "open").open("r+b", buffering=0)
    mapped = mmap.mmap(file.fileno(), 5) if way == "mapping" else None
    if mapped is not None:
        file.close()
    aborted = own_house.lane
    lanes.abort(own_house.root.parent)
    eventually(lambda: aborted.state is LaneState.UNMOUNTED, what="the end of the mount")
    with pytest.raises(Unavailable, match="its mount has ended"):
        own_house.snapshots.commit(tree.key, own_house.name())
    own_house.restart()
    with (tree / "other").open("r+b") as writer:
        writer.write(b"again")
    with pytest.raises(FailedPrecondition, match=r"/dir/open; close"):
        own_house.snapshots.commit(tree.key, own_house.name())
    if mapped is None:
        os.pwrite(file.fileno(), b"after", 0)
        file.close()
    else:
        mapped[0:5] = b"after"
        mapped.close()
    name = own_house.name()
    own_house.snapshots.commit(tree.key, name)
    assert (own_house.on(name) / "dir" / "open").read_bytes() == b"after"


_HOLDING = """
import mmap, os, sys
file = open(sys.argv[1], "r+b", buffering=0)
if sys.argv[2] == "mapping":
    kept = mmap.mmap(file.fileno(), 5)
    file.close()
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def held_elsewhere(path: Path, way: str) -> Iterator[int]:
    """Give a process in a mount name space of its own that may write a file."""
    command = ["unshare", "--mount", sys.executable, "-c", _HOLDING, path, way]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        holder.stdout.readline()
        yield holder.pid
        holder.stdin.close()


@pytest.mark.logs("lane.unmounted", "lane.worker_died", "lane.worker_restarted")
@pytest.mark.logs("lane.restart_failed")
@pytest.mark.parametrize("way", ["descriptor", "mapping"])
@pytest.mark.parametrize("is_dead", [False, True], ids=["living", "dead"])
def test_who_may_write_a_file_in_another_name_space_is_named(
    own_house: House, way: str, *, is_dead: bool
) -> None:
    tree = own_house.active(fill)
    (tree / "dir" / "open").write_bytes(b"12345")
    with (
        held_elsewhere(tree / "dir" / "open", way) as holder,
        held_elsewhere(own_house.active(fill) / "file", way) as other,
    ):
        if is_dead:
            aborted = own_house.lane
            lanes.abort(own_house.root.parent)
            eventually(lambda: aborted.state is LaneState.UNMOUNTED, what="the end of the mount")
            own_house.restart()
        with pytest.raises(FailedPrecondition) as refused:
            own_house.snapshots.commit(tree.key, own_house.name())
        told = str(refused.value)
        assert f"snapshot {tree.key!r}: open for writing: /dir/open; close what is open" in told
        assert f"process {holder} ({sys.executable} -c" in told
        assert f"process {other} " not in told
    own_house.snapshots.commit(tree.key, own_house.name())
