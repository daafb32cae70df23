"""A session ends while its lane reads for somebody from a disk that does not answer."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from snapfs.fuse import mounts
from snapfs.fuse.modes import Mode
from tests.support import lanes
from tests.support.daemon import eventually
from tests.support.lanes import House, Tree
from tests.support.recorded_disk import RecordedDisk, attached, small_disk

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.timeout(240)]

DEADLINE_S = 40.0
SIZE = 4 << 20
READ = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
print(flush=True)
sys.stdin.read(1)
try:
    print(len(os.pread(fd, 4096, 2 << 20)), flush=True)
except OSError as error:
    print(error.strerror, flush=True)
"""


@dataclass(frozen=True, slots=True)
class Place:
    """A lane without opens whose layers lie on a disk that can be made to answer nothing."""

    house: House
    tree: Tree
    disk: RecordedDisk

    def file_of_layer(self) -> Path:
        snapshots = self.house.snapshots
        parent = snapshots.stat(snapshots.stat(self.tree.key).parent)
        return self.house.layer(parent.id) / "file"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    disk = tmp_path / "disk"
    disk.mkdir()
    with attached(*small_disk(tmp_path)) as recorded:
        subprocess.run(["mount", "-o", "noatime", recorded.device, disk], check=True, timeout=60)
        try:
            with lanes.house(tmp_path / "house", Mode.NO_OPEN, root=disk / "root") as house:
                tree = house.active(lambda layer: (layer / "file").write_bytes(b"A" * SIZE))
                yield Place(house, tree, recorded)
        finally:
            # Nobody holds a file of it any more: else this is refused.
            eventually(lambda: _unmount(disk), timeout_s=DEADLINE_S, what="the end of its users")


def _unmount(disk: Path) -> bool:
    return subprocess.run(["umount", disk], capture_output=True).returncode == 0


def forget_data(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


@contextmanager
def reader(place: Place) -> Iterator[subprocess.Popen[str]]:
    """A process that has a file open of which nobody has the data."""
    path = place.tree / "file"
    with path.open("rb", buffering=0) as file:
        assert file.read(10) == b"A" * 10
    forget_data(path)
    forget_data(place.file_of_layer())
    with subprocess.Popen(
        [sys.executable, "-c", READ, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert said_by(process) == ""
            yield process
        finally:
            process.kill()


def said_by(process: subprocess.Popen[str]) -> str:
    """Return what a reader says next, within the test's deadline."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


@contextmanager
def waiting(place: Place, process: subprocess.Popen[str]) -> Iterator[None]:
    """Have a reader wait for the disk, by a thread of the lane's, in the block."""
    assert process.stdin is not None
    before = Counter(place.house.worker().answered)["READ"]
    with place.disk.silent():
        process.stdin.write("x")
        process.stdin.flush()
        eventually(lambda: Counter(place.house.worker().answered)["READ"] > before, what="the read")
        yield


def has_ended(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


@pytest.mark.logs("lane.unmounted")
def test_who_reads_is_freed_by_a_forced_unmount_and_the_worker_ends(place: Place) -> None:
    worker = place.house.worker().pid
    with reader(place) as process:
        with waiting(place, process):
            mounts.unmount(place.house.mountpoint, mounts.MNT_FORCE | mounts.MNT_DETACH)
            assert said_by(process) in (
                os.strerror(errno.ECONNABORTED),
                os.strerror(errno.ENOTCONN),
            )
        eventually(lambda: has_ended(worker), timeout_s=DEADLINE_S, what="the worker's end")


@pytest.mark.logs("lane.unmounted")
def test_who_reads_past_a_lazy_unmount_gets_his_data(place: Place) -> None:
    worker = place.house.worker().pid
    with reader(place) as process:
        with waiting(place, process):
            mounts.unmount(place.house.mountpoint, mounts.MNT_DETACH)
            assert place.house.worker().pid == worker
        assert said_by(process) == "4096"
    eventually(lambda: has_ended(worker), timeout_s=DEADLINE_S, what="the worker's end")


@pytest.mark.logs("lane.left_in_use")
def test_stop_waits_for_no_read_and_the_reader_gets_his_data(place: Place) -> None:
    worker = place.house.worker().pid
    with reader(place) as process:
        with waiting(place, process):
            place.house.stop()
            assert not has_ended(worker)
        assert said_by(process) == "4096"
    eventually(lambda: has_ended(worker), timeout_s=DEADLINE_S, what="the worker's end")


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
def test_read_in_a_killed_worker_s_hands_is_done_by_the_next(place: Place) -> None:
    worker = place.house.worker().pid
    with reader(place) as process:
        with waiting(place, process):
            os.kill(worker, signal.SIGKILL)
        assert said_by(process) == "4096"
    assert place.house.worker().pid != worker
