"""A lane's start, stop and what it finds at its mount point; nothing hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from snapfs.fuse import mounts
from snapfs.fuse.lanemount import clear_stale
from snapfs.fuse.seat import LaneState
from snapfs.fuse.supervisor import Lane
from snapfs.model import FailedPrecondition, SnapfsError, SnapshotId, Unavailable
from tests.support.daemon import eventually, processes_below
from tests.support.lanes import House

pytestmark = [pytest.mark.fuse, pytest.mark.root]


def fill(layer: Path) -> None:
    (layer / "file").write_text("lower")


def test_status_tells_of_the_worker(own_house: House) -> None:
    status = own_house.lane.status()
    assert status.serving
    assert status.state is LaneState.SERVING
    assert status.worker is not None
    assert status.worker.pid == status.pid
    assert own_house.lane.mountpoint(SnapshotId(7)) == own_house.mountpoint / "7"


def test_mount_is_typed_and_may_run_set_id_programs_and_devices(own_house: House) -> None:
    (found,) = mounts.mounted_at(own_house.mountpoint)
    assert (found.type, found.source) == ("fuse.snapfs", f"snapfs:{own_house.mountpoint}")
    line = next(it for it in Path("/proc/mounts").read_text().splitlines() if found.path in it)
    options = line.split()[3].split(",")
    assert {"rw", "default_permissions", "allow_other"} <= set(options)
    assert not {"nosuid", "nodev", "noexec"} & set(options)


def test_mount_may_read_ahead_and_keep_dirty_pages(own_house: House) -> None:
    (found,) = mounts.mounted_at(own_house.mountpoint)
    tuned = Path(f"/sys/class/bdi/{found.device}")
    assert (tuned / "read_ahead_kb").read_text() == "4096\n"
    assert (tuned / "max_ratio").read_text() == "40\n"
    assert (tuned / "strict_limit").read_text() == "0\n"


def test_stop_leaves_nothing_and_start_begins_anew(own_house: House) -> None:
    tree = own_house.active(fill)
    assert (tree / "file").read_text() == "lower"
    own_house.stop()
    own_house.stop()
    assert not mounts.mounted_at(own_house.mountpoint)
    assert not processes_below(own_house.base)
    assert own_house.lane.status().state is LaneState.STOPPED
    own_house.start()
    assert (tree / "file").read_text() == "lower"


def test_second_start_is_refused(own_house: House) -> None:
    with pytest.raises(FailedPrecondition, match="stop it first"):
        own_house.start()


@pytest.mark.logs("lane.left_in_use")
def test_stop_leaves_a_busy_mount_until_its_user_has_gone(own_house: House) -> None:
    tree = own_house.active(fill)
    pid = own_house.worker().pid
    with (tree / "file").open() as file:
        began = time.monotonic()
        own_house.stop()
        assert time.monotonic() - began < 10
        assert mounts.mounted_at(own_house.mountpoint)
        assert file.read() == "lower"
    eventually(lambda: pid not in processes_below(own_house.base), what="the worker's end")
    assert not mounts.mounted_at(own_house.mountpoint)
    assert not list(own_house.door.parent.iterdir())


@pytest.mark.logs("lane.worker_hangs")
def test_stop_does_not_hang_on_a_worker_that_does(own_house: House) -> None:
    tree = own_house.active(fill)
    with (tree / "file").open("w+") as file:
        file.write("x")
        file.flush()
        os.kill(own_house.worker().pid, signal.SIGSTOP)
        began = time.monotonic()
        own_house.lane.stop(timeout_s=4)
        assert time.monotonic() - began < 10
        with pytest.raises(OSError, match="not connected"):
            os.fstat(file.fileno())


def test_calls_to_a_worker_that_hangs_end_at_their_deadline(own_house: House) -> None:
    tree = own_house.active(fill)
    pid = own_house.worker().pid
    os.kill(pid, signal.SIGSTOP)
    try:
        assert not own_house.lane.status(timeout_s=0.2).serving
        with pytest.raises(SnapfsError, match="did not answer in time"):
            own_house.lane.freeze(tree.id, timeout_s=0.3)
    finally:
        os.kill(pid, signal.SIGCONT)
    (tree / "file").write_text("not frozen")


@pytest.mark.logs("lane.unmounted")
def test_lane_that_somebody_unmounts_says_so_and_starts_no_worker(own_house: House) -> None:
    mounts.unmount(own_house.mountpoint)
    status = eventually(
        lambda: (s := own_house.lane.status()).state is LaneState.UNMOUNTED and s, what="the state"
    )
    assert not status.serving
    with pytest.raises(SnapfsError, match="its mount has ended"):
        own_house.lane.freeze(SnapshotId(1), timeout_s=1)
    own_house.stop()
    own_house.start()
    assert own_house.lane.status().serving


def test_calls_before_the_start_do_nothing(tmp_path: Path) -> None:
    lane = Lane("idle", tmp_path / "mnt", tmp_path / "root", door=tmp_path / "door.sock")
    lane.freeze(SnapshotId(1), timeout_s=1)
    lane.thaw(SnapshotId(1))
    lane.drop(SnapshotId(1))
    lane.stop(timeout_s=1)
    assert lane.status().state is LaneState.STOPPED


def test_start_without_a_root_fails_and_leaves_nothing(tmp_path: Path) -> None:
    lane = Lane("bad", tmp_path / "mnt", tmp_path / "no-such-root", door=tmp_path / "door.sock")
    with pytest.raises(Unavailable, match="its log says why"):
        lane.start(timeout_s=20)
    assert not mounts.mounted_at(tmp_path / "mnt")
    assert not processes_below(tmp_path)
    assert lane.status().state is LaneState.STOPPED


@pytest.mark.logs("lane.stale_mount_cleared")
def test_stale_mount_of_a_dead_predecessor_is_cleared(own_house: House) -> None:
    """The predecessor dies with everything it had: its connection ends, its mount stays."""
    own_house.active(fill)
    pid = own_house.worker().pid
    orphan = own_house.base / "orphan"
    subprocess.run(
        [sys.executable, "-c", ORPHAN, orphan], check=True, cwd=Path(__file__).parent.parent.parent
    )
    assert mounts.mounted_at(orphan)
    clear_stale(orphan)
    assert not mounts.mounted_at(orphan)
    assert own_house.worker().pid == pid


ORPHAN = """
import sys
from pathlib import Path
from snapfs.fuse import handover
path = Path(sys.argv[1])
path.mkdir()
handover.connect(path, source="snapfs:orphan", timeout_s=5)
"""


@pytest.mark.logs("lane.stale_mount_cleared")
def test_start_takes_the_place_of_a_stale_mount(own_house: House) -> None:
    own_house.stop()
    subprocess.run(
        [sys.executable, "-c", ORPHAN.replace("path.mkdir()", ""), own_house.mountpoint],
        check=True,
        cwd=Path(__file__).parent.parent.parent,
    )
    own_house.start()
    assert (own_house.active(fill) / "file").read_text() == "lower"


def test_other_file_systems_at_the_mount_point_are_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "mnt"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", target], check=True)
    try:
        with pytest.raises(FailedPrecondition, match="tmpfs is mounted here"):
            Lane("test", target, tmp_path / "root", door=tmp_path / "door.sock").start(timeout_s=5)
        clear_stale(target)
        assert [it.type for it in mounts.mounted_at(target)] == ["tmpfs"]
    finally:
        mounts.unmount(target)


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted", "lane.restart_failed")
def test_stop_while_a_worker_is_being_restarted(own_house: House) -> None:
    for delay_s in (0.0, 0.1, 0.3):
        own_house.worker()
        os.kill(own_house.worker().pid, signal.SIGKILL)
        threading.Event().wait(delay_s)
        own_house.stop()
        assert not mounts.mounted_at(own_house.mountpoint)
        eventually(lambda: not processes_below(own_house.base), what="the end of all workers")
        own_house.start()
