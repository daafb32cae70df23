"""Verifying what schema.py states of anchors; nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator

from snapfs.anchors import reading
from snapfs.anchors.facts import shown_time
from snapfs.anchors.reading import AnchorRow, shown
from snapfs.anchors.schema import ANCHORS, FACTS, SCOPE, fact_name
from snapfs.store import ReadTx


def check(tx: ReadTx) -> Iterator[str]:
    """Yield a sentence for each invariant that does not hold."""
    for row in tx.rows(ANCHORS, SCOPE):
        yield from _check_anchor(tx, row)
    for fact in tx.rows(FACTS, SCOPE):
        if fact.name != fact_name(fact.body.anchor, fact.body.fact.key):
            yield f"anchor fact {fact.oid} is not filed under what it says"
        if tx.by_oid(ANCHORS, fact.body.anchor) is None:
            yield f"anchor fact {fact.oid} is of anchor {fact.body.anchor}, which does not exist"


def _check_anchor(tx: ReadTx, row: AnchorRow) -> Iterator[str]:
    if reading.newest(tx, row) is None:
        yield f"anchor {shown(row.name)} has no fact"
    horizon = row.body.horizon
    if horizon is not None and tx.get(FACTS, SCOPE, fact_name(row.oid, horizon)) is None:
        yield f"anchor {shown(row.name)} lacks its oldest fact, of {shown_time(horizon.at_ns)}"


CHECKS = {"anchor": lambda tx, _root: check(tx)}
"""By kind of problem, as an fsck of the root wants it."""
