"""Edges of many rows, read with one cursor: what walks over a whole graph needs."""

from __future__ import annotations

import lmdb

from snapfs.store import schema
from snapfs.store.environment import Txn

_FORWARD = bytes([schema.FORWARD])
_KIND = slice(9, 11)
_FAR = slice(11, None)


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

    def _keys(self, prefix: bytes) -> list[bytes]:
        cursor = self._cursor
        found = []
        there = cursor.set_range(prefix)
        while there and (key := cursor.key()).startswith(prefix):
            found.append(key)
            there = cursor.next()
        return found
