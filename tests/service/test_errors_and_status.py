"""The one table between errors and gRPC status, across a real socket."""

from __future__ import annotations

import errno
import os
from typing import Any

import grpc
import pytest
import structlog

from snapfs import model
from snapfs.model import Code, Conflict, SnapfsError
from snapfs.service import snapfs_v1_pb2 as pb
from snapfs.service import snapfs_v1_pb2_grpc
from snapfs.service.client import Client
from snapfs.service.status import MAX_MESSAGE_BYTES, STATUS, code_of


def _instance(code: Code, message: str) -> SnapfsError:
    if code is Code.CONFLICT:
        return Conflict(message, expected=3, actual=5)
    (kind,) = (error for error in SnapfsError.__subclasses__() if error.code is code)
    return kind(message)


def _raise(error: Exception) -> Any:
    def answer(*_: object) -> None:
        raise error

    return answer


def test_the_table_covers_every_code() -> None:
    assert set(STATUS) == set(Code)


def test_every_code_has_one_error_class() -> None:
    assert sorted(error.code.name for error in SnapfsError.__subclasses__()) == sorted(
        code.name for code in Code
    )


def test_the_status_is_what_containerd_takes_it_for() -> None:
    assert STATUS[Code.CONFLICT] is grpc.StatusCode.FAILED_PRECONDITION
    assert STATUS[Code.NOT_IMPLEMENTED] is grpc.StatusCode.UNIMPLEMENTED
    assert STATUS[Code.RESOURCE_EXHAUSTED] is grpc.StatusCode.RESOURCE_EXHAUSTED
    for same in ("NOT_FOUND", "ALREADY_EXISTS", "INVALID_ARGUMENT", "FAILED_PRECONDITION"):
        assert STATUS[Code[same]] is grpc.StatusCode[same]


@pytest.mark.parametrize("code", Code)
@pytest.mark.logs("call.failed")
def test_an_error_arrives_as_it_was_raised(code: Code, client: Client, snapshotter: Any) -> None:
    snapshotter.answer = _raise(_instance(code, f"snapshot 'ä': {code.value}; do otherwise"))
    with pytest.raises(SnapfsError) as caught:
        client.mounts("k")
    assert type(caught.value) is type(_instance(code, ""))
    assert str(caught.value) == f"snapshot 'ä': {code.value}; do otherwise"


def test_a_conflict_brings_its_revisions(client: Client, snapshotter: Any) -> None:
    snapshotter.answer = _raise(Conflict("changed meanwhile", expected=3, actual=5))
    with pytest.raises(Conflict) as caught:
        client.mounts("k")
    assert (caught.value.expected, caught.value.actual) == (3, 5)


@pytest.mark.logs("call.failed")
def test_an_error_in_the_middle_of_a_stream_arrives_after_what_was_sent(
    client: Client, snapshotter: Any
) -> None:
    def walk(*_: object) -> Any:
        for number in range(150):
            yield model.View(id=model.SnapshotId(number + 1), name=str(number))
        raise model.DataLoss("metadata is damaged; restore it")

    snapshotter.answer = walk
    stream = client.list()
    assert [next(stream).snapshot.name for _ in range(100)] == [str(it) for it in range(100)]
    with pytest.raises(model.DataLoss, match="metadata is damaged"):
        list(stream)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "no space left"), Code.RESOURCE_EXHAUSTED),
        (OSError(errno.EDQUOT, "quota"), Code.RESOURCE_EXHAUSTED),
        (OSError(errno.EMFILE, "too many files"), Code.RESOURCE_EXHAUSTED),
        (OSError(errno.EACCES, "no"), Code.PERMISSION_DENIED),
        (TimeoutError(), Code.DEADLINE_EXCEEDED),
        # A missing file of ours must not look like a missing snapshot: containerd would believe it.
        (FileNotFoundError(errno.ENOENT, "no such file"), Code.INTERNAL),
        (OSError(errno.EEXIST, "exists"), Code.INTERNAL),
        (OSError(errno.EIO, "io"), Code.INTERNAL),
        (KeyError("x"), Code.INTERNAL),
    ],
)
def test_foreign_errors_have_a_code(error: Exception, code: Code) -> None:
    assert code_of(error) is code


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "cannot go on (/a): no space left on device; free some space"),
        (errno.EMFILE, "cannot go on (/a): too many open files; raise the limit of open files"),
        (errno.EROFS, "the system refused: [Errno 30] Read-only file system: '/a'; see the daemon"),
    ],
)
@pytest.mark.logs("call.failed")
def test_what_the_system_lacks_is_said_with_the_way_out(
    number: int, message: str, client: Client, snapshotter: Any
) -> None:
    snapshotter.answer = _raise(OSError(number, os.strerror(number), "/a"))
    with pytest.raises(SnapfsError) as caught:
        client.mounts("k")
    assert str(caught.value).startswith(message)


def test_an_unforeseen_error_is_internal_logged_with_its_trace_and_keeps_its_secret(
    client: Client, snapshotter: Any
) -> None:
    snapshotter.answer = _raise(RuntimeError("secret"))
    with structlog.testing.capture_logs() as logs, pytest.raises(model.Internal) as caught:
        client.mounts("k")
    assert str(caught.value) == "unexpected RuntimeError; see the daemon's log"
    assert [(log["event"], log["method"], str(log["exc_info"])) for log in logs] == [
        ("call.failed", "Mounts", "secret")
    ]


def test_a_refusal_is_not_logged_as_a_failure(client: Client, snapshotter: Any) -> None:
    snapshotter.answer = _raise(model.NotFound("snapshot 'k' does not exist"))
    with structlog.testing.capture_logs() as logs, pytest.raises(model.NotFound):
        client.mounts("k")
    assert logs == []


@pytest.mark.parametrize("character", ["x", "é", "🦥", "\n", "\x00", "%"])
def test_a_very_long_message_is_cut_rather_than_lost(
    character: str, client: Client, snapshotter: Any
) -> None:
    snapshotter.answer = _raise(model.NotFound(character * 32_000))
    with pytest.raises(model.NotFound) as caught:
        client.mounts("k")
    message = str(caught.value)
    assert message.startswith(character * 100)
    assert message.endswith("...")
    assert len(message.encode()) <= MAX_MESSAGE_BYTES


@pytest.mark.logs("call.failed")
def test_a_file_name_that_is_no_utf8_can_be_spoken_of(client: Client, snapshotter: Any) -> None:
    snapshotter.answer = _raise(model.Internal("layer b\udcff is gone"))
    with pytest.raises(model.Internal, match=r"layer b\\udcff is gone"):
        client.mounts("k")


def test_a_request_that_is_no_utf8_is_a_bad_argument(channel: grpc.Channel) -> None:
    call = channel.unary_unary(
        "/snapfs.v1.Snapfs/Mounts",
        request_serializer=lambda raw: raw,
        response_deserializer=pb.MountsResponse.FromString,
    )
    with pytest.raises(grpc.RpcError) as caught:
        call(b"\x0a\x02\xff\xfe", timeout=30)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "UTF-8" in caught.value.details()


def test_a_streamed_request_that_does_not_parse_is_a_bad_argument(channel: grpc.Channel) -> None:
    call = channel.unary_stream(
        "/snapfs.v1.Snapfs/List",
        request_serializer=lambda raw: raw,
        response_deserializer=pb.ListResponse.FromString,
    )
    with pytest.raises(grpc.RpcError) as caught:
        list(call(b"\x0a\xff", timeout=30))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_an_unknown_method_is_unimplemented(channel: grpc.Channel) -> None:
    call = channel.unary_unary("/snapfs.v1.Snapfs/Fly")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"", timeout=30)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_the_stub_is_the_generated_one(channel: grpc.Channel, snapshotter: Any) -> None:
    answer = snapfs_v1_pb2_grpc.SnapfsStub(channel).Mounts(pb.MountsRequest(key="k"), timeout=30)
    assert answer == pb.MountsResponse()
