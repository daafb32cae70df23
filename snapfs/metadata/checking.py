"""Verifying what schema.py states of metadata; nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator

from snapfs.metadata import linking
from snapfs.metadata.schema import CONTENT, LEASES, NODES, RESOURCES
from snapfs.metadata.words import shown
from snapfs.store import ReadTx


def check(tx: ReadTx) -> Iterator[str]:
    """Yield a sentence for each invariant that does not hold.

    A link to what is gone is no fault: the number is never used again.
    """
    for scope in tx.scopes():
        for table in NODES:
            for row in tx.rows(table, scope):
                lacking = set(linking.resolve(tx, scope, row.body)) - set(row.body.links)
                if lacking:
                    yield f"{table.name} {shown(row.name)} of {scope!r} lacks links"
        for resource in tx.rows(RESOURCES, scope):
            if tx.by_oid(LEASES, resource.body.lease) is None:
                yield f"lease resource {shown(resource.name)} of {scope!r} has no lease"
        for content in tx.rows(CONTENT, scope):
            if content.body.size_bytes < 0:
                yield f"content {shown(content.name)} of {scope!r} has a size below zero"


CHECKS = {"metadata": check}
"""By kind of problem, as an fsck of the root wants it."""
