"""Events: what each revision did, as it lies in the log and as readers see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import msgspec

from snapfs.model import DataLoss
from snapfs.store import schema, tables
from snapfs.store.schema import Sub
from snapfs.store.tables import Registry, Row

CREATE: Final = 1
UPDATE: Final = 2
DELETE: Final = 3
COMMIT: Final = 4


@dataclass(frozen=True, slots=True)
class RowCreated:
    revision: int
    row: Row[Any]


@dataclass(frozen=True, slots=True)
class RowUpdated:
    revision: int
    row: Row[Any]
    old: Row[Any]


@dataclass(frozen=True, slots=True)
class RowDeleted:
    revision: int
    row: Row[Any]
    """The row as it was."""


@dataclass(frozen=True, slots=True)
class UpdateCommitted:
    """Ends the events of a revision; alone when the revision changed no row."""

    revision: int


Event: TypeAlias = RowCreated | RowUpdated | RowDeleted | UpdateCommitted


class Stored(msgspec.Struct, frozen=True, array_like=True):
    """An event in the log; rows are the values of the row sub-database, as they were."""

    kind: int
    oid: int = 0
    new: bytes = b""
    old: bytes = b""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Stored)


def encode(key: bytes, event: Stored) -> bytes:
    return schema.seal(key, _encoder.encode(event))


def decode_stored(key: bytes, value: bytes) -> Stored:
    try:
        return _decoder.decode(schema.unseal(Sub.LOG, key, value))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataLoss(f"event {key.hex()} does not decode ({error}); run `snapfs fsck`") from error


def decode(registry: Registry, key: bytes, value: bytes) -> Event | None:
    """Return the event at `key`, or None for a row of a table that this process does not know."""
    return event(registry, schema.split_log_key(key)[0], decode_stored(key, value))


def event(
    registry: Registry, revision: int, stored: Stored, *, verify: bool = True
) -> Event | None:
    """Return what `stored` is, or None for a row of a table that this process does not know.

    `verify=False` leaves out the rows' own checksums, for what was verified or is just written.
    """
    if stored.kind == COMMIT:
        return UpdateCommitted(revision)
    new = _row(registry, stored.oid, stored.new, verify=verify)
    old = _row(registry, stored.oid, stored.old, verify=verify)
    if stored.kind == CREATE:
        return RowCreated(revision, new) if new else None
    if stored.kind == UPDATE:
        return RowUpdated(revision, new, old) if new and old else None
    if stored.kind == DELETE:
        return RowDeleted(revision, old) if old else None
    raise DataLoss(f"an event of revision {revision} is of unknown kind {stored.kind}; see fsck")


def _row(registry: Registry, oid: int, value: bytes, *, verify: bool) -> Row[Any] | None:
    if not value:
        return None
    tag, packed = tables.decode_tag(oid, value) if verify else tables.peek(value)
    table = registry.by_tag.get(tag)
    return tables.decode_row(table, oid, packed) if table else None
