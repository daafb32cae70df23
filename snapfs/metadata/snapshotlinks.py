"""Rows of snapshots of one snapshotter: finding, reserving, settling and forgetting links.

A link that is `making` is not there yet, one that is `going` not any more; both keep the name that
the snapshotter has, until it has said that the snapshot is made or gone.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from snapfs.metadata import linking, resources
from snapfs.metadata.manager import take
from snapfs.metadata.objects import Context, Resource
from snapfs.metadata.references import Name, Type
from snapfs.metadata.schema import SNAPSHOT_LINKS, SnapshotLinkBody
from snapfs.metadata.words import shown
from snapfs.model import InvalidArgument, NotFound, Unavailable
from snapfs.store import ReadTx, Row, WriteTx

SEQUENCE = "snapshot links"

LATE_NS = 900 * 1_000_000_000
"""How long a call that was not answered may still make a snapshot."""

Link = Row[SnapshotLinkBody]


@dataclass(frozen=True, slots=True)
class Links:
    """The links of one snapshotter, in a transaction."""

    snapshotter: str

    def row_name(self, key: str) -> str:
        return f"{self.snapshotter}/{key}"

    def find(self, tx: ReadTx, namespace: str, key: str) -> Link | None:
        """Return the link of what is there, or None."""
        row = tx.get(SNAPSHOT_LINKS, namespace, self.row_name(key))
        return row if row is not None and row.body.is_there else None

    def found(self, tx: ReadTx, namespace: str, key: str) -> Link:
        """Return the link of what is there, or raise NotFound."""
        row = self.find(tx, namespace, key)
        if row is None:
            raise NotFound(f"snapshot {shown(key)} does not exist in namespace {namespace!r}")
        return row

    def begun(self, tx: ReadTx, namespace: str, key: str, source: Link) -> Link | None:
        """Return the link of a commit of `source` that is not there yet, or None."""
        row = tx.get(SNAPSHOT_LINKS, namespace, self.row_name(key))
        is_begun = row is not None and row.body.making and row.body.source == source.oid
        return row if is_begun else None

    def parent(self, tx: ReadTx, namespace: str, parent: str) -> str:
        """Return the key of a parent; raises NotFound for one that is named and not there."""
        return self.found(tx, namespace, parent).body.key if parent else ""

    def rebased(self, tx: ReadTx, namespace: str, source: Link, parent: str) -> str:
        """Return what a commit stands on: `parent` is for one that had none."""
        if parent and source.body.parent and parent != source.body.parent:
            raise InvalidArgument(
                f"snapshot {shown(source.body.key)} stands on {shown(source.body.parent)} and "
                f"cannot be committed on {shown(parent)}"
            )
        return self.parent(tx, namespace, parent or source.body.parent)

    def reserve(
        self,
        tx: WriteTx,
        context: Context,
        key: str,
        labels: dict[str, str],
        *,
        parent: str,
        source: int = 0,
    ) -> Link:
        """Write the link of a snapshot that is to be made; one that is going makes room."""
        row = tx.get(SNAPSHOT_LINKS, context.namespace, self.row_name(key))
        if row is not None:
            _make_room(tx, row)
        number = tx.sequence(SEQUENCE)
        body = SnapshotLinkBody(
            snapshotter=self.snapshotter,
            key=key,
            backend=f"{context.namespace}/{number}/{key}",
            parent=parent,
            labels=labels,
            making=True,
            source=source,
        )
        made = linking.create(tx, SNAPSHOT_LINKS, context.namespace, self.row_name(key), body)
        self.lease(tx, context, key)
        return made

    def adopt(self, tx: WriteTx, context: Context, body: SnapshotLinkBody) -> None:
        """Let a namespace have a snapshot that the snapshotter made for another."""
        if any(it.body.removing for it in linking.links_to(tx, self.snapshotter, body.backend)):
            raise Unavailable(f"snapshot {shown(body.key)} is being removed; try again later")
        name = self.row_name(body.key)
        if self.find(tx, context.namespace, body.key) is None:
            going = tx.get(SNAPSHOT_LINKS, context.namespace, name)
            if going is not None and going.body.backend == body.backend:
                tx.delete(going)
            elif going is not None:
                _make_room(tx, going)
            linking.create(tx, SNAPSHOT_LINKS, context.namespace, name, body)
        self.lease(tx, context, body.key)

    def lease(self, tx: WriteTx, context: Context, key: str) -> None:
        """Let the lease of the context hold a snapshot."""
        name = Name(Type.SNAPSHOT, self.row_name(key))
        take(tx, context, f"snapshots/{self.snapshotter}", name)


def _make_room(tx: WriteTx, row: Link) -> None:
    """Let one that is going, and whose snapshot is still to be removed, have another name."""
    if row.body.making:
        raise Unavailable(f"snapshot {shown(row.body.key)} is being made; try again later")
    name = f"{row.body.snapshotter}/{row.body.backend}"
    tx.update(row, row.body, spec=False, name=name)


def settle(tx: WriteTx, *, oid: int, context: Context | None = None) -> bool:
    """Say that a snapshot is there; of a commit, that the active one is not any more.

    Returns whether its link was still there to be told.
    """
    row = tx.by_oid(SNAPSHOT_LINKS, oid)
    if row is None or row.body.removing:
        return False
    source = tx.by_oid(SNAPSHOT_LINKS, row.body.source) if row.body.source else None
    if source is not None:
        tx.delete(source)
        if context is not None:
            _unlease(tx, context, source)
    body = msgspec.structs.replace(row.body, making=False, going=False, source=0)
    linking.update(tx, row, body)
    return True


def condemn(tx: WriteTx, *, oid: int, is_late: bool = False) -> None:
    """Leave a snapshot, and what may have been made of it, to the collector.

    One that is late may come to be within LATE_NS: until then the collector asks for it.
    """
    row = tx.by_oid(SNAPSHOT_LINKS, oid)
    if row is not None:
        body = msgspec.structs.replace(row.body, going=True, making=False, source=0)
        tx.update(row, body, spec=False)
        if is_late:
            tx.expire_at(oid, tx.now_ns + LATE_NS)


def forget(tx: WriteTx, *, oid: int, context: Context) -> None:
    """Delete the link of what the snapshotter did not make."""
    row = tx.by_oid(SNAPSHOT_LINKS, oid)
    if row is not None:
        tx.delete(row)
        _unlease(tx, context, row)


def _unlease(tx: WriteTx, context: Context, row: Link) -> None:
    if context.lease:
        held = Resource(f"snapshots/{row.body.snapshotter}", row.body.key)
        resources.remove(tx, context.namespace, context.lease, held)
