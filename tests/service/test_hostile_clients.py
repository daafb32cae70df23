"""Clients that send garbage, nothing, too much or too often: others are served, nothing grows."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from snapfs.model import FailedPrecondition, NotFound
from snapfs.service import grpc_server, reading, volume_socket
from snapfs.service.client import Client
from snapfs.service.grpc_server import GrpcServer
from snapfs.service.volume_socket import PluginServer
from tests.support.daemon import RunningDaemon, eventually, running

CONNECTIONS = 10_000
MOST_BYTES = 256 << 20
"""What the service may take after so many; docs/security.md has figures of more rounds."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
EMPTY_SETTINGS = b"\0\0\0\4\0\0\0\0\0"
GARBAGE = {
    "nothing at all": b"",
    "a request of another protocol": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "zeros": bytes(100_000),
    "a preface and then noise": PREFACE + os.urandom(10_000),
    "a frame without an end": PREFACE + EMPTY_SETTINGS + b"\xff\xff\xff" + bytes(50_000),
    "headers for ever": PREFACE + EMPTY_SETTINGS + b"\0\x10\0\1\0\0\0\0\1" + bytes(4096) * 50,
}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    with running(tmp_path) as started:
        yield started


def connected(address: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(30)
    made.connect(os.fspath(address))
    return made


def send(client: socket.socket, data: bytes) -> None:
    """Send what the server takes; it may close while we talk."""
    client.settimeout(0.2)
    try:
        client.sendall(data)
    except (TimeoutError, ConnectionError):
        return


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_hurts_nobody_else(client: Client, served: GrpcServer, garbage: str) -> None:
    with ExitStack() as stack:
        for _ in range(20):
            noisy = stack.enter_context(connected(served.address))
            send(noisy, GARBAGE[garbage])
            assert client.mounts("k") == []
    assert client.mounts("k") == []


def test_methods_and_services_that_do_not_exist_are_refused(channel: grpc.Channel) -> None:
    for method in ("/snapfs.v1.Snapfs/Nothing", "/no.Such/Service", "/", "/" + "x" * 4000):
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary(method)(b"", timeout=30)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_requests_that_are_too_long_or_no_message_are_refused(channel: grpc.Channel) -> None:
    call = channel.unary_unary("/snapfs.v1.Snapfs/Info")
    with pytest.raises(grpc.RpcError) as refused:
        call(bytes(grpc_server.MAX_MESSAGE_BYTES + 1), timeout=30)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    for noise in (b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x02\xff\xfe", os.urandom(999)):
        with pytest.raises(grpc.RpcError) as refused:
            call(noise, timeout=30)
        assert refused.value.code() in (
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.NOT_FOUND,
            grpc.StatusCode.UNIMPLEMENTED,
            grpc.StatusCode.INTERNAL,
        )


@pytest.mark.root
@pytest.mark.fuse
@pytest.mark.slow
def test_ten_thousand_connections_leave_nothing_behind(daemon: RunningDaemon) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard > CONNECTIONS, f"the limit of open files is {hard}"
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (hard, hard))
    before = descriptors(daemon.pid)
    flood = subprocess.Popen(
        [sys.executable, "-c", FLOOD, str(daemon.address), str(CONNECTIONS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with flood:
        assert flood.stdout is not None
        assert flood.stdout.readline() == b"open\n"
        eventually(
            lambda: descriptors(daemon.pid) > CONNECTIONS, timeout_s=60, what="all connections"
        )
        assert daemon.json("snapshot", "list") == []
        flood.kill()
    eventually(lambda: descriptors(daemon.pid) <= before + 8, what="the end of connections")
    assert resident_bytes(daemon.pid) < MOST_BYTES
    assert daemon.json("status")["pid"] == daemon.pid


@pytest.mark.root
@pytest.mark.fuse
@pytest.mark.parametrize("flooded", ["snapfs-read.sock", "volumes.sock"])
def test_a_thousand_connections_of_readers_or_to_the_plugin_hold_up_nobody(
    tmp_path: Path, flooded: str
) -> None:
    environ = {
        "SNAPFS_SERVICE_GROUP": "daemon",
        "SNAPFS_VOLUMES_PLUGIN_SOCKET": str(tmp_path / "state" / "volumes.sock"),
    }
    with running(tmp_path, environ=environ) as daemon:
        worker = daemon.worker_pid()
        before = descriptors(daemon.pid), descriptors(worker)
        words = [sys.executable, "-c", FLOOD, str(daemon.state / flooded), "1000"]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as flood:
            assert flood.stdout is not None
            assert flood.stdout.readline() == b"open\n"
            assert daemon.json("snapshot", "list") == []
            daemon.run("snapshot", "prepare", "work")
            flood.kill()
        for pid, held in zip((daemon.pid, worker), before, strict=True):
            eventually(lambda pid=pid, held=held: descriptors(pid) <= held + 8, what="the end")
        assert daemon.worker_pid() == worker


FLOOD = """
import resource, socket, sys, time
address, count = sys.argv[1], int(sys.argv[2])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
held = []
while len(held) < count:
    client = socket.socket(socket.AF_UNIX)
    client.connect(address)
    held.append(client)
print("open", flush=True)
sys.stdin.read()
"""


@pytest.mark.root
@pytest.mark.fuse
def test_clients_that_do_not_read_their_answers_hold_up_nobody(daemon: RunningDaemon) -> None:
    """Each asks for the health to be watched, or for a list, and then is silent."""
    for number in range(20):
        daemon.run("snapshot", "prepare", "--label", f"l={'x' * 4000}", f"key{number}")
    before = descriptors(daemon.pid)
    with ExitStack() as stack:
        for _ in range(100):
            channel = stack.enter_context(grpc.insecure_channel(f"unix:{daemon.address}"))
            answers = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert answers.status == health_pb2.HealthCheckResponse.SERVING
            stack.callback(
                channel.unary_stream("/snapfs.v1.Store/Watch")(b"", wait_for_ready=True).cancel
            )
        assert len(daemon.json("snapshot", "list")) == 20
        with pytest.raises(NotFound), Client(daemon.address, timeout_s=30) as client:
            client.info("nothing")
    eventually(lambda: descriptors(daemon.pid) <= before + 8, what="the end of connections")


@pytest.mark.root
@pytest.mark.fuse
def test_a_group_may_look_and_change_nothing(tmp_path: Path) -> None:
    with (
        tempfile.TemporaryDirectory() as reachable,
        running(
            tmp_path,
            arguments=("--address", f"{reachable}/snapfs.sock"),
            environ={"SNAPFS_SERVICE_GROUP": "daemon"},
        ) as daemon,
    ):
        Path(reachable).chmod(0o711)
        daemon.address = Path(reachable, "snapfs.sock")
        daemon.run("snapshot", "prepare", "work")
        readers = daemon.address.with_name("snapfs-read.sock")
        ask = [sys.executable, "-c", LOOK]

        def look(address: Path, group: str) -> str:
            asking = [*ask, str(address), group]
            done = subprocess.run(asking, capture_output=True, text=True, timeout=60, check=True)
            return done.stdout

        refused = ["PermissionDenied", "PermissionDenied"]
        for groups in ("daemon", "nogroup+daemon"):
            answers = look(readers, groups).splitlines()
            assert [it.partition(" ")[0] for it in answers] == ["work", *refused]
        (stranger, *_) = look(readers, "nogroup").splitlines()
        assert f"{readers} is for root and the group daemon (permission denied)" in stranger
        assert "have root add you to the group" in stranger
        (member, *_) = look(daemon.address, "daemon").splitlines()
        assert f"{daemon.address} is root's (permission denied); run as root" in member
        assert f"in the group daemon, look with --address {readers}" in member
        assert [it["name"] for it in daemon.json("snapshot", "list")] == ["work"]


LOOK = """
import grp, os, pwd, sys
from pathlib import Path
from snapfs.model import SnapfsError
from snapfs.service.client import Client
first, *more = [grp.getgrnam(it).gr_gid for it in sys.argv[2].split("+")]
os.setgroups(more)
os.setgid(first)
os.setuid(pwd.getpwnam("nobody").pw_uid)
with Client(Path(sys.argv[1]), timeout_s=30) as client:
    for call in (
        lambda: print(*[it.snapshot.name for it in client.list()]),
        lambda: client.remove("work"),
        lambda: print(*client.diff("work")),
    ):
        try:
            call()
        except SnapfsError as error:
            print(type(error).__name__, error)
"""


HALF_A_REQUEST = b"POST /VolumeDriver.List HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
LIST = b"POST /VolumeDriver.List HTTP/1.1\r\nHost: x\r\n\r\n"
PLUGIN_GARBAGE = {
    "nothing at all": b"",
    "noise": os.urandom(100_000),
    "a negative length": LIST[:-2] + b"Content-Length: -5\r\n\r\n",
    "no number": LIST[:-2] + b"Content-Length: five\r\n\r\n",
    "a body without a length": LIST[:-2] + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello",
    "a long body": LIST[:-2] + b"Content-Length: 99999999999\r\n\r\n" + bytes(2 << 20),
    "headers for ever": LIST[:-2] + (b"X: " + b"x" * 60_000 + b"\r\n") * 60,
    "lists in lists": LIST[:-2] + b"Content-Length: 100000\r\n\r\n" + b"[" * 100_000,
    "half a request": HALF_A_REQUEST,
}


class Plugin:
    """The volume plugin's socket, whose one call fails when it is told so."""

    def __init__(self, address: Path) -> None:
        self.address = address
        self.entered = threading.Semaphore(0)
        self.leave = threading.Event()

    def list(self, body: dict[str, Any]) -> dict[str, Any]:
        if body.get("wait"):
            self.entered.release()
            assert self.leave.wait(60)
        return {"Volumes": []}

    def asks(self) -> bytes:
        with connected(self.address) as client:
            client.sendall(LIST)
            return client.recv(4096)


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Plugin]:
    made = Plugin(tmp_path / "volumes.sock")
    with PluginServer(made.address, {"/VolumeDriver.List": made.list}):
        yield made
        made.leave.set()


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.parametrize("garbage", PLUGIN_GARBAGE)
def test_garbage_at_the_plugin_s_socket_is_a_line_of_the_log_at_most(
    plugin: Plugin, garbage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = threads()
    with ExitStack() as stack, structlog.testing.capture_logs() as said:
        for _ in range(20):
            noisy = stack.enter_context(connected(plugin.address))
            send(noisy, PLUGIN_GARBAGE[garbage])
            assert plugin.asks().startswith(b"HTTP/1.1 200")
        stack.close()
        eventually(lambda: threads() <= before, what="the end of connections")
    assert len([it for it in said if it["log_level"] != "debug"]) <= 20
    assert not [it for it in said if it["log_level"] in ("warning", "error")]
    assert "Traceback" not in capfd.readouterr().err


def test_half_sent_requests_keep_nobody_out_and_make_no_threads(plugin: Plugin) -> None:
    before, files = threads(), descriptors(os.getpid())
    with ExitStack() as stack:
        for number in range(900):
            noisy = stack.enter_context(connected(plugin.address))
            send(noisy, HALF_A_REQUEST)
            if number % 100 == 0:
                assert plugin.asks().startswith(b"HTTP/1.1 200")
        assert threads() - before <= volume_socket.MAX_CONNECTIONS + 1
        assert plugin.asks().startswith(b"HTTP/1.1 200")
    eventually(lambda: threads() <= before, what="the end of threads")
    assert descriptors(os.getpid()) <= files


def test_a_request_must_come_whole_in_time_and_a_byte_at_a_time_does_not_help(
    plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume_socket, "REQUEST_S", 0.5)
    with connected(plugin.address) as client:
        client.sendall(LIST)
        assert client.recv(4096).startswith(b"HTTP/1.1 200")

        def drips() -> bool:
            try:
                client.sendall(b"P")
            except ConnectionError:
                return True
            return False

        eventually(drips, what="the end of the connection")


def test_who_does_not_ask_is_ended_and_who_is_in_a_call_is_not(
    plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = LIST[:-2] + b'Content-Length: 10\r\n\r\n{"wait":1}'
    with connected(plugin.address) as calling:
        calling.sendall(waits)
        assert plugin.entered.acquire(timeout=30)
        monkeypatch.setattr(volume_socket, "IDLE_S", 0.5)
        with connected(plugin.address) as silent:
            assert silent.recv(1) == b""
        plugin.leave.set()
        assert calling.recv(4096).startswith(b"HTTP/1.1 200")


def test_one_place_costs_one_connection_however_often_others_wake_the_waiter() -> None:
    places = volume_socket.Connections(3)
    with ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(4)]
        for one, other in pairs:
            stack.enter_context(one)
            stack.enter_context(other)
        idle, near, asking, last = (one for one, _ in pairs)
        for one in (idle, near, asking):
            assert places.add(one)
        assert places.starts(asking)
        came = threading.Thread(target=places.add, args=(last,))
        came.start()
        assert pairs[0][1].recv(1) == b""
        places.waits(asking)  # wakes who waits, for whom a place is about to be free
        pairs[1][1].settimeout(0.5)
        with pytest.raises(TimeoutError):
            pairs[1][1].recv(1)
        places.remove(idle)
        came.join(30)
        assert not came.is_alive()


def test_a_head_of_64_kib_is_taken_and_a_longer_one_is_not(plugin: Plugin) -> None:
    line = b"X: " + b"x" * 8000 + b"\r\n"
    with connected(plugin.address) as client:
        client.sendall(LIST[:-2] + line * 8 + b"\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
    with connected(plugin.address) as client:
        send(client, LIST[:-2] + line * 9 + b"\r\n")
        client.settimeout(30)
        with suppress(ConnectionError):
            assert client.recv(4096) == b""


def test_a_socket_whose_queue_is_full_is_answered_by_somebody(tmp_path: Path) -> None:
    address = tmp_path / "volumes.sock"
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(os.fspath(address))
        listener.listen(0)
        with suppress(BlockingIOError):
            while True:
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(os.fspath(address))
        with pytest.raises(FailedPrecondition, match="is answered by another process"):
            PluginServer(address, {})


def test_two_hundred_may_connect_to_the_plugin_at_once(plugin: Plugin) -> None:
    """As Go does: a full queue is an error there, not a wait. All are in calls meanwhile."""
    waits = LIST[:-2] + b'Content-Length: 10\r\n\r\n{"wait":1}'
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(200)]
        for client in clients:
            client.setblocking(False)
            client.connect(os.fspath(plugin.address))
            client.settimeout(60)
            client.sendall(waits)
        for _ in range(volume_socket.MAX_CONNECTIONS):
            assert plugin.entered.acquire(timeout=30)
        assert not plugin.entered.acquire(blocking=False)
        plugin.leave.set()
        for client in clients:
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
            client.close()


def test_each_method_that_a_group_may_call_exists(daemon_methods: frozenset[str]) -> None:
    assert daemon_methods >= reading.READS


@pytest.fixture
def daemon_methods() -> frozenset[str]:
    """Full names of all methods that the protocol has."""
    from grpc_health.v1 import health_pb2 as health

    from snapfs.service import metadata_v1_pb2, snapfs_v1_pb2

    files = (health.DESCRIPTOR, metadata_v1_pb2.DESCRIPTOR, snapfs_v1_pb2.DESCRIPTOR)
    return frozenset(
        f"/{service.full_name}/{method.name}"
        for file in files
        for service in file.services_by_name.values()
        for method in service.methods
    )
