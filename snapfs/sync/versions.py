"""Which of two states of a field came out of which. Pure.

A version says of each store how many of its changes are in it. A state whose version is behind
another's in nothing has all of the other's past in it; states that are each ahead in something were
changed apart. So any two stores know without a third what they last agreed on.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from functools import reduce
from typing import TypeAlias

Version: TypeAlias = tuple[tuple[str, int], ...]
"""(store, number of its change), in the order of stores; a store that is absent counts as 0."""

NOTHING: Version = ()
MAX_NUMBER = 1 << 62
"""No store makes so many changes."""


class Order(enum.Enum):
    """How one version stands to another."""

    SAME = "same"
    BEFORE = "before"
    AFTER = "after"
    APART = "apart"


def compare(one: Version, other: Version) -> Order:
    """Say how `one` stands to `other`."""
    left, right = dict(one), dict(other)
    stores = left.keys() | right.keys()
    behind = any(left.get(it, 0) < right.get(it, 0) for it in stores)
    ahead = any(left.get(it, 0) > right.get(it, 0) for it in stores)
    if behind and ahead:
        return Order.APART
    if behind:
        return Order.BEFORE
    return Order.AFTER if ahead else Order.SAME


def join(one: Version, other: Version) -> Version:
    """Return the version of what has the past of both in it."""
    joined = dict(one)
    for store, number in other:
        joined[store] = max(joined.get(store, 0), number)
    return tuple(sorted(joined.items()))


def join_all(found: Iterable[Version]) -> Version:
    """Return the version of what has the past of all in it."""
    return reduce(join, found, NOTHING)


def change(version: Version, store: str, number: int) -> Version:
    """Return the version of a change that a store makes to a state of `version`.

    It is newer than that in any case, also when that has a later number of this store: one that it
    gave before it was restored from a backup, or that another has made up.
    """
    return join(version, ((store, max(number, dict(version).get(store, 0) + 1)),))


def is_possible(version: Version) -> bool:
    """Say whether stores can have made a version."""
    return all(0 < number <= MAX_NUMBER for _, number in version)
