"""What is alive and what is garbage in one state of the store: found here, or in another process.

A mark of many rows is seconds of the interpreter's work, for which the writers of this process
would wait, and a view that stays open, for which the store's map could not grow. So a large store
is marked by a process of its own (apart.py); starting one would cost a small store more.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from snapfs.metadata import ordering
from snapfs.metadata.collectibles import Externals
from snapfs.metadata.graph import Mark, Walk, mark, paced
from snapfs.metadata.schema import CONTENT, IMAGES, INGESTS, LEASES, SNAPSHOT_LINKS
from snapfs.store import ReadTx, Row, Table

HERE_ROWS = 20_000
"""Most rows of a store that is marked in this process: a fifth of a second's work."""

COLLECTIBLE: tuple[Table[Any], ...] = (LEASES, SNAPSHOT_LINKS, INGESTS, CONTENT, IMAGES)
"""Tables from which rows are swept, in this order."""


class Marks(Mapping[int, Mark]):
    """The marks of many rows at nine bytes each, and those that are added, which are few."""

    def __init__(self, oids: Sequence[int], marks: Sequence[int]) -> None:
        """`oids` ascend; `marks` are theirs, in the same order."""
        self.oids, self.marks = oids, marks
        self._more: dict[int, Mark] = {}

    def __getitem__(self, oid: int) -> Mark:
        if oid in self._more:
            return self._more[oid]
        at = bisect_left(self.oids, oid)
        if at == len(self.oids) or self.oids[at] != oid:
            raise KeyError(oid)
        return Mark(self.marks[at])

    def __contains__(self, oid: object) -> bool:
        return isinstance(oid, int) and self.get(oid) is not None

    def __iter__(self) -> Iterator[int]:
        yield from self.oids
        yield from (oid for oid in self._more if not self._is_old(oid))

    def __len__(self) -> int:
        return len(self.oids) + sum(not self._is_old(oid) for oid in self._more)

    def add(self, marks: Mapping[int, Mark]) -> None:
        """Add marks, which replace those of the same rows."""
        self._more.update(marks)

    def _is_old(self, oid: int) -> bool:
        at = bisect_left(self.oids, oid)
        return at < len(self.oids) and self.oids[at] == oid


@dataclass(frozen=True, slots=True)
class Found:
    """What a mark found."""

    revision: int
    """The state of the store that it saw."""
    marks: Marks
    garbage: Sequence[int]
    """Oids of the rows that are not marked and not going yet, in the order in which they go."""
    ends: Sequence[int]
    """Where in `garbage` each batch of a sweep ends."""

    def batches(self) -> Iterator[Sequence[int]]:
        """Yield the garbage in lists that one update removes."""
        begin = 0
        for end in self.ends:
            yield self.garbage[begin:end]
            begin = end


def find(tx: ReadTx, now_ns: int, externals: Externals, *, batch: int) -> Found:
    """Mark what is alive, among the `externals` too, and order the rest in lists of `batch`."""
    walk = mark(tx, now_ns)
    externals.mark(tx, walk)
    garbage: list[int] = []
    ends: list[int] = []
    for oids in _batches(tx, walk, batch):
        garbage += oids
        ends.append(len(garbage))
    oids = sorted(walk.marks)
    marks = Marks(oids, bytes(map(walk.marks.__getitem__, oids)))
    return Found(tx.revision, marks, garbage, ends)


def collectible(tx: ReadTx, oid: int) -> Row[Any] | None:
    """Return a row that a sweep may remove, or None."""
    for table in COLLECTIBLE:
        row = tx.by_oid(table, oid)
        if row is not None:
            return row
    return None


def _unmarked(tx: ReadTx, marks: Mapping[int, Mark]) -> Iterator[Row[Any]]:
    for table in COLLECTIBLE:
        for scope in tx.scopes():
            for oid in paced(tx.oids(table, scope)):
                if oid in marks:
                    continue
                row = tx.by_oid(table, oid)
                if row is not None and not getattr(row.body, "going", False):
                    yield row


def _batches(tx: ReadTx, walk: Walk, size: int) -> Iterator[list[int]]:
    """Yield what is garbage in the order in which it goes: leases, then who refers first."""
    leases_: list[int] = []
    others: list[int] = []
    for row in _unmarked(tx, walk.marks):
        (leases_ if row.table == LEASES.tag else others).append(row.oid)

    steps = paced(count())

    def following(oid: int) -> Iterator[int]:
        next(steps)
        return (target for target, _ in walk.kept_by(oid, Mark.FULL))

    yield from ordering.batches(leases_, lambda _oid: (), size)
    yield from ordering.batches(others, following, size)
