"""`snapfs serve` as a process: ready, stopped, killed, refused, watched."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.daemon import (
    RunningDaemon,
    clear,
    eventually,
    mounts_below,
    processes_below,
    running,
)

pytestmark = [pytest.mark.root, pytest.mark.fuse]


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    clear(tmp_path)


@pytest.fixture
def manager(base: Path) -> Iterator[tuple[socket.socket, dict[str, str]]]:
    """A service manager's socket, and the environment that points to it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(base / "notify"))
        sock.settimeout(20)
        yield sock, {"NOTIFY_SOCKET": str(base / "notify")}


def health(daemon: RunningDaemon) -> int:
    with grpc.insecure_channel(f"unix:{daemon.address}") as channel:
        request = health_pb2.HealthCheckRequest()
        return int(health_pb2_grpc.HealthStub(channel).Check(request, timeout=10).status)


def mount(daemon: RunningDaemon, key: str) -> Path:
    """Prepare an active snapshot and mount it beside the daemon's directories."""
    target = daemon.base / f"at-{key}"
    target.mkdir(exist_ok=True)
    daemon.run("snapshot", "prepare", key)
    daemon.run("mount", key, target)
    return target


def test_a_ready_service_is_mounted_answers_and_ends_with_nothing_left(base: Path) -> None:
    daemon = RunningDaemon(base)
    daemon.start()
    assert mounts_below(base) == [str(daemon.lane)]
    assert stat.S_IMODE(daemon.address.stat().st_mode) == 0o600
    assert health(daemon) == health_pb2.HealthCheckResponse.SERVING
    assert daemon.stop() == 0
    assert mounts_below(base) == []
    assert not daemon.address.exists()
    eventually(lambda: not processes_below(base), what="the worker's end")


def test_every_line_of_a_json_log_is_json_the_workers_too(base: Path) -> None:
    daemon = RunningDaemon(base, arguments=["--log-format", "json"])
    daemon.ready_mark = '"event": "daemon.ready"'
    daemon.start()
    mount(daemon, "work")
    daemon.run("umount", base / "at-work")
    assert daemon.stop() == 0
    lines = [json.loads(line) for line in daemon.log.read_text().splitlines()]
    assert {"daemon.ready", "lane.tree_opened", "daemon.stopped"} <= {it["event"] for it in lines}
    assert {it["lane"] for it in lines if it["event"] == "lane.tree_opened"} == {"main"}


def test_snapshots_survive_a_restart(base: Path) -> None:
    daemon = RunningDaemon(base)
    daemon.start()
    target = mount(daemon, "work")
    (target / "file").write_text("kept")
    daemon.run("umount", target)
    assert daemon.stop(signal.SIGINT) == 0
    daemon.start()
    daemon.run("mount", "work", target)
    assert (target / "file").read_text() == "kept"
    daemon.run("umount", target)
    assert daemon.stop(signal.SIGHUP) == 0
    assert mounts_below(base) == []


def test_what_is_in_use_is_served_after_a_stop_until_it_is_let_go(base: Path) -> None:
    daemon = RunningDaemon(base)
    daemon.start()
    target = mount(daemon, "work")
    (target / "file").write_text("before")
    assert daemon.stop() == 0
    assert mounts_below(base) == [str(daemon.lane), str(target)]
    assert str(target) in daemon.events("lane.left_in_use")[0]
    assert (target / "file").read_text() == "before"
    (target / "file").write_text("after")
    assert (target / "file").read_text() == "after"
    subprocess.run(["umount", target], check=True)
    eventually(lambda: not processes_below(base), what="the worker's end")
    assert mounts_below(base) == []
    assert not list((daemon.state / "lanes").iterdir())


def test_a_mount_that_outlived_a_restart_is_still_known_and_ended(base: Path) -> None:
    daemon = RunningDaemon(base)
    daemon.start()
    target = mount(daemon, "work")
    (target / "file").write_text("x")
    worker = daemon.worker_pid()
    assert daemon.stop() == 0
    daemon.start()
    assert daemon.json("snapshot", "info", "work")["mounted_at"] == [str(target)]
    daemon.run("umount", target)
    assert mounts_below(base) == [str(daemon.lane)]
    assert daemon.worker_pid() == worker
    assert daemon.stop() == 0
    eventually(lambda: not processes_below(base), what="the worker's end")
    assert mounts_below(base) == []


def test_the_mount_and_socket_of_a_predecessor_that_died_with_its_worker_are_cleared(
    base: Path,
) -> None:
    daemon = RunningDaemon(base)
    daemon.start()
    daemon.run("snapshot", "prepare", "work")
    worker = daemon.worker_pid()
    daemon.kill()
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: not processes_below(base), what="the worker's end")
    assert mounts_below(base) == [str(daemon.lane)]
    daemon.start()
    assert daemon.events("lane.stale_mount_cleared")
    assert mounts_below(base) == [str(daemon.lane)]
    assert daemon.json("snapshot", "info", "work")["kind"] == "active"
    assert daemon.stop() == 0


def test_a_killed_worker_is_replaced_under_the_mount(base: Path) -> None:
    with running(base) as daemon:
        target = mount(daemon, "work")
        (target / "file").write_text("x")
        first = daemon.worker_pid()
        os.kill(first, signal.SIGKILL)
        eventually(lambda: daemon.json("status")["lanes"][0]["restarts"] == 1, what="a restart")
        assert daemon.worker_pid() != first
        assert (target / "file").read_text() == "x"
        assert daemon.json("status")["lanes"][0]["state"] == "serving"
        daemon.run("umount", target)


@contextmanager
def listening(sock: socket.socket) -> Iterator[None]:
    """Take what the manager is sent meanwhile: with its queue full each word costs a second."""
    over = threading.Event()

    def listen() -> None:
        while not over.wait(0.05):
            drain(sock)

    sock.setblocking(False)
    listener = threading.Thread(target=listen)
    listener.start()
    try:
        yield
    finally:
        over.set()
        listener.join()


def test_a_lane_unmounted_behind_our_back_is_mounted_again(
    base: Path, manager: tuple[socket.socket, dict[str, str]]
) -> None:
    sock, environ = manager
    environ = {**environ, "WATCHDOG_USEC": "600000"}
    with listening(sock), running(base, environ=environ) as daemon:
        target = mount(daemon, "work")
        (target / "file").write_text("x")
        daemon.run("umount", target)
        subprocess.run(["umount", daemon.lane], check=True)
        eventually(lambda: daemon.events("lane.mounted_again"), what="a new mount")
        eventually(lambda: mounts_below(base) == [str(daemon.lane)], what="a new mount")
        eventually(
            lambda: health(daemon) == health_pb2.HealthCheckResponse.SERVING, what="a good health"
        )
        daemon.run("mount", "work", target)
        assert (target / "file").read_text() == "x"
        daemon.run("umount", target)


def test_a_lane_that_is_started_when_it_is_first_needed_is_no_fault(
    base: Path, manager: tuple[socket.socket, dict[str, str]]
) -> None:
    sock, environ = manager
    environ = {**environ, "WATCHDOG_USEC": "150000"}  # a look each 50 ms; a start takes longer
    with listening(sock), running(base, environ=environ) as daemon:
        in_no_open = "containerd.io/snapshot/snapfs.lane=no-open"
        daemon.run("snapshot", "prepare", "work", "--label", in_no_open)
        daemon.run("snapshot", "commit", "work", "base")
        daemon.run("snapshot", "view", "look", "base")
        assert len(daemon.json("status")["lanes"]) == 3
        assert not daemon.events("daemon.unwell")


def test_a_lane_unmounted_while_it_is_used_is_put_back(
    base: Path, manager: tuple[socket.socket, dict[str, str]]
) -> None:
    sock, environ = manager
    environ = {**environ, "WATCHDOG_USEC": "600000"}
    with listening(sock), running(base, environ=environ) as daemon:
        used = mount(daemon, "used")
        worker = daemon.worker_pid()
        subprocess.run(["umount", "--lazy", daemon.lane], check=True)
        eventually(lambda: daemon.events("lane.put_back"), what="the mount")
        target = mount(daemon, "work")
        (target / "file").write_text("new")
        (used / "file").write_text("goes on")
        assert daemon.worker_pid() == worker
        assert daemon.json("status")["warnings"] == []
        daemon.run("umount", used)
        daemon.run("umount", target)


def test_a_lane_that_is_mounted_over_is_told_until_that_is_unmounted(
    base: Path, manager: tuple[socket.socket, dict[str, str]]
) -> None:
    sock, environ = manager
    with running(base, environ={**environ, "WATCHDOG_USEC": "600000"}) as daemon:
        used = mount(daemon, "used")
        daemon.run("snapshot", "prepare", "work")
        subprocess.run(["mount", "-t", "tmpfs", "cover", daemon.lane], check=True)
        not_serving = health_pb2.HealthCheckResponse.NOT_SERVING
        eventually(lambda: health(daemon) == not_serving, what="a bad health")
        assert len(daemon.events("lane.displaced")) == 1
        (warning,) = daemon.json("status")["warnings"]
        assert f"lane main is not mounted at {daemon.lane}: a tmpfs is mounted over it" in warning
        assert (
            f"worker {daemon.worker_pid()} goes on serving it where it is used ({used})" in warning
        )
        target = base / "at-work"
        target.mkdir()
        refused = daemon.run("mount", "work", target, check=False)
        assert f"lane main is not mounted at {daemon.lane}; `snapfs status`" in refused.stderr
        sock.setblocking(False)
        drain(sock)
        eventually(lambda: b"WATCHDOG=1" in drain(sock), what="no end of the service")
        (used / "file").write_text("goes on")
        with listening(sock):
            subprocess.run(["umount", daemon.lane], check=True)
            serving = health_pb2.HealthCheckResponse.SERVING
            eventually(lambda: health(daemon) == serving, what="a good health")
        assert daemon.json("status")["warnings"] == []
        daemon.run("mount", "work", target)
        daemon.run("umount", target)
        daemon.run("umount", used)


@pytest.mark.parametrize("shared", ["root", "state", "address"])
def test_a_second_daemon_is_refused_naming_the_first(base: Path, shared: str) -> None:
    with running(base) as first:
        second = RunningDaemon(base / "second")
        setattr(second, shared, getattr(first, shared))
        command = [*second.command(), "--address", str(second.address)]
        refused = subprocess.run(
            command, capture_output=True, text=True, timeout=60, env=second.environ
        )
        assert refused.returncode == 1
        message = refused.stderr.splitlines()[-1]
        assert message.startswith("snapfs: ")
        assert str(getattr(first, shared)) in message
        assert str(first.pid) in message
        assert health(first) == health_pb2.HealthCheckResponse.SERVING
        assert mounts_below(base) == [str(first.lane)]


def test_anyone_but_root_is_refused() -> None:
    code = (
        "import os, sys; from snapfs.cli.main import main; import snapfs.daemon, snapfs.logs;"
        "os.setresuid(65534, 65534, 65534); sys.argv[1:] = ['serve']; main()"
    )
    refused = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert refused.returncode == 1
    assert refused.stderr.startswith("snapfs: snapfs serve needs root")
    assert "start it with sudo" in refused.stderr


def test_a_root_that_cannot_hold_layers_is_refused_with_the_way_out(base: Path) -> None:
    below, at = base / "below", base / "at"
    for path in (below / "lower", below / "upper", below / "work", at):
        path.mkdir(parents=True)
    options = f"lowerdir={below}/lower,upperdir={below}/upper,workdir={below}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, at], check=True)
    daemon = RunningDaemon(base)
    daemon.root = at / "root"
    refused = subprocess.run(
        daemon.command(), capture_output=True, text=True, timeout=60, env=daemon.environ
    )
    assert refused.returncode == 1
    assert f"root {daemon.root}: its file system cannot hold layers" in refused.stderr
    assert "snapfs init --image" in refused.stderr


def refused_to_serve(daemon: RunningDaemon) -> str:
    """Return what `snapfs serve` says that refuses to."""
    refused = subprocess.run(
        daemon.command(), capture_output=True, text=True, timeout=60, env=daemon.environ
    )
    assert refused.returncode == 1
    return refused.stderr


@pytest.mark.parametrize("is_new", [True, False])
def test_a_root_on_a_read_only_file_system_is_refused_with_the_way_out(
    base: Path, is_new: bool
) -> None:
    daemon, at = RunningDaemon(base), base / "at"
    at.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", at], check=True)
    daemon.root = at / "root"
    if not is_new:
        daemon.root.mkdir()
    subprocess.run(["mount", "-o", "remount,ro", at], check=True)
    said = refused_to_serve(daemon)
    assert f"root {daemon.root} is on a file system that is read-only" in said
    assert "remount,rw" in said
    assert "probe" not in said


def test_the_systems_own_root_is_none_of_ours(base: Path) -> None:
    before = os.listdir("/")
    for place in (Path("/"), base / "link"):
        daemon = RunningDaemon(base)
        daemon.root = place
        if place.name:
            place.symlink_to("/")
        assert "that is the system's own; name a directory for snapfs" in refused_to_serve(daemon)
    assert os.listdir("/") == before


def test_a_directory_of_other_things_is_refused_and_left_as_it_is(base: Path) -> None:
    daemon = RunningDaemon(base)
    daemon.root.mkdir()
    (daemon.root / "photos").mkdir()
    (daemon.root / "layers").mkdir()
    said = refused_to_serve(daemon)
    assert f"root {daemon.root} holds other things (photos) and no snapshots" in said
    assert sorted(os.listdir(daemon.root)) == ["layers", "photos"]


def test_a_file_is_no_root(base: Path) -> None:
    daemon = RunningDaemon(base)
    daemon.root.write_text("")
    assert f"root {daemon.root} is no directory" in refused_to_serve(daemon)


@pytest.mark.parametrize(
    ("place", "why"),
    [("file", "no directory"), ("file/below", "no directory"), ("/proc/none", "no such file")],
)
def test_a_state_directory_that_cannot_be_is_named_as_such(
    base: Path, place: str, why: str
) -> None:
    daemon = RunningDaemon(base)
    (base / "file").write_text("")
    daemon.state = base / place
    said = refused_to_serve(daemon)
    assert f"state directory {daemon.state} cannot be used ({why}" in said
    assert "name another with --state" in said


def test_a_missing_fuse_device_is_refused_with_the_way_out(tmp_path: Path) -> None:
    from snapfs import preflight
    from snapfs.model import FailedPrecondition

    with pytest.raises(FailedPrecondition, match="modprobe fuse"):
        preflight.check_fuse_device(tmp_path / "fuse")


def receive_until(sock: socket.socket, wanted: bytes) -> list[bytes]:
    got: list[bytes] = []
    while not got or not got[-1].startswith(wanted):
        got.append(sock.recv(4096))
    return got


def test_the_manager_hears_ready_watchdog_and_stopping(
    base: Path, manager: tuple[socket.socket, dict[str, str]]
) -> None:
    sock, environ = manager
    daemon = RunningDaemon(base, environ={**environ, "WATCHDOG_USEC": "600000"})
    daemon.start()
    before = receive_until(sock, b"READY=1")
    assert not any(it.startswith(b"WATCHDOG") for it in before)
    assert f"MAINPID={daemon.pid}".encode() in before[-1]
    receive_until(sock, b"WATCHDOG=1")
    receive_until(sock, b"WATCHDOG=1")
    assert daemon.stop() == 0
    receive_until(sock, b"STOPPING=1")


def test_a_worker_that_hangs_ends_health_and_watchdog_until_it_answers(
    base: Path, manager: tuple[socket.socket, dict[str, str]]
) -> None:
    sock, environ = manager
    environ = {**environ, "WATCHDOG_USEC": "600000", "SNAPFS_TIMEOUTS_PROBE_S": "0.5"}
    with running(base, environ=environ) as daemon:
        receive_until(sock, b"WATCHDOG=1")
        worker = daemon.worker_pid()
        os.kill(worker, signal.SIGSTOP)
        not_serving = health_pb2.HealthCheckResponse.NOT_SERVING
        eventually(lambda: health(daemon) == not_serving, what="a bad health")
        status = daemon.json("status")
        assert status["lanes"][0]["state"] == "not answering"
        (warning,) = status["warnings"]
        assert f"lane main: worker {worker} has not answered for " in warning
        assert warning.endswith(" s; it is replaced after 20 s")
        sock.setblocking(False)
        drain(sock)
        time.sleep(1.5)
        assert b"WATCHDOG=1" not in drain(sock)
        os.kill(worker, signal.SIGCONT)
        serving = health_pb2.HealthCheckResponse.SERVING
        eventually(lambda: health(daemon) == serving, what="a good health")
        eventually(lambda: b"WATCHDOG=1" in drain(sock), what="a watchdog ping")
        status = daemon.json("status")
        assert (status["lanes"][0]["state"], status["warnings"]) == ("serving", [])


def drain(sock: socket.socket) -> list[bytes]:
    got = []
    try:
        while True:
            got.append(sock.recv(4096))
    except BlockingIOError:
        return got


def commit_that_hangs(daemon: RunningDaemon) -> subprocess.Popen[bytes]:
    """Stop the worker and begin a commit, which waits for it."""
    target = mount(daemon, "work")
    (target / "file").write_text("x")
    os.kill(daemon.worker_pid(), signal.SIGSTOP)
    begun = subprocess.Popen(
        [str(Path(daemon.command()[0])), "snapshot", "commit", "work", "done"],
        env={**daemon.environ, "SNAPFS_ADDRESS": str(daemon.address)},
    )
    time.sleep(1.0)
    assert begun.poll() is None
    return begun


def test_a_stop_with_a_hanging_worker_and_call_ends_within_its_deadlines(base: Path) -> None:
    environ = {"SNAPFS_TIMEOUTS_DRAIN_S": "1", "SNAPFS_TIMEOUTS_STOP_S": "2"}
    daemon = RunningDaemon(base, environ=environ)
    daemon.start()
    begun = commit_that_hangs(daemon)
    began = time.monotonic()
    daemon.stop()
    assert time.monotonic() - began < 1 + 2 + 5 + 5
    assert begun.wait(10) == 1
    assert str(daemon.lane) not in mounts_below(base)


def test_a_second_signal_does_not_wait_for_calls(base: Path) -> None:
    daemon = RunningDaemon(base, environ={"SNAPFS_TIMEOUTS_DRAIN_S": "300"})
    daemon.start()
    begun = commit_that_hangs(daemon)
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert daemon.process.poll() is None
    began = time.monotonic()
    daemon.stop(signal.SIGTERM)
    assert time.monotonic() - began < 10
    assert begun.wait(10) == 1


def test_a_call_in_flight_is_finished_before_the_end(base: Path) -> None:
    daemon = RunningDaemon(base)
    daemon.start()
    begun = commit_that_hangs(daemon)
    worker = daemon.worker_pid()
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGTERM)
    eventually(lambda: daemon.events("daemon.stopping"), what="the stop")
    os.kill(worker, signal.SIGCONT)
    assert begun.wait(20) == 0
    assert daemon.stop() == 0
