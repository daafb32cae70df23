"""Changes: all that one revision did, as it is proposed, kept, watched and applied elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import msgspec

from snapfs.model import DataLoss
from snapfs.store import events, schema, tables
from snapfs.store.events import Event, Stored, UpdateCommitted
from snapfs.store.tables import Registry, Table


class Change(msgspec.Struct, frozen=True, array_like=True):
    """One revision: its events in order, without the commit that ends them."""

    revision: int
    stored: tuple[Stored, ...]

    @property
    def size_bytes(self) -> int:
        """What it takes on the wire, near enough."""
        return sum(len(each.new) + len(each.old) for each in self.stored)

    def pack(self) -> bytes:
        return _encoder.encode(self)


_COMMIT = Stored(events.COMMIT)
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Change)


def unpack(raw: bytes) -> Change:
    """Return what `Change.pack` made; raise DataLoss for anything else."""
    try:
        return _decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataLoss(f"a change does not decode ({error}); fetch it again") from error


def from_log(items: Iterable[tuple[bytes, bytes]]) -> Iterator[Change]:
    """Yield the changes in keys and values of the log; one without its commit is left out."""
    found: list[Stored] = []
    for key, value in items:
        stored = events.decode_stored(key, value)
        if stored.kind == events.COMMIT:
            yield Change(schema.split_log_key(key)[0], tuple(found))
            found = []
        else:
            found.append(stored)


class Slab:
    """Successive changes with their events, which are decoded when first asked for and then shared.

    Events are numbered in order, the commits among them; who wants few finds them by their numbers.
    """

    def __init__(self, changes: Sequence[Change], registry: Registry) -> None:
        self.revision = changes[-1].revision if changes else 0
        """The last one's."""
        self._registry = registry
        self._stored: list[tuple[int, Stored]] = []
        self.commits: list[int] = []
        """Numbers of the commits."""
        self._of_tag: dict[int, list[int]] = {}
        for change in changes:
            for each in change.stored:
                tag, _ = tables.peek(each.new or each.old)
                self._of_tag.setdefault(tag, []).append(len(self._stored))
                self._stored.append((change.revision, each))
            self.commits.append(len(self._stored))
            self._stored.append((change.revision, _COMMIT))
        self._events: dict[int, Event | None] = {}
        self._named: dict[int, dict[str, list[int]]] = {}

    def of_table(self, table: Table[Any]) -> Sequence[int]:
        """Return the numbers of the events of a table's rows."""
        return self._of_tag.get(table.tag, ())

    def of_name(self, table: Table[Any], name: str) -> Sequence[int]:
        """Return the numbers of the events of the rows of a name, in any scope."""
        named = self._named.get(table.tag)
        if named is None:
            named = {}
            for number in self.of_table(table):
                stored = self._stored[number][1]
                name_there = tables.peek_name(stored.new or stored.old)
                named.setdefault(table.name_form(name_there), []).append(number)
            self._named[table.tag] = named
        return named.get(table.name_form(name), ())

    def event(self, number: int) -> Event | None:
        """Return an event; None for a row of a table that we do not know."""
        if number not in self._events:
            self._events[number] = events.event(self._registry, *self._stored[number], verify=False)
        return self._events[number]

    @cached_property
    def all(self) -> Sequence[Event]:
        """All events that we know."""
        return self.pick(range(len(self._stored)))

    @cached_property
    def rows(self) -> Sequence[Event]:
        """All but the commits."""
        return [event for event in self.all if not isinstance(event, UpdateCommitted)]

    def pick(self, numbers: Iterable[int]) -> list[Event]:
        found = (self.event(number) for number in numbers)
        return [event for event in found if event is not None]
