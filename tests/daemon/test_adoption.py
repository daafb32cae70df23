"""`snapfs serve` is killed or stopped under running containers, and the next one goes on."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from snapfs.fuse.seat import LaneState
from snapfs.fuse.supervisor import LaneStatus
from snapfs.reporting import lane_warnings
from tests.support.daemon import RunningDaemon, clear, eventually, mounts_below, processes_below
from tests.support.writer import writing

pytestmark = [pytest.mark.root, pytest.mark.fuse]


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    clear(tmp_path)


def mount(daemon: RunningDaemon, key: str, name: str) -> Path:
    target = daemon.base / name
    target.mkdir()
    daemon.run("mount", key, target)
    return target


def prepared(daemon: RunningDaemon, key: str) -> Path:
    daemon.run("snapshot", "prepare", key)
    return mount(daemon, key, f"at-{key}")


def assert_coherent(one: Path, other: Path) -> None:
    """What is written through one mount is seen at once through another that had cached it."""
    assert one.stat().st_dev == other.stat().st_dev
    for writing_to, reading_from in ((one, other), (other, one)):
        (writing_to / "shared").write_text("first")
        assert (reading_from / "shared").read_text() == "first"
        (writing_to / "shared").write_text("second, longer")
        assert (reading_from / "shared").read_text() == "second, longer"
        (writing_to / "shared").unlink()
        assert not (reading_from / "shared").exists()


def test_a_kill_under_a_writer_is_not_noticed_and_the_next_service_goes_on(base: Path) -> None:
    daemon = RunningDaemon(base)
    daemon.start()
    target = prepared(daemon, "work")
    worker, device = daemon.worker_pid(), target.stat().st_dev
    with writing(base, target) as writer:
        for _ in range(3):
            daemon.kill()
            writer.must_go_on()
            daemon.start()
            assert daemon.worker_pid() == worker
            writer.must_go_on()
        assert len(daemon.events("lane.adopted")) == 3
        assert not daemon.events("lane.stale_mount_cleared")
        assert target.stat().st_dev == device

        again = mount(daemon, "work", "again")
        assert (again / "current").exists()
        assert_coherent(target, again)
        other = prepared(daemon, "other")
        (other / "file").write_text("other")
        daemon.run("umount", other)
        daemon.run("snapshot", "commit", "other", "other-1")
        daemon.run("snapshot", "prepare", "on-it", "--parent", "other-1")
        assert (mount(daemon, "on-it", "at-on-it") / "file").read_text() == "other"
    assert (again / "log").read_bytes() == (target / "log").read_bytes()
    daemon.run("snapshot", "commit", "work", "done")
    for at in (target, again, base / "at-on-it"):
        subprocess.run(["umount", at], check=True)
    assert (mount(daemon, "done", "at-done") / "log").stat().st_size % 9 == 0
    daemon.run("umount", base / "at-done")
    assert daemon.stop() == 0
    assert mounts_below(base) == []
    eventually(lambda: not processes_below(base), what="the worker's end")


def test_a_stop_under_a_writer_is_not_noticed_and_the_next_service_goes_on(base: Path) -> None:
    daemon = RunningDaemon(base)
    daemon.start()
    target = prepared(daemon, "work")
    worker = daemon.worker_pid()
    with writing(base, target) as writer:
        assert daemon.stop() == 0
        assert str(target) in daemon.events("lane.left_in_use")[0]
        writer.must_go_on()
        daemon.start()
        assert daemon.worker_pid() == worker
        assert_coherent(target, mount(daemon, "work", "again"))
        writer.must_go_on()
    daemon.run("umount", base / "again")
    daemon.run("umount", target)
    assert daemon.stop() == 0
    assert mounts_below(base) == []


def test_an_idle_lane_of_a_killed_service_is_adopted_and_ended_by_the_next(base: Path) -> None:
    daemon = RunningDaemon(base)
    daemon.start()
    worker = daemon.worker_pid()
    daemon.kill()
    daemon.start()
    assert daemon.worker_pid() == worker
    assert mounts_below(base) == [str(daemon.lane)]
    assert daemon.stop() == 0
    assert mounts_below(base) == []
    assert not list((daemon.state / "lanes").iterdir())
    eventually(lambda: worker not in processes_below(base), what="the worker's end")


def test_an_adopted_worker_that_is_killed_is_replaced(base: Path) -> None:
    daemon = RunningDaemon(base)
    daemon.start()
    target = prepared(daemon, "work")
    worker = daemon.worker_pid()
    daemon.kill()
    daemon.start()
    os.kill(worker, signal.SIGKILL)
    (target / "file").write_text("by its successor")
    eventually(lambda: daemon.json("status")["lanes"][0]["restarts"] == 1, what="a restart")
    daemon.run("umount", target)
    assert daemon.stop() == 0


def test_the_next_service_leaves_the_living_workers_reader_slot_alone(base: Path) -> None:
    daemon = RunningDaemon(base)
    daemon.start()
    prepared(daemon, "work")
    worker = daemon.worker_pid()
    assert worker in reader_pids(daemon)
    dead = daemon.pid
    daemon.kill()
    daemon.start()
    for number in range(3):
        (prepared(daemon, f"after-{number}") / "file").write_text("seen")
    assert worker in reader_pids(daemon)
    assert dead not in reader_pids(daemon)
    for key in ("work", "after-0", "after-1", "after-2"):
        daemon.run("umount", base / f"at-{key}")
    assert daemon.stop() == 0


def reader_pids(daemon: RunningDaemon) -> set[int]:
    with lmdb.open(str(daemon.root / "metadata"), readonly=True, max_dbs=1) as env:
        lines = env.readers().splitlines()[1:]
        return {int(line.split()[0]) for line in lines}


def test_a_worker_of_an_older_release_is_named_in_the_warnings() -> None:
    status = LaneStatus("main", Path("/m"), LaneState.SERVING, 7, 0, None, "0.0.1")
    (warning,) = lane_warnings(status)
    assert "lane main: worker 7 is of version 0.0.1" in warning
