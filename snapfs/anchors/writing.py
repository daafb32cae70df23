"""Changing anchors, as functions of a transaction: put, delete, expire, sweep, bind.

Other rooms call these inside their own updates, so that a branch and the entry of its tip are one
change. Nothing here reads more of a history than the facts at one time, so the cost of a change
does not depend on how long the history is.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import msgspec

from snapfs.anchors import reading, rules
from snapfs.anchors.entries import Deleted, Entry, Put, entry
from snapfs.anchors.facts import (
    MAX_SEQ,
    Fact,
    Key,
    Ref,
    check_anchor,
    check_ref,
    check_time,
    check_words,
    shown_time,
)
from snapfs.anchors.reading import AnchorRow, FactRow, shown
from snapfs.anchors.schema import ANCHORS, FACTS, SCOPE, AnchorBody, FactBody, fact_name
from snapfs.model import Conflict, FailedPrecondition, InvalidArgument, NotFound
from snapfs.store import ReadTx, WriteTx

TOLERANCE_NS = 300 * 1_000_000_000
"""How far ahead of this host's clock a time may be: five minutes, as clocks differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What a put or a delete says besides its name and reference."""

    at_ns: int | None = None
    """From when it holds; None for now, and in any case after the newest entry."""
    author: str = ""
    reason: str = ""
    expect_rev: int | None = None
    """Revision that the newest entry must have; 0 when there must be none, or a deleted one."""
    target: int = 0
    """oid of the row that the reference means in this store, to be kept alive; 0 for none."""
    tolerance_ns: int = TOLERANCE_NS


PLAIN = Statement()


def put(tx: WriteTx, name: str, ref: Ref, statement: Statement = PLAIN) -> Put:
    """Say that `name` stands for `ref` from a time on, and return the entry.

    The same reference again at the time of an entry that holds it already changes nothing. Raises
    InvalidArgument for a bad name, reference or a time too far ahead, Conflict when the newest
    entry is not as expected, FailedPrecondition for a time whose history has expired.
    """
    found = _state(tx, name, check_ref(ref), statement)
    assert isinstance(found, Put)  # noqa: S101 - it has a reference
    return found


def delete(tx: WriteTx, name: str, statement: Statement = PLAIN) -> Deleted:
    """Say that `name` stands for nothing from a time on; what it stood for before stays known.

    Raises NotFound when it stands for nothing then already, and what `put` raises.
    """
    _check_expected(tx, name, statement.expect_rev)
    reading.get(tx, name, at_ns=statement.at_ns)
    found = _state(tx, name, None, statement)
    assert isinstance(found, Deleted)  # noqa: S101 - it has no reference
    return found


def _state(tx: WriteTx, name: str, ref: Ref | None, statement: Statement) -> Entry:
    check_anchor(name)
    check_words(statement.author, statement.reason)
    _check_expected(tx, name, statement.expect_rev)
    row = reading.anchor(tx, name)
    at_ns = _time(tx, row, statement)
    same_time = _fact_of_time(tx, row, at_ns)
    if same_time is not None and same_time.body.ref == ref:
        return entry(name, same_time)
    seq = 0 if same_time is None else same_time.body.fact.seq + 1
    if seq > MAX_SEQ:
        raise InvalidArgument(f"anchor {shown(name)} has too many entries at one time; use another")
    fact = Fact(at_ns, seq, ref, statement.author, statement.reason)
    if row is None:
        row = tx.create(ANCHORS, SCOPE, name, AnchorBody())
    elif not rules.survives(fact.key, row.body.horizon):
        raise FailedPrecondition(
            f"anchor {shown(name)}: the history at {shown_time(at_ns)} has expired; "
            "use a time after its oldest entry"
        )
    return entry(name, add(tx, row, fact, statement.target))


def add(tx: WriteTx, row: AnchorRow, fact: Fact, target: int) -> FactRow:
    """Write a fact that is not there yet."""
    body = FactBody(anchor=row.oid, fact=fact, target=target)
    return tx.create(FACTS, SCOPE, fact_name(row.oid, fact.key), body)


def _time(tx: WriteTx, row: AnchorRow | None, statement: Statement) -> int:
    """Return the time of a new fact.

    Without one given it is now, but later than the newest entry, which may come from a host whose
    clock is ahead: what is put last is what counts.
    """
    if statement.at_ns is None:
        last = reading.newest(tx, row)
        return check_time(tx.now_ns if last is None else max(tx.now_ns, last.body.at_ns + 1))
    limit_ns = tx.now_ns + statement.tolerance_ns
    if check_time(statement.at_ns) > limit_ns:
        raise InvalidArgument(
            f"time {shown_time(statement.at_ns)} is too far ahead: now is "
            f"{shown_time(tx.now_ns)}; set the clock, or leave the time out"
        )
    return statement.at_ns


def _fact_of_time(tx: ReadTx, row: AnchorRow | None, at_ns: int) -> FactRow | None:
    """Return the fact in force at exactly the time that it is of, or None."""
    found = reading.newest(tx, row, at_ns=at_ns)
    return found if found is not None and found.body.at_ns == at_ns else None


def _check_expected(tx: ReadTx, name: str, expect_rev: int | None) -> None:
    if expect_rev is None:
        return
    last = reading.newest(tx, reading.anchor(tx, name))
    actual = 0 if last is None or last.body.ref is None else last.create_rev
    if actual != expect_rev:
        raise Conflict(
            f"anchor {shown(name)} is at revision {actual}, not at {expect_rev}; "
            "get it again and repeat the change",
            expected=expect_rev,
            actual=actual,
        )


def find_cut(tx: ReadTx, row: AnchorRow, limit_ns: int, at_least: int) -> Key | None:
    """Return the horizon that an expiry at `limit_ns` sets, or None when it takes nothing away.

    Reads the facts newer than the limit only when more than one entry is to stay.
    """
    start_ns = limit_ns if at_least <= 1 else None
    bodies = (fact.body for fact in reading.facts(tx, row, at_ns=start_ns))
    oldest = rules.cut(bodies, limit_ns, at_least)
    return None if oldest is None or next(bodies, None) is None else oldest.fact.key


def set_horizon(tx: WriteTx, name: str, horizon: Key) -> bool:
    """Let the facts before `horizon` be no part of the history; say whether that is news.

    Raises NotFound when the anchor or the fact at the horizon is not there.
    """
    row = reading.anchor(tx, name)
    if row is not None and rules.later(row.body.horizon, horizon) == row.body.horizon:
        return False
    if row is None or tx.get(FACTS, SCOPE, fact_name(row.oid, horizon)) is None:
        raise NotFound(f"anchor {shown(name)} has no fact of {shown_time(horizon.at_ns)}")
    tx.update(row, msgspec.structs.replace(row.body, horizon=horizon))
    return True


def sweep(tx: WriteTx, name: str, count: int) -> int:
    """Delete up to `count` facts before the horizon and return how many there were."""
    row = reading.anchor(tx, name)
    expired = list(islice(reading.expired_facts(tx, row), count)) if row else []
    for fact in expired:
        tx.delete(fact)
    return len(expired)


def bind(tx: WriteTx, ref: Ref, target: int) -> int:
    """Let the facts that name `ref` keep the row `target` alive, 0 for none; return how many.

    For when what a reference means comes to this store after the facts that name it.
    """
    unbound = [fact for _, fact in reading.naming(tx, ref) if fact.body.target != target]
    for fact in unbound:
        tx.update(fact, msgspec.structs.replace(fact.body, target=target), spec=False)
    return len(unbound)
