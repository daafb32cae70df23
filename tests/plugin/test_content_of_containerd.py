"""containerd's content store as a client has it that waits for nobody for ever."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from snapfs_containerd import content_pb2 as pb
from snapfs_containerd import content_pb2_grpc, leases_pb2, leases_pb2_grpc
from snapfs_containerd.contents import ContainerdContents

from snapfs.metadata import Context
from snapfs.model import DeadlineExceeded, FailedPrecondition

ENOUGH_S = 30.0


class Store(content_pb2_grpc.ContentServicer):
    """Answers what a test wants of it, and then no more until the test ends."""

    def __init__(self) -> None:
        self.answers: dict[int, int] = {}
        """How many answers to a request of an action."""
        self.aborted: list[str] = []
        self.refuses_commits = False
        self.goes_on = False
        self.ended = threading.Event()

    def Write(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        for request in requests:
            if request.action == pb.COMMIT and self.refuses_commits:
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, "unexpected digest")
            if not self.answers.get(request.action, 0):
                self.ended.wait(ENOUGH_S)
                return
            self.answers[request.action] -= 1
            yield pb.WriteContentResponse(action=request.action)

    def Read(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        yield pb.ReadContentResponse(offset=0, data=b"begins")
        for offset in itertools.count(6) if self.goes_on else ():
            yield pb.ReadContentResponse(offset=offset, data=b"x")
        self.ended.wait(ENOUGH_S)

    def Abort(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.aborted.append(request.ref)
        return content_pb2_grpc.google_dot_protobuf_dot_empty__pb2.Empty()


class Leases(leases_pb2_grpc.LeasesServicer):
    """Gives every lease that is asked for."""

    def Create(self, request: Any, context: grpc.ServicerContext) -> Any:
        lease = leases_pb2.Lease(id=request.id, labels=request.labels)
        return leases_pb2.CreateResponse(lease=lease)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def contents(store: Store, tmp_path: Path) -> Iterator[ContainerdContents]:
    server = grpc.server(ThreadPoolExecutor(4))
    content_pb2_grpc.add_ContentServicer_to_server(store, server)
    leases_pb2_grpc.add_LeasesServicer_to_server(Leases(), server)
    socket = tmp_path / "s.sock"
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    with ContainerdContents(socket, Context("default"), timeout_s=1.0, directory=tmp_path) as made:
        yield made
    store.ended.set()
    server.stop(None).wait(ENOUGH_S)


def test_a_store_that_does_not_answer_is_not_waited_for(
    contents: ContainerdContents, store: Store
) -> None:
    with pytest.raises(DeadlineExceeded, match="did not answer for 1 s"):
        contents.writer("r")


def test_a_store_that_stops_in_the_middle_is_not_waited_for(
    contents: ContainerdContents, store: Store
) -> None:
    store.answers = {pb.STAT: 1, pb.WRITE: 1}
    with contents.writer("r") as writer:
        writer.write(bytes(1 << 20))
        with pytest.raises(DeadlineExceeded, match="did not answer for 1 s"):
            writer.write(bytes(1 << 20))
    assert store.aborted == ["r"]


def test_content_that_stops_coming_is_not_waited_for(contents: ContainerdContents) -> None:
    with pytest.raises(DeadlineExceeded, match="did not answer for 1 s"):
        contents.open("sha256:" + 64 * "0", 10)


def test_content_that_is_larger_than_it_should_be_is_not_fetched_to_its_end(
    contents: ContainerdContents, store: Store
) -> None:
    store.goes_on = True
    with pytest.raises(FailedPrecondition, match="has more than the 100 bytes"):
        contents.open("sha256:" + 64 * "0", 100)


def test_a_commit_that_is_refused_leaves_no_ingest(
    contents: ContainerdContents, store: Store
) -> None:
    store.answers, store.refuses_commits = {pb.STAT: 1}, True
    with contents.writer("r") as writer, pytest.raises(FailedPrecondition):
        writer.commit(0, "", {})
    assert store.aborted == ["r"]
