"""Both processes die at once, and the service manager's store has what the next ones need."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from snapfs.model import Unavailable
from snapfs.service import connection
from snapfs.service.client import Client
from snapfs.service.connection import CONNECT_S
from snapfs.service.records import DaemonRecord
from tests.support.daemon import SNAPFS, clear, eventually, processes_below
from tests.support.lanes import abort
from tests.support.manager import ManagedDaemon, Manager
from tests.support.writer import writing

pytestmark = [pytest.mark.root, pytest.mark.fuse]

DEADLINE_S = 60.0

QUEUE = "socket"
"""What callers wait at."""
PARTS = {f"main.{part}" for part in ("record", "fuse", "journal", "inflight", "places")} | {QUEUE}


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


def test_store_has_nothing_of_lanes_after_a_stop_without_users(
    daemon: ManagedDaemon, manager: Manager
) -> None:
    assert set(manager.kept) == PARTS
    daemon.stop()
    eventually(lambda: set(manager.kept) == {QUEUE}, what="a store without lanes")


def test_record_that_cannot_be_read_costs_a_new_mount_and_no_more(
    daemon: ManagedDaemon, manager: Manager
) -> None:
    kill_all(daemon)
    manager.put("main.record", b"{not a record")
    daemon.start()
    assert len(daemon.events("lane.not_taken_from_store")) == 1
    assert (prepared(daemon, "work") / "new").write_text("served") == 6
    daemon.stop()


def has_caller(manager: Manager) -> bool:
    """Say whether somebody waits at what the store has, whom nobody has accepted."""
    (fd,) = manager.kept[QUEUE]
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))


def command(daemon: ManagedDaemon, *arguments: str) -> bytes:
    """Run `snapfs ARGUMENTS` in a process of its own and return what it prints."""
    call = [SNAPFS, *arguments, "--address", daemon.address]
    return subprocess.run(call, check=True, capture_output=True, timeout=DEADLINE_S).stdout


def ask(client: Client) -> DaemonRecord:
    """Call over a connection that was lost just now: gRPC may find that out by the call itself, of
    which it cannot say then whether it was sent."""
    with suppress(Unavailable):
        return client.status()
    return client.status()


def by_kill(daemon: ManagedDaemon) -> None:
    daemon.kill()


def by_stop(daemon: ManagedDaemon) -> None:
    daemon.stop()


def test_something_else_in_the_place_of_the_queue_keeps_no_service_from_starting(
    daemon: ManagedDaemon, manager: Manager
) -> None:
    daemon.stop()
    manager.put(QUEUE, b"what somebody else left")
    daemon.start()
    with Client(daemon.address) as client:
        assert client.status().pid == daemon.pid
    assert len(daemon.events("server.queue_not_taken")) == 1


@pytest.mark.parametrize("end", [by_kill, by_stop])
def test_call_made_while_no_control_process_lives_waits_for_the_next(
    daemon: ManagedDaemon, manager: Manager, end: Callable[[ManagedDaemon], None]
) -> None:
    """Also over a connection that was there before, which goes on when the next one dies too."""
    with Client(daemon.address) as client, ThreadPoolExecutor(2) as pool:
        assert client.status().pid == daemon.pid
        for _ in range(2):
            end(daemon)
            asked = pool.submit(ask, client), pool.submit(command, daemon, "status", "--json")
            eventually(lambda: has_caller(manager), what="a caller")
            daemon.start()
            assert asked[0].result(DEADLINE_S).pid == daemon.pid
            assert json.loads(asked[1].result(DEADLINE_S))["pid"] == daemon.pid
            key = f"after {daemon.pid}"
            client.prepare(key)
            assert key in [it.snapshot.name for it in client.list()]


def test_no_call_fails_while_the_service_begins_anew(daemon: ManagedDaemon) -> None:
    over = threading.Event()

    def call() -> int:
        calls = 0
        while not over.is_set():
            assert json.loads(command(daemon, "status", "--json"))["pid"] == daemon.pid
            calls += 1
        return calls

    with ThreadPoolExecutor(1) as pool:
        calling = pool.submit(call)
        command(daemon, "upgrade")
        over.set()
        assert calling.result(DEADLINE_S)
    assert len(daemon.events("daemon.begins_anew")) == 1


def test_caller_waits_for_longer_than_a_connection_may_take_to_come_about(
    daemon: ManagedDaemon, manager: Manager
) -> None:
    daemon.kill()
    with Client(daemon.address) as client, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(lambda: list(client.list()))
        with pytest.raises(TimeoutError):
            asked.result(CONNECT_S + 1)
        daemon.start()
        assert asked.result(DEADLINE_S) == []


def test_caller_for_whom_no_service_comes_is_told_what_to_look_at(
    daemon: ManagedDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.kill()
    monkeypatch.setattr(connection, "NEXT_S", 0.1)
    with (
        Client(daemon.address) as client,
        pytest.raises(Unavailable, match=r"the next one does not answer yet; .*`systemctl status"),
    ):
        client.status()
