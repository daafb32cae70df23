"""The rules of histories: which fact counts, what a reader sees, what expires, how two join. Pure.

Facts come newest first, as they lie in the store, so that each rule reads only what it needs.

Joining is a union of facts above the later of two horizons. It is commutative, associative and
idempotent, so stores that have heard of the same facts and expiries, directly or not, in any order
and any number of times, hold the same history. A horizon is the key of a fact that its history
has, and whatever is in force at a time at or after it has a greater key, or the same: no union can
bring back an answer that expiring took away, nor take one away that it kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from snapfs.anchors.facts import History, Key, Ref, in_order


class Stated(Protocol):
    """Anything that says what a name stood for from when on: a fact, an entry."""

    @property
    def at_ns(self) -> int: ...

    @property
    def ref(self) -> Ref | None: ...


S = TypeVar("S", bound=Stated)


def in_force(newest_first: Iterable[S], at_ns: int) -> S | None:
    """Return the newest that is of `at_ns` or earlier."""
    return next((each for each in newest_first if each.at_ns <= at_ns), None)


def compress(newest_first: Iterable[S]) -> Iterator[S]:
    """Yield what changed: without those that repeat what the one before them in time says.

    Only for reading. A repeat is kept, because another store may know of something between.
    """
    newer: S | None = None
    for each in newest_first:
        if newer is not None and newer.ref != each.ref:
            yield newer
        newer = each
    if newer is not None:
        yield newer


def cut(newest_first: Iterable[S], limit_ns: int, at_least: int) -> S | None:
    """Return the oldest that stays when all before `limit_ns` expires; None when everything stays.

    What is in force at the limit stays, and so do the newest `at_least` entries, repeats not
    counted.
    """
    entries = 0
    newer: S | None = None
    for each in newest_first:
        entries += newer is None or newer.ref != each.ref
        if each.at_ns <= limit_ns and entries >= at_least:
            return each
        newer = each
    return None


def later(one: Key | None, other: Key | None) -> Key | None:
    """Return the later of two horizons."""
    if one is None or other is None:
        return one or other
    return max(one, other)


def survives(key: Key, horizon: Key | None) -> bool:
    """Say whether a fact is part of a history with this horizon."""
    return horizon is None or key >= horizon


def join(one: History, other: History) -> History:
    """Return what a store knows of a name once it knows what both know."""
    horizon = later(one.horizon, other.horizon)
    return History(
        one.name,
        in_order(fact for fact in (*one.facts, *other.facts) if survives(fact.key, horizon)),
        horizon,
    )
