"""Reading anchors, as functions of a transaction: at a time, by prefix, the whole history."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TypeAlias

from snapfs.anchors import rules
from snapfs.anchors.entries import Deleted, Entry, Put, entry
from snapfs.anchors.facts import History, Ref, check_anchor, check_time, shown_time
from snapfs.anchors.schema import (
    ANCHORS,
    FACTS,
    SCOPE,
    AnchorBody,
    FactBody,
    before_time,
    fact_name,
    facts_prefix,
    ref_key,
)
from snapfs.model import NotFound
from snapfs.store import ReadTx, Row

AnchorRow: TypeAlias = Row[AnchorBody]
FactRow: TypeAlias = Row[FactBody]


def shown(name: str) -> str:
    """Return `name` as a message shows it: quoted, and cut when it is very long."""
    return repr(name) if len(name) <= 120 else f"{name[:120]!r}…"


def anchor(tx: ReadTx, name: str) -> AnchorRow | None:
    """Return the row of a name, also of a deleted one; None when it never was."""
    return tx.get(ANCHORS, SCOPE, check_anchor(name))


def anchors(tx: ReadTx, prefix: str, after: str | None) -> Iterator[AnchorRow]:
    """Yield the rows of the names that begin with `prefix`, in order, from behind `after`."""
    return tx.rows(ANCHORS, SCOPE, prefix=prefix, after=after)


def facts(tx: ReadTx, row: AnchorRow, *, at_ns: int | None = None) -> Iterator[FactRow]:
    """Yield the facts of an anchor, newest first, from those of the time `at_ns` on downwards."""
    start = None if at_ns is None else before_time(row.oid, check_time(at_ns))
    horizon = row.body.horizon
    last = fact_name(row.oid, horizon) if horizon else None
    for fact in tx.rows(FACTS, SCOPE, prefix=facts_prefix(row.oid), after=start):
        if last is not None and fact.name > last:
            return
        yield fact


def expired_facts(tx: ReadTx, row: AnchorRow) -> Iterator[FactRow]:
    """Yield the facts before the horizon that are not deleted yet."""
    if row.body.horizon is not None:
        start = fact_name(row.oid, row.body.horizon)
        yield from tx.rows(FACTS, SCOPE, prefix=facts_prefix(row.oid), after=start)


def newest(tx: ReadTx, row: AnchorRow | None, *, at_ns: int | None = None) -> FactRow | None:
    """Return the fact in force at `at_ns`, or the newest of all; None when there is none."""
    return None if row is None else next(facts(tx, row, at_ns=at_ns), None)


def get(tx: ReadTx, name: str, *, at_ns: int | None = None) -> Put:
    """Return what `name` stood for at a time, or without one what it stands for last.

    Raises NotFound, saying whether the name never was, was not yet, or was deleted.
    """
    row = anchor(tx, name)
    found = newest(tx, row, at_ns=at_ns)
    if row is None:
        raise NotFound(f"anchor {shown(name)} does not exist; put it first")
    if found is None:
        what = "has no entry yet" if row.body.horizon is None else "has no entry, or one expired,"
        raise NotFound(f"anchor {shown(name)} {what} at {shown_time(at_ns or 0)}; see its history")
    match entry(name, found):
        case Put() as put:
            return put
        case Deleted(at_ns=since):
            raise NotFound(
                f"anchor {shown(name)} was deleted at {shown_time(since)}; "
                "ask for an earlier time, or put it anew"
            )


def batch(
    tx: ReadTx, prefix: str, after: str | None, count: int, *, at_ns: int | None
) -> tuple[list[Entry], str | None]:
    """Return what the next `count` names stood for, and the last name looked at or None at the end.

    Names without an entry at that time are left out; deleted ones are in.
    """
    rows = list(islice(anchors(tx, prefix, after), count))
    found = [
        entry(row.name, fact) for row in rows if (fact := newest(tx, row, at_ns=at_ns)) is not None
    ]
    return found, rows[-1].name if len(rows) == count else None


def history(
    tx: ReadTx, name: str, *, at_ns: int | None = None, repeats: bool = False
) -> Iterator[Entry]:
    """Yield the entries of a name, newest first, from a time on downwards; or raise NotFound.

    An entry that says the same as the one before it in time is left out unless `repeats`.
    """
    row = anchor(tx, name)
    if row is None:
        raise NotFound(f"anchor {shown(name)} does not exist; put it first")
    entries = (entry(name, fact) for fact in facts(tx, row, at_ns=at_ns))
    return entries if repeats else rules.compress(entries)


def export(tx: ReadTx, name: str) -> History:
    """Return all that this store knows of a name, for `merging.merge` elsewhere; or NotFound."""
    row = anchor(tx, name)
    if row is None:
        raise NotFound(f"anchor {shown(name)} does not exist; put it first")
    newest_first = [fact.body.fact for fact in facts(tx, row)]
    return History(name, tuple(reversed(newest_first)), row.body.horizon)


def naming(tx: ReadTx, ref: Ref) -> Iterator[tuple[str, FactRow]]:
    """Yield every fact that names `ref`, with its anchor's name; expired ones that are still there
    too."""
    for fact in tx.find(FACTS, "ref", ref_key(ref), scope=SCOPE):
        row = tx.by_oid(ANCHORS, fact.body.anchor)
        if row is not None:
            yield row.name, fact
