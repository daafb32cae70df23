"""The client of the store's service: watches as iterators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from snapfs.service import snapfs_v1_pb2 as pb
from snapfs.service import snapfs_v1_pb2_grpc
from snapfs.service.connection import Connection
from snapfs.service.store_wire import SeenEvent, action_to_wire, event_from_wire
from snapfs.store import Action


@dataclass(frozen=True, slots=True)
class Wanted:
    """Events of one table's rows; all that is given must hold."""

    table: str
    actions: tuple[Action, ...] = ()
    """None for any."""
    scope: str | None = None
    name: str | None = None
    name_prefix: str = ""
    oid: int | None = None


class StoreClient(Connection):
    """snapfs.v1.Store over one connection."""

    def __init__(self, address: Path, *, timeout_s: float = 60) -> None:
        super().__init__(address, timeout_s=timeout_s)
        self._stub = snapfs_v1_pb2_grpc.StoreStub(self._channel)

    def watch(
        self,
        after_rev: int | None = None,
        wanted: Sequence[Wanted] = (),
        *,
        include_old: bool = False,
    ) -> Iterator[tuple[int, list[SeenEvent]]]:
        """Yield each revision after `after_rev`, or from now on, with its events; for ever.

        First comes the revision from which it goes, without events. It has no deadline: close
        the iterator or the connection. Raises Compacted when the log does not reach back so far.
        """
        request = pb.WatchRequest(
            filters=map(_filter, wanted), after_revision=after_rev, include_old=include_old
        )
        events: list[pb.StoreEvent] = []
        with self._errors():
            call = self._stub.Watch(request)
            try:
                for answer in call:
                    events += answer.events
                    if answer.revision or not events:
                        yield (
                            answer.revision,
                            [event_from_wire(answer.revision, each) for each in events],
                        )
                        events = []
            finally:
                call.cancel()  # type: ignore[no-untyped-call]  # untyped upstream


def _filter(wanted: Wanted) -> pb.WatchFilter:
    return pb.WatchFilter(
        table=wanted.table,
        actions=map(action_to_wire, wanted.actions),
        scope=wanted.scope,
        name=wanted.name,
        name_prefix=wanted.name_prefix,
        oid=wanted.oid,
    )
