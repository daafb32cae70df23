"""Edges of many rows, read with one cursor: what walks over a whole graph needs."""

from __future__ import annotations

import lmdb

from snapfs.store import schema
from snapfs.store.environment import Txn

_FORWARD = bytes([schema.FORWARD])


class Edges:
    """The edges of a transaction; ends with it. The transaction must not write meanwhile."""

    def __init__(self, txn: Txn, db: lmdb._Database) -> None:
        self._cursor = txn.cursor(db=db)

    def out(self, oid: int) -> list[tuple[int, int]]:
        """Return kind and target of every edge from `oid`, in order."""
        prefix = _FORWARD + oid.to_bytes(8)
        cursor = self._cursor
        found = []
        there = cursor.set_range(prefix)
        while there:
            key = cursor.key()
            if not key.startswith(prefix):
                break
            found.append((int.from_bytes(key[9:11]), int.from_bytes(key[11:])))
            there = cursor.next()
        return found

    def into(self, oid: int, kind: int) -> list[int]:
        """Return the oids of the rows with an edge of `kind` to `oid`, in order."""
        prefix = schema.edge_prefix(schema.REVERSE, oid, kind)
        cursor = self._cursor
        found = []
        there = cursor.set_range(prefix)
        while there:
            key = cursor.key()
            if not key.startswith(prefix):
                break
            found.append(int.from_bytes(key[11:]))
            there = cursor.next()
        return found
