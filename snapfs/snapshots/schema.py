"""What the store keeps for snapshots: one table, its indexes and edges, and the intents.

table 1, "snapshot", scope "snapfs": one row a snapshot, by its key or name.
    index "id"         snapshot id, u64 big-endian; unique.
    index "mountable"  the kind, one byte; only active and view snapshots are in it.
    edge 1             strong, to the row of the direct parent: a parent cannot be deleted
                       before its children.

Invariants: a parent is committed; `chain` is the parent's id followed by the parent's chain;
usage is zero unless committed. A committed row never changes but for its labels, times and digest,
so the chain, once written, stays true, and finding all layers of a snapshot is one read.

intents: msgpack of one of the records below. `Creating` is written before the first layer
directory of its range is made: a directory in the range whose id has no row is an unfinished
creation. `Removing` is written in the transaction that deletes the row.
"""

from __future__ import annotations

import struct
from typing import TypeAlias

import msgspec

from snapfs.model import DataLoss, Kind
from snapfs.store import Index, Reference, Table

SCOPE = "snapfs"
"""Scope of the rows."""

SEQUENCE = "snapshots"
"""Scope of the sequence that snapshot ids come from."""

PARENT_EDGE = 1

_ID = struct.Struct(">Q")


class SnapshotBody(msgspec.Struct, frozen=True, array_like=True):
    """A snapshot but for its name and times; the order of fields is the order on disk."""

    id: int
    kind: int
    """Number of model.Kind."""
    parent: int
    """oid of the direct parent's row; 0 for a base."""
    chain: tuple[int, ...]
    """Ids of all parents, direct parent first."""
    labels: dict[str, str]
    size_bytes: int = 0
    inodes: int = 0
    lane: str = ""
    """Where it is shown, chosen when it was made; empty in rows from before there were several:
    `main`."""
    digest: bytes = b""
    """Of a committed layer, once it is sealed (snapfs.seals); else empty."""
    owner: str = ""
    """Client with a collector of its own that made it; it sees no others. Empty: ours."""


def id_key(snapshot_id: int) -> bytes:
    """Return the value under which the index "id" has a snapshot."""
    return _ID.pack(snapshot_id)


def kind_key(kind: Kind) -> bytes:
    """Return the value under which the index "mountable" has the snapshots of a kind."""
    return bytes([kind.value])


def _mountable(body: SnapshotBody) -> tuple[bytes, ...]:
    return () if body.kind == Kind.COMMITTED.value else (bytes([body.kind]),)


SNAPSHOTS: Table[SnapshotBody] = Table(
    tag=1,
    name="snapshot",
    body=SnapshotBody,
    indexes=(
        Index("id", lambda body: (id_key(body.id),), unique=True),
        Index("mountable", _mountable),
    ),
    references=(
        Reference(PARENT_EDGE, lambda body: (body.parent,) if body.parent else (), strong=True),
    ),
)

TABLES = (SNAPSHOTS,)


class Creating(msgspec.Struct, frozen=True, array_like=True, tag="creating"):
    """Layer directories may be made for the ids first..last, both included."""

    first: int
    last: int

    def __contains__(self, snapshot_id: int) -> bool:
        return self.first <= snapshot_id <= self.last


class Removing(msgspec.Struct, frozen=True, array_like=True, tag="removing"):
    """The layer directory of this id is to be deleted."""

    id: int


Intent: TypeAlias = Creating | Removing

_decoder: msgspec.msgpack.Decoder[Intent] = msgspec.msgpack.Decoder(Intent)


def encode_intent(intent: Intent) -> bytes:
    return msgspec.msgpack.encode(intent)


def decode_intent(payload: bytes) -> Intent:
    """Return the intent in `payload`, or raise DataLoss."""
    try:
        return _decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataLoss(
            f"an intent does not decode ({error}); use the version of snapfs that wrote it"
        ) from error
