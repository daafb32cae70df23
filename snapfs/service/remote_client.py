"""The client of the remotes' service: typed calls that raise the SnapfsError that was raised."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from snapfs.service import remote_wire as wire
from snapfs.service import sync_v1_pb2 as pb
from snapfs.service import sync_v1_pb2_grpc
from snapfs.service.connection import Connection
from snapfs.service.remote_wire import SetReport
from snapfs.sync.conflicts import Kept
from snapfs.sync.engine import Progress
from snapfs.sync.planning import Direction
from snapfs.sync.remotes import Remote
from snapfs.sync.threeway import Policy


class RemoteClient(Connection):
    """snapfs.v1.Remotes over one connection."""

    def __init__(self, address: Path, *, timeout_s: float = 60) -> None:
        super().__init__(address, timeout_s=timeout_s)
        self._stub = sync_v1_pb2_grpc.RemotesStub(self._channel)

    def add(self, name: str, url: str) -> Remote:
        """Record a remote; it is not asked for yet."""
        answer = self._call(self._stub.Add, pb.AddRemoteRequest(name=name, url=url))
        return wire.remote_from_wire(answer.remote)

    def remotes(self) -> list[Remote]:
        """Return the remotes in the order of names."""
        answer = self._call(self._stub.List, pb.ListRemotesRequest())
        return list(map(wire.remote_from_wire, answer.remotes))

    def remove(self, name: str) -> None:
        """Forget a remote and what is known of the last syncs with it."""
        self._call(self._stub.Remove, pb.RemoveRemoteRequest(name=name))

    def sync(
        self,
        set_name: str,
        remote: str,
        direction: Direction,
        policy: Policy,
        *,
        author: str = "",
    ) -> Iterator[Progress | SetReport]:
        """Yield how far a sync has come, and a report for each set; there is no deadline."""
        request = pb.SyncRequest(
            set=set_name,
            remote=remote,
            direction=direction.value,
            policy=policy.value,
            author=author,
        )
        with self._errors():
            for answer in self._stub.Sync(request):
                if answer.HasField("progress"):
                    yield wire.progress_from_wire(answer.progress)
                else:
                    yield wire.report_from_wire(answer.report)

    def conflicts(self, set_name: str = "") -> list[Kept]:
        """Return the conflicts of a set, or of all."""
        answer = self._call(self._stub.Conflicts, pb.ListConflictsRequest(set=set_name))
        return list(map(wire.conflict_from_wire, answer.conflicts))

    def resolve(self, number: int, side: Policy, *, author: str = "") -> Kept:
        """Let a side win a conflict; return what it was."""
        request = pb.ResolveConflictRequest(number=number, side=side.value, author=author)
        return wire.conflict_from_wire(self._call(self._stub.Resolve, request).conflict)
