"""Taking over what another store knows of a name, as functions of a transaction.

Facts are copied as they are, never put: a put would judge them by what this store happens to know
now, and stores that heard the same things in another order would differ for ever. What is written
is the difference between this store's history and `rules.join` of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from snapfs.anchors import reading, rules, writing
from snapfs.anchors.facts import History, Key, Ref, check_anchor, check_fact, shown_time
from snapfs.anchors.reading import AnchorRow, shown
from snapfs.anchors.schema import ANCHORS, FACTS, SCOPE, AnchorBody, fact_name
from snapfs.model import InvalidArgument
from snapfs.store import WriteTx

Resolver: TypeAlias = Callable[[WriteTx, Ref], int]
"""Says which row of this store a reference means; 0 when there is none, or not yet."""


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge did."""

    added: int = 0
    """Facts that were news."""
    held_back: int = 0
    """Facts of a time too far ahead of this host's clock; merge again when it has come closer."""

    def __add__(self, other: Merged) -> Merged:
        return Merged(self.added + other.added, self.held_back + other.held_back)


def split(history: History, count: int) -> Iterator[History]:
    """Yield a history in parts of up to `count` facts; merged in order they are as the whole.

    The last has the horizon, since the fact at a horizon must be there when it is set.
    """
    checked = map(check_fact, history.facts)
    kept = [fact for fact in checked if rules.survives(fact.key, history.horizon)]
    last = max(0, len(kept) - 1) // count * count
    for start in range(0, last, count):
        yield History(history.name, tuple(kept[start : start + count]))
    yield History(history.name, tuple(kept[last:]), history.horizon)


def merge(
    tx: WriteTx, theirs: History, *, tolerance_ns: int, resolve: Resolver | None = None
) -> Merged:
    """Add what `theirs` knows of a name to this store; again, or with nothing new, changes nothing.

    Raises InvalidArgument, having written nothing, when `theirs` is not a history that a store can
    have exported.
    """
    check_anchor(theirs.name)
    facts = [check_fact(fact) for fact in theirs.facts]
    limit_ns = tx.now_ns + tolerance_ns
    if theirs.horizon is not None and theirs.horizon.at_ns > limit_ns:
        return Merged(held_back=len(facts))
    timely = {fact.key: fact for fact in facts if fact.at_ns <= limit_ns}
    row = reading.anchor(tx, theirs.name)
    horizon = rules.later(row.body.horizon if row else None, theirs.horizon)
    news = {
        key: fact
        for key, fact in timely.items()
        if rules.survives(key, horizon) and not _has(tx, row, key)
    }
    if horizon is not None and horizon not in news and not _has(tx, row, horizon):
        raise InvalidArgument(
            f"history of anchor {shown(theirs.name)} lacks the fact of "
            f"{shown_time(horizon.at_ns)} at which it begins; export it anew"
        )
    if row is None and news:
        row = tx.create(ANCHORS, SCOPE, theirs.name, AnchorBody())
    if row is not None:
        for fact in news.values():
            target = resolve(tx, fact.ref) if resolve and fact.ref else 0
            writing.add(tx, row, fact, target)
        if horizon != row.body.horizon:
            tx.update(row, msgspec.structs.replace(row.body, horizon=horizon))
    return Merged(len(news), sum(fact.at_ns > limit_ns for fact in facts))


def _has(tx: WriteTx, row: AnchorRow | None, key: Key) -> bool:
    return row is not None and tx.get(FACTS, SCOPE, fact_name(row.oid, key)) is not None
