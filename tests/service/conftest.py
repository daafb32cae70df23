"""A server on a socket of its own, over a snapshotter that does what a test tells it to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from snapfs.service import grpc_server, server
from snapfs.service.client import Client
from snapfs.service.records import DaemonRecord


class ToldSnapshotter:
    """Answers every method with `answer(method, *arguments)`: a value, or an error raised."""

    def __init__(self) -> None:
        self.answer: Callable[..., Any] = lambda *_: []

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return lambda *arguments, **named: self.answer(method, *arguments, *named.values())


@pytest.fixture
def snapshotter() -> ToldSnapshotter:
    return ToldSnapshotter()


@pytest.fixture
def status_record(tmp_path: Path) -> DaemonRecord:
    return DaemonRecord(
        version="1",
        pid=2,
        started_ns=3,
        root=tmp_path / "root",
        state=tmp_path / "state",
        unpack="overlay",
        revision=4,
        active=5,
        views=6,
        committed=7,
        pending_removals=8,
    )


@pytest.fixture
def served(
    tmp_path: Path, snapshotter: ToldSnapshotter, status_record: DaemonRecord
) -> Iterator[grpc_server.GrpcServer]:
    register = partial(
        server.register,
        snapshotter=snapshotter,  # type: ignore[arg-type]  # answers anything
        describe=lambda: status_record,
        root=tmp_path / "root",
        state=tmp_path / "state",
    )
    built = grpc_server.build(tmp_path / "snapfs.sock", services=[register])
    yield built
    built.stop(grace_s=0)


@pytest.fixture
def client(served: grpc_server.GrpcServer) -> Iterator[Client]:
    with Client(served.address, timeout_s=30) as client:
        yield client


@pytest.fixture
def channel(served: grpc_server.GrpcServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"unix:{served.address}") as channel:
        yield channel
