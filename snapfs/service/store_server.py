"""The store's service of snapfs.v1: watches as streams. Translates, and ends streams in time.

A watch takes a thread of the server's for as long as it lasts, so there are at most MAX_WATCHES.
A client that reads slowly holds up its own stream only: it goes on out of the log.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import grpc

from snapfs.model import InvalidArgument, ResourceExhausted, Unavailable
from snapfs.service import snapfs_v1_pb2 as pb
from snapfs.service import snapfs_v1_pb2_grpc, store_wire
from snapfs.service.convert import batches
from snapfs.service.status import answers
from snapfs.store import (
    Action,
    Event,
    Overflow,
    Specifier,
    Store,
    Table,
    UpdateCommitted,
    WatchClosed,
)
from snapfs.store import Watch as OneWatch  # `Watch` is the name of the call

SERVICE = pb.DESCRIPTOR.services_by_name["Store"].full_name

MAX_WATCHES = 32

_IDLE_S = 60.0
"""How often a stream without news looks whether it is still wanted."""


class StoreServicer(snapfs_v1_pb2_grpc.StoreServicer):
    """snapfs.v1.Store over one store; `close` ends its streams. `_lock` guards `_watches`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._watches: set[OneWatch] = set()
        self._closed = False

    def register(self, server: grpc.Server) -> str:
        """Add the service to `server`; return its full name."""
        snapfs_v1_pb2_grpc.add_StoreServicer_to_server(self, server)
        return SERVICE

    def close(self) -> None:
        """End all streams, and refuse new ones; a server that stops would wait for them."""
        with self._lock:
            self._closed = True
            watches = list(self._watches)
        for watch in watches:
            watch.close()

    @answers
    def Watch(
        self, request: pb.WatchRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchResponse]:
        specifiers = [self._specifier(each) for each in request.filters]
        place = request.after_revision if request.HasField("after_revision") else None
        first = True
        while True:
            watch = self._begin(place, specifiers)
            try:
                if not context.add_callback(watch.close):
                    return  # the client is gone already
                if first:
                    first = False
                    yield pb.WatchResponse(revision=watch.revision)
                yield from self._stream(watch, include_old=request.include_old)
            except Overflow as overflow:
                place = overflow.last_rev
            except WatchClosed:
                self._say_why(watch)
                return
            finally:
                self._end(watch)

    def _stream(self, watch: OneWatch, *, include_old: bool) -> Iterator[pb.WatchResponse]:
        while True:
            for revision, events in _revisions(watch.take(_IDLE_S).events):
                sent = 0
                for batch in batches(events):
                    sent += len(batch)
                    yield pb.WatchResponse(
                        revision=revision if sent == len(events) else 0,
                        events=[self._event(it, include_old=include_old) for it in batch],
                    )

    def _event(self, event: Event, *, include_old: bool) -> pb.StoreEvent:
        return store_wire.event_to_wire(event, self._store.tables, include_old=include_old)

    def _begin(self, place: int | None, specifiers: Sequence[Specifier[Any]]) -> OneWatch:
        with self._lock:
            if self._closed:
                raise Unavailable("the service is stopping; watch again when it is back")
            if len(self._watches) >= MAX_WATCHES:
                raise ResourceExhausted(
                    f"{MAX_WATCHES} watches are open, which is the limit; end one first"
                )
            watch = self._store.watch(place, *specifiers)
            self._watches.add(watch)
            return watch

    def _end(self, watch: OneWatch) -> None:
        watch.close()
        with self._lock:
            self._watches.discard(watch)

    def _say_why(self, watch: OneWatch) -> None:
        """Raise Unavailable when the service ended the watch, not its client."""
        if self._closed:
            raise Unavailable(
                "the service is stopping; watch again from revision "
                f"{watch.revision} when it is back"
            )

    def _specifier(self, wanted: pb.WatchFilter) -> Specifier[Any]:
        actions = Action.CREATE | Action.UPDATE | Action.DELETE
        if wanted.actions:
            actions = Action(0)
            for each in wanted.actions:
                actions |= store_wire.action_from_wire(each)
        return Specifier(
            self._table(wanted.table),
            actions,
            scope=wanted.scope if wanted.HasField("scope") else None,
            name=wanted.name if wanted.HasField("name") else None,
            name_prefix=wanted.name_prefix,
            oid=wanted.oid if wanted.HasField("oid") else None,
        )

    def _table(self, name: str) -> Table[Any]:
        found = {table.name: table for table in self._store.tables}
        if name not in found:
            raise InvalidArgument(
                f"there is no table {name!r} to watch; there are: {', '.join(sorted(found))}"
            )
        return found[name]


def _revisions(events: Sequence[Event]) -> Iterator[tuple[int, list[Event]]]:
    """Yield the events of each revision that has any, without its commit."""
    found: list[Event] = []
    for event in events:
        if not isinstance(event, UpdateCommitted):
            found.append(event)
        elif found:
            yield event.revision, found
            found = []
