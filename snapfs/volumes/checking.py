"""Verifying what schema.py states of volumes; nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from snapfs.store import ReadTx, Table
from snapfs.volumes.schema import BRANCHES, BUSHES, SCOPE, SETS, SNAPSHOTS, TOMBSTONES, VOLUMES


def check(tx: ReadTx) -> Iterator[str]:
    """Yield a sentence for each invariant that does not hold."""
    for row in tx.rows(SETS, SCOPE):
        yield from _check_snapshots(tx, row.name)
        yield from _check_branches(tx, row.name)
        yield from _check_tombstones(tx, row.name)
    for volume in tx.rows(VOLUMES, SCOPE):
        branch = volume.body.branch
        if branch and tx.get(BRANCHES, volume.body.set_id, branch) is None:
            yield f"volume {volume.body.name!r} is on branch {branch}, which does not exist"


def _check_snapshots(tx: ReadTx, set_id: str) -> Iterator[str]:
    for row in tx.rows(SNAPSHOTS, set_id):
        body = row.body
        parent = tx.by_oid(SNAPSHOTS, body.parent) if body.parent else None
        if body.depth != (parent.body.depth + 1 if parent else 1):
            yield f"volume snapshot {row.name} says depth {body.depth}; its parent's does not fit"
        if body.parent_id != (parent.name if parent else ""):
            yield f"volume snapshot {row.name} says parent {body.parent_id!r}, and has another"
        if parent is None and tx.get(BUSHES, set_id, row.name) is None:
            yield f"root volume snapshot {row.name} has no bush"
        if body.blob and parent is not None and not parent.body.blob:
            yield f"volume snapshot {row.name} has data here, and its parent has none"


def _check_branches(tx: ReadTx, set_id: str) -> Iterator[str]:
    for row in tx.rows(BRANCHES, set_id):
        tip = tx.by_oid(SNAPSHOTS, row.body.tip)
        if tip is None or tip.name != row.body.tip_id or tip.scope != set_id:
            yield f"branch {row.name} has a tip that is not the snapshot it names"


def _check_tombstones(tx: ReadTx, set_id: str) -> Iterator[str]:
    tables: dict[str, Table[Any]] = {"snapshot": SNAPSHOTS, "branch": BRANCHES}
    for row in tx.rows(TOMBSTONES, set_id):
        if tx.get(tables[row.body.kind], set_id, row.body.id) is not None:
            yield f"{row.body.kind} {row.body.id} has a tombstone and is there"


CHECKS = {"volume": lambda tx, _root: check(tx)}
"""By kind of problem, as an fsck of the root wants it."""
