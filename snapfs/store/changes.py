"""Changes: all that one revision did, as it is proposed, kept, watched and applied elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property

import msgspec

from snapfs.model import DataLoss
from snapfs.store import events, schema, tables
from snapfs.store.events import Event, Stored, UpdateCommitted
from snapfs.store.schema import Sub
from snapfs.store.tables import Registry


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


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Change)


def unpack(raw: bytes) -> Change:
    """Return what `Change.pack` made; raise DataLoss for anything else."""
    try:
        return _decoder.decode(raw)
    except msgspec.MsgspecError as error:
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


class Decoded:
    """A change with its events, decoded when first asked for and then shared by all who ask."""

    def __init__(self, change: Change, registry: Registry) -> None:
        self.change = change
        self.revision = change.revision
        self._registry = registry

    @cached_property
    def tags(self) -> frozenset[int]:
        """The tables whose rows it changed."""
        return frozenset(
            tables.decode_tag(each.oid, each.new or each.old)[0] for each in self.change.stored
        )

    @cached_property
    def rows(self) -> tuple[Event, ...]:
        """Its events without the commit; rows of tables that we do not know are left out."""
        found = (events.event(self._registry, self.revision, it) for it in self.change.stored)
        return tuple(each for each in found if each is not None)

    @cached_property
    def commit(self) -> UpdateCommitted:
        return UpdateCommitted(self.revision)

    @cached_property
    def events(self) -> tuple[Event, ...]:
        return (*self.rows, self.commit)


def check_sealed(change: Change) -> None:
    """Raise DataLoss when a row in a change from elsewhere is not whole."""
    for each in change.stored:
        for value in (each.new, each.old):
            if value:
                schema.unseal(Sub.ROW, schema.U64.pack(each.oid), value)
