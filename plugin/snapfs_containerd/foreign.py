"""A snapshotter of another service, as a client of containerd.services.snapshots.v1.

What is made there has a label that keeps it from that service's collector, if it has one, as
containerd has: when it goes is decided here (metadata/collector.py). Nobody here sees the label.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc

from snapfs.closing import Closing
from snapfs.config import Registered
from snapfs.model import (
    DeadlineExceeded,
    Labels,
    Mount,
    NotImplementedYet,
    Snapshot,
    Unavailable,
    Usage,
)
from snapfs.service.status import error_of, was_answered
from snapfs_containerd import snapshots_pb2 as pb
from snapfs_containerd import snapshots_pb2_grpc
from snapfs_containerd.wire import NAMESPACE_HEADER, mounts_from_wire, snapshot_from_wire

KEPT = "containerd.io/gc.root"

SHORT_S = 10.0
"""For calls that make nothing."""

TURNS = 16
"""Calls at once: those of a service that hangs must not take every thread of ours."""

TURN_S = 1.0
"""How long a further call waits for one of them to end."""

_OPTIONS = (
    # A proxy named in the environment is not for a local socket.
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


def connect(name: str, registered: Registered, timeout_s: float) -> ForeignSnapshotter:
    """Return a registered snapshotter (entry point snapfs.snapshotters); nobody is called yet."""
    return ForeignSnapshotter(name, registered, timeout_s=timeout_s)


class ForeignSnapshotter(Closing):
    """metadata.Backend over a socket. A call waits at most `timeout_s`; if it makes nothing, less.

    `close` ends the calls under way.

    Unavailable and DeadlineExceeded are of a service that is gone, or does not answer in time.
    """

    def __init__(self, name: str, registered: Registered, *, timeout_s: float) -> None:
        self._name = name
        self._socket = registered.socket
        self._timeout_s = timeout_s
        self._short_s = min(timeout_s, SHORT_S)
        self._is_closed = False
        self._there = registered.snapshotter or name
        self._headers = ((NAMESPACE_HEADER, registered.namespace),)
        self._turns = threading.BoundedSemaphore(TURNS)
        self._channel = grpc.insecure_channel(f"unix:{registered.socket}", options=_OPTIONS)
        self._stub = snapshots_pb2_grpc.SnapshotsStub(self._channel)

    def prepare(self, key: str, parent: str, labels: Labels) -> list[Mount]:
        request = pb.PrepareSnapshotRequest(key=key, parent=parent, labels=_kept(labels))
        return mounts_from_wire(self._make(self._stub.Prepare, request).mounts)

    def view(self, key: str, parent: str, labels: Labels) -> list[Mount]:
        request = pb.ViewSnapshotRequest(key=key, parent=parent, labels=_kept(labels))
        return mounts_from_wire(self._make(self._stub.View, request).mounts)

    def mounts(self, key: str) -> list[Mount]:
        return mounts_from_wire(self._call(self._stub.Mounts, pb.MountsRequest(key=key)).mounts)

    def commit(self, key: str, name: str, labels: Labels, parent: str = "") -> None:
        request = pb.CommitSnapshotRequest(key=key, name=name, labels=_kept(labels), parent=parent)
        self._make(self._stub.Commit, request)

    def remove(self, key: str) -> None:
        self._call(self._stub.Remove, pb.RemoveSnapshotRequest(key=key))

    def stat(self, key: str) -> Snapshot:
        return _shown(self._call(self._stub.Stat, pb.StatSnapshotRequest(key=key)).info)

    def update(self, key: str, labels: Labels, fieldpaths: Sequence[str] | None = None) -> Snapshot:
        request = pb.UpdateSnapshotRequest(info=pb.Info(name=key, labels=_kept(labels)))
        request.update_mask.paths.extend(fieldpaths or ())
        return _shown(self._call(self._stub.Update, request).info)

    def walk(self, filters: Sequence[str] = ()) -> Iterator[Snapshot]:
        request = pb.ListSnapshotsRequest(snapshotter=self._there, filters=filters)
        with self._errors():
            for answer in self._stub.List(request, timeout=self._timeout_s, metadata=self._headers):
                yield from map(_shown, answer.info)

    def usage(self, key: str) -> Usage:
        answer = self._call(self._stub.Usage, pb.UsageRequest(key=key))
        return Usage(size_bytes=answer.size, inodes=answer.inodes)

    def cleanup(self) -> None:
        """Let it delete what it left for later, if it does such a thing."""
        try:
            self._make(self._stub.Cleanup, pb.CleanupRequest())
        except NotImplementedYet:
            return

    def close(self) -> None:
        self._is_closed = True
        self._channel.close()

    def _make(self, method: Callable[..., Any], request: Any) -> Any:
        return self._ask(method, request, self._timeout_s)

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        return self._ask(method, request, self._short_s)

    def _ask(self, method: Callable[..., Any], request: Any, timeout_s: float) -> Any:
        request.snapshotter = self._there
        with self._errors():
            return method(request, timeout=timeout_s, metadata=self._headers)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        if not self._turns.acquire(timeout=TURN_S):
            raise Unavailable(
                f"snapshotter {self._name!r} is still busy with {TURNS} calls; try again later"
            )
        try:
            yield
        except grpc.RpcError as failure:
            raise self._refusal(failure) from None
        except ValueError:  # so says a channel that is closed
            if not self._is_closed:
                raise
            raise self._ended() from None
        finally:
            self._turns.release()

    def _refusal(self, failure: grpc.RpcError) -> Exception:
        error = error_of(failure)
        if was_answered(failure):
            return error
        if self._is_closed:
            return self._ended()
        who = f"snapshotter {self._name!r} does not answer on socket {self._socket}"
        match error:
            case Unavailable():
                # gRPC tells the whole way there; the system's own words come last.
                reason = str(error).rpartition("error: ")[2].lower()
                return Unavailable(f"{who} ({reason}); start its service and try again")
            case DeadlineExceeded():
                return DeadlineExceeded(f"{who} in time; look at its log and try again")
        return error

    def _ended(self) -> Unavailable:
        return Unavailable(f"this service is stopping, and asks snapshotter {self._name!r} no more")


def _kept(labels: Labels) -> dict[str, str]:
    return {**labels, KEPT: "snapfs"}


def _shown(info: pb.Info) -> Snapshot:
    info.labels.pop(KEPT, None)
    return snapshot_from_wire(info)
