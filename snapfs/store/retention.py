"""Keeping the log short: the oldest revisions' events go when enough newer ones are there."""

from __future__ import annotations

from typing import Any

import lmdb

from snapfs.store import schema
from snapfs.store.environment import Txn
from snapfs.store.schema import Sub

KEEP_REVISIONS = 10_000
"""How many revisions a reader may be behind before it must read everything anew."""

_HEAD_START = 16


def trim(txn: Txn, dbs: dict[Sub, Any], keep: int, added: int) -> None:
    """Remove the events of the oldest revisions beyond `keep`.

    Removes at most twice as many revisions as the group `added`, and a few, so that the cost of an
    update does not depend on the length of the log and a long log still becomes short.
    """
    sys = dbs[Sub.SYS]
    revision = _counter(txn, sys, schema.REVISION_KEY)
    compacted = _counter(txn, sys, schema.COMPACTED_KEY)
    target = min(revision - keep, compacted + 2 * added + _HEAD_START)
    if target <= compacted:
        return
    with txn.cursor(db=dbs[Sub.LOG]) as cursor:
        there = cursor.first()
        while there and schema.split_log_key(cursor.key())[0] <= target:
            cursor.delete()
            there = bool(cursor.key())
    key = schema.COMPACTED_KEY
    txn.put(key, schema.seal(key, schema.U64.pack(target)), db=sys)


def _counter(txn: Txn, sys: lmdb._Database, key: bytes) -> int:
    value = txn.get(key, db=sys)
    return 0 if value is None else schema.number(schema.unseal(Sub.SYS, key, value))
