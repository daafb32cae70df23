"""Verifying what schema.py states of metadata, and that its files are there; nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from snapfs.metadata import linking
from snapfs.metadata.blobs import blob_path
from snapfs.metadata.schema import BLOBS, CONTENT, LEASES, NODES, RESOURCES, SHARED
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


def check_files(tx: ReadTx, root: Path) -> Iterator[str]:
    """Yield a sentence for each blob whose file is not in a root as its row says; none is read."""
    for row in tx.rows(BLOBS, SHARED):
        if row.body.going:
            continue
        path = blob_path(root / "content", row.name)
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            yield f"content {row.name}: its file {path} is gone; push or import it again"
            continue
        if size != row.body.size_bytes:
            yield (
                f"content {row.name}: its file {path} has {size} bytes, not "
                f"{row.body.size_bytes}; push or import it again"
            )


CHECKS = {"metadata": lambda tx, _root: check(tx), "content": check_files}
"""By kind of problem, as an fsck of the root wants it."""
