"""Edges of many rows: what walks over a whole graph needs.

`Edges` reads a row's edges when it is asked for them; `EdgeTable` read all of some kinds before, in
order of their keys: quicker for who wants most of them, at some 50 bytes an edge.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Protocol

import lmdb

from snapfs.store import schema
from snapfs.store.environment import Txn

_FORWARD = bytes([schema.FORWARD])
_NEAR = slice(1, 9)
_KIND = slice(9, 11)
_FAR = slice(11, None)


class EdgeSource(Protocol):
    """Edges of one state of the store."""

    def out(self, oid: int) -> Sequence[tuple[int, int]]:
        """Return kind and target of every edge from `oid`, in order."""
        ...

    def into(self, oid: int, kind: int) -> Sequence[int]:
        """Return the oids of the rows with an edge of `kind` to `oid`, in order."""
        ...


class Edges:
    """The edges of a transaction; ends with it. The transaction must not write meanwhile."""

    def __init__(self, txn: Txn, db: lmdb._Database) -> None:
        self._cursor = txn.cursor(db=db)

    def out(self, oid: int) -> list[tuple[int, int]]:
        """Return kind and target of every edge from `oid`, in order."""
        keys = self._keys(_FORWARD + oid.to_bytes(8))
        return [(int.from_bytes(key[_KIND]), int.from_bytes(key[_FAR])) for key in keys]

    def into(self, oid: int, kind: int) -> list[int]:
        """Return the oids of the rows with an edge of `kind` to `oid`, in order."""
        keys = self._keys(schema.edge_prefix(schema.REVERSE, oid, kind))
        return [int.from_bytes(key[_FAR]) for key in keys]

    def forward(self) -> Iterator[bytes]:
        """Yield the key of every edge once, in order of the row that it is from."""
        cursor = self._cursor
        if cursor.set_range(_FORWARD):
            for key in cursor.iternext(values=False):
                if key[0] != schema.FORWARD:
                    return
                yield key

    def _keys(self, prefix: bytes) -> list[bytes]:
        cursor = self._cursor
        found = []
        there = cursor.set_range(prefix)
        while there and (key := cursor.key()).startswith(prefix):
            found.append(key)
            there = cursor.next()
        return found


class EdgeTable:
    """All edges of some kinds, in memory; outlives the transaction that they were read in."""

    def __init__(
        self, keys: Iterable[bytes], kinds: Collection[int], backwards: Collection[int]
    ) -> None:
        """`keys` are those of `Edges.forward`.

        `into` knows the kinds of `backwards` only, which are thought to be few.
        """
        near, found, far = array("Q"), array("H"), array("Q")
        begin: dict[int, int] = {}
        wanted = {schema.U16.pack(kind): kind for kind in {*kinds, *backwards}}
        for key in keys:
            kind = wanted.get(key[_KIND])
            if kind is not None:
                oid = int.from_bytes(key[_NEAR])
                begin.setdefault(oid, len(near))
                near.append(oid)
                found.append(kind)
                far.append(int.from_bytes(key[_FAR]))
        self._near, self._kinds, self._far = near, found, far
        self._begin = begin
        """Where the edges from a row begin, for rows that have some."""
        self._into = self._reverse(frozenset(backwards))

    def out(self, oid: int) -> Sequence[tuple[int, int]]:
        """Return kind and target of every edge from `oid`, in order."""
        at = self._begin.get(oid)
        if at is None:
            return ()
        near, end, found = self._near, len(self._near), []
        while at < end and near[at] == oid:
            found.append((self._kinds[at], self._far[at]))
            at += 1
        return found

    def into(self, oid: int, kind: int) -> Sequence[int]:
        """Return the oids of the rows with an edge of `kind` to `oid`, in order."""
        return self._into.get((oid, kind), ()) if self._into else ()

    def _reverse(self, backwards: Collection[int]) -> dict[tuple[int, int], list[int]]:
        into: dict[tuple[int, int], list[int]] = {}
        for at, kind in enumerate(self._kinds):
            if kind in backwards:
                into.setdefault((self._far[at], kind), []).append(self._near[at])
        return into
