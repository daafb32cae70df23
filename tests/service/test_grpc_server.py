"""The socket, its guard and its manners: one owner, 64 calls at once, health, reflection."""

from __future__ import annotations

import os
import socket
import stat
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from snapfs.model import DeadlineExceeded, FailedPrecondition, InvalidArgument, Mount, Unavailable
from snapfs.service import grpc_server, server
from snapfs.service.client import Client
from snapfs.service.grpc_server import GrpcServer
from snapfs.service.records import DaemonRecord

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def _dead_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


def test_only_root_may_connect(served: GrpcServer) -> None:
    status = served.address.lstat()
    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_uid == os.geteuid()


def test_a_stopped_server_leaves_nothing_behind(tmp_path: Path) -> None:
    server = grpc_server.build(tmp_path / "s.sock", services=[])
    server.stop(grace_s=0)
    server.stop(grace_s=0)
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_server_leaves_the_socket_of_its_successor(tmp_path: Path) -> None:
    address = tmp_path / "s.sock"
    first = grpc_server.build(address, services=[])
    address.unlink()
    second = grpc_server.build(address, services=[])
    first.stop(grace_s=0)
    assert address.exists()
    second.stop(grace_s=0)


def test_a_dead_servers_socket_is_replaced(tmp_path: Path) -> None:
    address = tmp_path / "s.sock"
    _dead_socket(address)
    server = grpc_server.build(address, services=[])
    with grpc.insecure_channel(f"unix:{address}") as channel:
        grpc.channel_ready_future(channel).result(timeout=30)
    server.stop(grace_s=0)


def test_a_live_servers_socket_is_left_alone(served: GrpcServer) -> None:
    with pytest.raises(
        FailedPrecondition, match=r"snapfs\.sock: another server \(pid \d+, .+\) answers there"
    ):
        grpc_server.build(served.address, services=[])
    with Client(served.address, timeout_s=30) as client:
        assert client.mounts("k") == []


def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    address = tmp_path / "s.sock"
    address.write_text("precious")
    with pytest.raises(FailedPrecondition, match="move it away"):
        grpc_server.build(address, services=[])
    assert address.read_text() == "precious"


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="at most 107 bytes"):
        grpc_server.build(tmp_path / ("s" * 108), services=[])


def test_the_directory_of_the_socket_is_made(tmp_path: Path) -> None:
    server = grpc_server.build(tmp_path / "run" / "s.sock", services=[])
    server.stop(grace_s=0)


def test_64_calls_at_once_are_answered(client: Client, snapshotter: Any) -> None:
    everyone = threading.Barrier(64)

    def meet(method: str, key: str) -> list[Mount]:
        everyone.wait(timeout=60)  # passes only when 64 calls are inside
        return [Mount(type="bind", source=key)]

    snapshotter.answer = meet
    answers: dict[str, list[Mount]] = {}

    def call(key: str) -> None:
        answers[key] = client.mounts(key)

    threads = [threading.Thread(target=call, args=(str(number),)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert answers == {str(n): [Mount(type="bind", source=str(n))] for n in range(64)}


def test_health_is_said_when_told(served: GrpcServer, channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for name in ("", "snapfs.v1.Snapfs"):
        request = health_pb2.HealthCheckRequest(service=name)
        served.set_serving(serving=True)
        assert stub.Check(request, timeout=30).status == SERVING
        served.set_serving(serving=False)
        assert stub.Check(request, timeout=30).status == NOT_SERVING


def test_a_newborn_server_is_not_serving_yet(channel: grpc.Channel) -> None:
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
    assert answer.status == NOT_SERVING


def test_health_watchers_that_leave_never_hold_up_a_stop(
    served: GrpcServer, channel: grpc.Channel
) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    watches = [stub.Watch(health_pb2.HealthCheckRequest(), timeout=60) for _ in range(100)]
    assert [next(watch).status for watch in watches] == [NOT_SERVING] * len(watches)
    served.set_serving(serving=True)
    assert next(watches[0]).status == SERVING
    stopper = threading.Thread(target=served.stop, kwargs={"grace_s": 0})
    stopper.start()
    for watch in watches:
        watch.cancel()
    stopper.join(timeout=30)
    assert not stopper.is_alive()


def test_reflection_tells_what_is_served(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert "snapfs.v1.Snapfs" in database.get_services()
    service = DescriptorPool(database).FindServiceByName("snapfs.v1.Snapfs")
    assert "Prepare" in service.methods_by_name


def test_a_client_without_a_server_says_what_to_start(tmp_path: Path) -> None:
    with (
        Client(tmp_path / "none.sock", timeout_s=30) as client,
        pytest.raises(Unavailable, match=r"nothing answers on socket .*none\.sock.*snapfs serve"),
    ):
        client.mounts("k")


@pytest.mark.parametrize(
    ("said", "words"),
    [(b"", "says nothing"), (b"HTTP/1.0 hello\r\n\r\n" * 5, "does not speak as snapfs")],
)
def test_a_stranger_on_the_socket_is_named_and_not_waited_for(
    tmp_path: Path, said: bytes, words: str
) -> None:
    """The limit of the call is longer than the test may take."""
    address = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
        stranger.bind(str(address))
        stranger.listen()
        stranger.settimeout(30)
        greeter = threading.Thread(target=greet, args=(stranger, said))
        greeter.start()
        with Client(address, timeout_s=600) as client, pytest.raises(Unavailable) as refused:
            client.mounts("k")
        greeter.join(timeout=30)
    assert f"socket {address}: another server (pid {os.getpid()}, " in str(refused.value)
    assert f") accepts there, but {words}; stop that one" in str(refused.value)


def greet(stranger: socket.socket, said: bytes) -> None:
    """Accept one connection, say something, and hold it until the other side ends it."""
    with stranger.accept()[0] as peer:
        peer.settimeout(30)
        peer.sendall(said)
        with suppress(ConnectionError):
            while peer.recv(4096):
                pass


def test_calls_under_way_are_finished_by_a_stop(
    served: GrpcServer, client: Client, snapshotter: Any
) -> None:
    inside, leave = threading.Event(), threading.Event()

    def slow(*_: object) -> list[Mount]:
        inside.set()
        assert leave.wait(timeout=30)
        return [Mount(type="bind", source="x")]

    snapshotter.answer = slow
    answers: list[list[Mount]] = []
    caller = threading.Thread(target=lambda: answers.append(client.mounts("k")))
    caller.start()
    assert inside.wait(timeout=30)
    stopper = threading.Thread(target=served.stop, kwargs={"grace_s": 30})
    stopper.start()
    leave.set()
    caller.join(timeout=30)
    stopper.join(timeout=30)
    assert answers == [[Mount(type="bind", source="x")]]


def test_a_call_that_waited_longer_than_its_caller_changes_nothing(
    tmp_path: Path, snapshotter: Any, status_record: DaemonRecord
) -> None:
    register = partial(
        server.register,
        snapshotter=snapshotter,
        describe=lambda: status_record,
        root=tmp_path,
        state=tmp_path,
    )
    built = grpc_server.build(tmp_path / "s.sock", services=[register], max_workers=1)
    inside, leave = threading.Event(), threading.Event()
    called: list[object] = []

    def answer(method: str, key: str, *_: object) -> list[Mount]:
        called.append(key)
        inside.set()
        assert leave.wait(timeout=30)
        return []

    snapshotter.answer = answer
    with (
        Client(built.address, timeout_s=30) as patient,
        Client(built.address, timeout_s=0.2) as hasty,
    ):
        first = threading.Thread(target=patient.mounts, args=("first",))
        first.start()
        assert inside.wait(timeout=30)
        with pytest.raises(DeadlineExceeded):
            hasty.prepare("second")
        leave.set()
        first.join(timeout=30)
        patient.mounts("third")
    built.stop(grace_s=0)
    assert called == ["first", "third"]
