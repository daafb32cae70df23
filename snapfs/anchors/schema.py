"""What the store keeps for anchors: two tables, an index and an edge.

table 20, "anchor", scope "snapfs": one row a name, for ever: a deleted name ends in a tombstone,
    which other stores must still hear of.
    horizon     key of the oldest fact that an expiry left, or None.

table 21, "anchor fact", scope "snapfs": one row a fact, never changed but for its target. Its row
    name is the oid of the anchor, then the fact's key, each part in hexadecimal of fixed width
    and counted down from its greatest value: the rows of an anchor follow each other, the newest
    first, so that the fact in force at a time is the first row from that time's place on.
    index "ref"     type 00 value; tombstones are not in it.
    edge 20         weak, to the row that the reference means in this store, if it is known. It
                    keeps that row alive for a garbage collector, and lets others remove it.

Invariants: a fact's row name agrees with its anchor and its key; an anchor has at least one fact;
the fact at an anchor's horizon is there. Facts before the horizon are no part of the history and
on their way out: they are deleted in batches after it was set.
"""

from __future__ import annotations

import msgspec

from snapfs.anchors.facts import DIGEST_BYTES, MAX_SEQ, MAX_TIME_NS, Fact, Key, Ref
from snapfs.store import Index, Reference, Table

SCOPE = "snapfs"
"""Scope of the rows of both tables."""

TARGET_EDGE = 20

_MAX_DIGEST = (1 << 8 * DIGEST_BYTES) - 1


class AnchorBody(msgspec.Struct, frozen=True, array_like=True):
    """A name; what it stands for is in its facts."""

    horizon: Key | None = None


class FactBody(msgspec.Struct, frozen=True, array_like=True):
    """A fact of an anchor; the order of fields is the order on disk."""

    anchor: int
    """oid of the anchor's row."""
    fact: Fact
    target: int = 0
    """oid of the row that the reference means in this store; 0 when it is not known."""

    @property
    def at_ns(self) -> int:
        return self.fact.at_ns

    @property
    def ref(self) -> Ref | None:
        return self.fact.ref


def ref_key(ref: Ref) -> bytes:
    """Return the value under which the index "ref" has the facts that name `ref`."""
    return f"{ref.type}\0{ref.value}".encode()


def facts_prefix(anchor: int) -> str:
    """Return what the row names of an anchor's facts begin with."""
    return f"{anchor:016x}"


def before_time(anchor: int, at_ns: int) -> str:
    """Return the place just before the row names of an anchor's facts of `at_ns`."""
    return f"{anchor:016x}{MAX_TIME_NS - at_ns:016x}"


def fact_name(anchor: int, key: Key) -> str:
    """Return the row name of a fact; greater keys have lesser names."""
    digest = _MAX_DIGEST - int.from_bytes(key.digest)
    return f"{before_time(anchor, key.at_ns)}{MAX_SEQ - key.seq:08x}{digest:0{2 * DIGEST_BYTES}x}"


ANCHORS: Table[AnchorBody] = Table(tag=20, name="anchor", body=AnchorBody)

FACTS: Table[FactBody] = Table(
    tag=21,
    name="anchor fact",
    body=FactBody,
    indexes=(Index("ref", lambda body: (ref_key(body.ref),) if body.ref else ()),),
    references=(
        Reference(TARGET_EDGE, lambda body: (body.target,) if body.target else (), strong=False),
    ),
)

TABLES = (ANCHORS, FACTS)
