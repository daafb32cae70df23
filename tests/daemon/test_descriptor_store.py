"""Both processes die at once, and the service manager's store has what the next ones need."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import clear, eventually, processes_below
from tests.support.lanes import abort
from tests.support.manager import ManagedDaemon, Manager
from tests.support.writer import writing

pytestmark = [pytest.mark.root, pytest.mark.fuse]

PARTS = {f"main.{part}" for part in ("record", "fuse", "journal", "inflight", "places")}


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with Manager(tmp_path / "notify") as made:
        yield made
        abort(tmp_path)
        clear(tmp_path)


@pytest.fixture
def daemon(tmp_path: Path, manager: Manager) -> Iterator[ManagedDaemon]:
    made = ManagedDaemon(tmp_path, manager)
    made.start()
    yield made
    made.kill()


def prepared(daemon: ManagedDaemon, key: str) -> Path:
    daemon.run("snapshot", "prepare", key)
    target = daemon.base / f"at-{key}"
    target.mkdir()
    daemon.run("mount", key, target)
    return target


def kill_all(daemon: ManagedDaemon) -> None:
    """End control process and workers, as `systemctl kill -s KILL` does."""
    daemon.kill()
    for pid in processes_below(daemon.base):
        if b"snapfs.fuse.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)


def test_programs_notice_nothing_when_both_processes_are_killed_at_once(
    daemon: ManagedDaemon, manager: Manager
) -> None:
    target = prepared(daemon, "work")
    with (
        writing(daemon.base, target) as writer,
        (target / "kept open").open("w+b", buffering=0) as file,
    ):
        file.write(b"before")
        (target / "kept open").unlink()
        device = target.stat().st_dev
        for _ in range(2):
            kill_all(daemon)
            daemon.start()
            writer.must_go_on()
            assert os.pread(file.fileno(), 10, 0) == b"before"
            assert os.fstat(file.fileno()).st_size == 6
        assert target.stat().st_dev == device
        assert len(daemon.events("lane.resumed")) == 2
        assert set(manager.kept) == PARTS
    assert daemon.run("fsck").exit_code == 0


def test_worker_that_hangs_is_dead_before_its_mount_is_resumed(daemon: ManagedDaemon) -> None:
    target = prepared(daemon, "work")
    worker = daemon.worker_pid()
    with writing(daemon.base, target) as writer:
        os.kill(worker, signal.SIGSTOP)
        daemon.kill()
        daemon.start()
        writer.must_go_on()
        # It was left by its parent: whoever took it in waits for it when they like.
        eventually(lambda: not Path(f"/proc/{worker}").exists(), what="the end of the worker")
        assert len(daemon.events("lane.worker_ended")) == 1


def test_store_is_empty_after_a_stop_without_users(daemon: ManagedDaemon, manager: Manager) -> None:
    assert set(manager.kept) == PARTS
    daemon.stop()
    eventually(lambda: not manager.kept, what="an empty store")


def test_record_that_cannot_be_read_costs_a_new_mount_and_no_more(
    daemon: ManagedDaemon, manager: Manager
) -> None:
    kill_all(daemon)
    manager.put("main.record", b"{not a record")
    daemon.start()
    assert len(daemon.events("lane.not_taken_from_store")) == 1
    assert (prepared(daemon, "work") / "new").write_text("served") == 6
    daemon.stop()
