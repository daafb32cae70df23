"""Lists of sets and snapshots: filtered, then sorted, then paged. The order of the three is fixed.

`select` is pure; the two functions above it read a set's or the store's rows.
"""

from __future__ import annotations

import enum
import fnmatch
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from snapfs.model import InvalidArgument
from snapfs.store import ReadTx
from snapfs.volumes import branches, sets, snapshots
from snapfs.volumes.ids import VolumeSetId, check_id, may_be_short, short
from snapfs.volumes.model import Attributes, VolumeSet, VolumeSnapshot
from snapfs.volumes.schema import SCOPE, SETS, SNAPSHOTS

T = TypeVar("T")


class Sort(enum.Enum):
    """What a list is sorted by; equal ones by id."""

    NAME = "name"
    TIME = "time"
    SIZE = "size"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What to list, and which part of it."""

    ids: tuple[str, ...] = ()
    short_id: str = ""
    """Beginning of a short id, from 4 digits."""
    match: str = ""
    """Glob on the path of a set, on the name of a snapshot."""
    owner: str = ""
    attributes: Attributes | None = None
    """All of these must be there with these values."""
    sort: Sort = Sort.TIME
    descending: bool = False
    offset: int = 0
    limit: int | None = None


EVERYTHING = Query()


def check(query: Query) -> Query:
    """Return `query`, or raise InvalidArgument for what cannot be meant."""
    if query.ids and query.short_id:
        raise InvalidArgument("give ids or a short id, not both")
    for identity in query.ids:
        check_id(identity, "volume set or snapshot")
    if query.short_id and not may_be_short(query.short_id):
        raise InvalidArgument(f"{query.short_id!r} is not 4 to 12 digits of a short id")
    if query.offset < 0 or (query.limit is not None and query.limit < 0):
        raise InvalidArgument("offset and limit must not be below zero")
    return query


def list_sets(tx: ReadTx, query: Query = EVERYTHING) -> list[VolumeSet]:
    """Return the sets that a query selects."""
    found = (sets.show(tx, row) for row in tx.rows(SETS, SCOPE))
    keys: dict[Sort, Callable[[VolumeSet], object]] = {
        Sort.NAME: lambda it: it.path,
        Sort.TIME: lambda it: it.modified_ns,
        Sort.SIZE: lambda it: it.size_bytes,
    }
    return _select(query, found, lambda it: it.path, keys[query.sort])


def list_snapshots(
    tx: ReadTx, set_id: VolumeSetId, query: Query = EVERYTHING, *, branch: str = ""
) -> list[VolumeSnapshot]:
    """Return the snapshots of a set that a query selects; of a branch's line, if one is given.

    Raises VolumeSetNotFound, BranchNotFound.
    """
    sets.find(tx, set_id)
    if branch:
        rows = branches.line(tx, branches.resolve(tx, set_id, branch))
    else:
        rows = tx.rows(SNAPSHOTS, set_id)
    found = (snapshots.show(tx, row) for row in rows)
    keys: dict[Sort, Callable[[VolumeSnapshot], object]] = {
        Sort.NAME: lambda it: it.name,
        Sort.TIME: lambda it: (it.created_ns, it.depth),
        Sort.SIZE: lambda it: it.size_bytes,
    }
    return _select(query, found, lambda it: it.name, keys[query.sort])


S = TypeVar("S", VolumeSet, VolumeSnapshot)


def _select(
    query: Query, found: Iterable[S], named: Callable[[S], str], key: Callable[[S], object]
) -> list[S]:
    check(query)
    kept = [it for it in found if _is_meant(query, it, named(it))]
    return page(kept, key, lambda it: it.id, query)


def page(
    kept: list[T], key: Callable[[T], object], identity: Callable[[T], str], query: Query
) -> list[T]:
    """Sort what was kept, then cut the page out."""
    ordered = sorted(kept, key=identity)
    ordered.sort(key=key, reverse=query.descending)  # type: ignore[arg-type]
    end = None if query.limit is None else query.offset + query.limit
    return ordered[query.offset : end]


def _is_meant(query: Query, item: VolumeSet | VolumeSnapshot, name: str) -> bool:
    return (
        (not query.ids or item.id in query.ids)
        and (not query.short_id or short(item.id).startswith(query.short_id))
        and (not query.match or fnmatch.fnmatchcase(name, query.match))
        and (not query.owner or item.owner == query.owner)
        and all(item.attributes.get(k) == v for k, v in (query.attributes or {}).items())
    )
