"""Writing rows that refer to others, so that `links` always say what wants mean in this store.

Every row of schema.NODES is created, updated and deleted here and nowhere else. Creating a row
tells those who wanted it; deleting one leaves weak edges to a number that is never used again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import msgspec

from snapfs.metadata.references import Name, Type
from snapfs.metadata.schema import (
    BACKENDS,
    NODES,
    SNAPSHOT_LINKS,
    TABLE_OF,
    WANTS,
    AnyNode,
    Links,
    Node,
    SnapshotLinkBody,
    backend_key,
    want_key,
)
from snapfs.store import ReadTx, Row, Table, WriteTx

N = TypeVar("N", bound=Node)

_TYPE_OF = {table.tag: type_ for type_, table in TABLE_OF.items()}


def resolve(tx: ReadTx, namespace: str, body: Node) -> Links:
    """Return the links of a body: of what it wants, all that exists."""
    found = []
    for want in body.wants():
        row = tx.get(TABLE_OF[want.name.type], namespace, want.name.key) if want.name.key else None
        if row is not None:
            found.append((int(want.edge), row.oid))
    return tuple(dict.fromkeys(found))


def create(
    tx: WriteTx,
    table: Table[AnyNode],
    namespace: str,
    name: str,
    body: AnyNode,
    *,
    created_ns: int | None = None,
) -> Row[AnyNode]:
    """Create a row, linked to what it wants and from who wants it; raises what tx.create raises."""
    body = msgspec.structs.replace(body, links=resolve(tx, namespace, body))
    row = tx.create(table, namespace, name, body, created_ns=created_ns)
    _tell(tx, row)
    return row


def update(
    tx: WriteTx,
    row: Row[AnyNode],
    body: AnyNode,
    *,
    spec: bool = True,
    expect_mod_rev: int | None = None,
) -> Row[AnyNode]:
    """Give a row another body, linked to what that wants."""
    body = msgspec.structs.replace(body, links=resolve(tx, row.scope, body))
    return tx.update(row, body, spec=spec, expect_mod_rev=expect_mod_rev)


def _tell(tx: WriteTx, row: Row[AnyNode]) -> None:
    """Link the rows that waited for a new one; a change of status of theirs."""
    type_ = _TYPE_OF.get(row.table)
    if type_ is None:
        return
    value = want_key(Name(Type(type_), row.name))
    for table in NODES:
        for waiting in list(tx.find(table, WANTS, value, scope=row.scope)):
            update(tx, waiting, waiting.body, spec=False)


def links_to(tx: ReadTx, snapshotter: str, backend: str) -> Iterator[Row[SnapshotLinkBody]]:
    """Yield the links of every namespace to one snapshot, by what its snapshotter calls it."""
    value = backend_key(snapshotter, backend)
    for scope in tx.scopes():
        yield from tx.find(SNAPSHOT_LINKS, BACKENDS, value, scope=scope)
