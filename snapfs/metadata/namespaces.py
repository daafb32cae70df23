"""Namespaces: names with labels, into which everything else falls.

A namespace comes into being when it is first used, and then has no labels. Deleting one is refused
while it holds anything at all, leases, ingests and sandboxes too (containerd forgets to look at
those, and loses them).
"""

from __future__ import annotations

from collections.abc import Sequence

from snapfs.metadata import masks
from snapfs.metadata.manager import Manager
from snapfs.metadata.objects import Namespace
from snapfs.metadata.schema import NAMESPACES, SHARED, NamespaceBody, Owned
from snapfs.metadata.words import check_namespace, shown
from snapfs.model import FailedPrecondition, Labels, NotFound, check_labels
from snapfs.store import ReadTx, Row, WriteTx

_SNAPSHOT_LINK = "snapshot link"
_PLURAL = {"content": "content", "sandbox": "sandboxes"}


class Namespaces(Manager):
    """The namespaces of a store."""

    def create(self, name: str, labels: Labels | None = None) -> Namespace:
        """Create a namespace. Raises AlreadyExists when it has been created or labelled before."""
        body = NamespaceBody(labels=check_labels(labels or {}))
        check_namespace(name)
        return _show(self._update(lambda tx: tx.create(NAMESPACES, SHARED, name, body)))

    def labels(self, name: str) -> dict[str, str]:
        """Return the labels of a namespace; one that was never created has none."""
        check_namespace(name)
        with self._store.view() as tx:
            row = tx.get(NAMESPACES, SHARED, name)
        return {} if row is None else row.body.labels

    def set_label(self, name: str, key: str, value: str) -> Namespace:
        """Set a label, or with "" delete it; creates the namespace if need be."""
        check_namespace(name)
        check_labels({key: value})
        paths = (f"labels.{key}",)
        return _show(self._update(lambda tx: _label(tx, name, {key: value}, paths)))

    def update(self, name: str, labels: Labels, paths: Sequence[str] = ()) -> Namespace:
        """Set labels by field mask. Raises NotFound for a namespace without labels or rows."""
        check_namespace(name)
        chosen = masks.check(paths, fields=(), maps=("labels",), what="a namespace")
        wanted = check_labels(labels)

        def change(tx: WriteTx) -> Row[NamespaceBody]:
            if not _exists(tx, name):
                raise NotFound(f"namespace {shown(name)} does not exist")
            return _label(tx, name, wanted, chosen)

        return _show(self._update(change))

    def get(self, name: str) -> Namespace:
        """Return a namespace that was created, labelled or is in use, or raise NotFound."""
        check_namespace(name)
        with self._store.view() as tx:
            row = tx.get(NAMESPACES, SHARED, name)
            if row is None and not _exists(tx, name):
                raise NotFound(f"namespace {shown(name)} does not exist")
        return Namespace(name=name) if row is None else _show(row)

    def all(self) -> list[Namespace]:
        """Return every namespace, also those that are only in use, in order of name."""
        with self._store.view() as tx:
            known = {row.name: _show(row) for row in tx.rows(NAMESPACES, SHARED)}
            for table in Owned.TABLES:
                for scope in tx.scopes():
                    if scope and scope not in known and next(tx.rows(table, scope), None):
                        known[scope] = Namespace(name=scope)
        return [known[name] for name in sorted(known)]

    def delete(self, name: str) -> None:
        """Delete an empty namespace.

        Raises FailedPrecondition naming what is left in it, NotFound when it does not exist.
        """
        check_namespace(name)
        self._update(lambda tx: _delete(tx, name))


def _label(
    tx: WriteTx, name: str, labels: dict[str, str], paths: Sequence[str]
) -> Row[NamespaceBody]:
    row = tx.get(NAMESPACES, SHARED, name)
    merged = masks.merge({} if row is None else row.body.labels, labels, paths, "labels")
    body = NamespaceBody(labels={key: value for key, value in merged.items() if value})
    if row is None:
        return tx.create(NAMESPACES, SHARED, name, body)
    return tx.update(row, body)


def _delete(tx: WriteTx, name: str) -> None:
    left = _left(tx, name)
    if left:
        raise FailedPrecondition(
            f"namespace {shown(name)} still holds {', '.join(left)}; remove those first"
        )
    row = tx.get(NAMESPACES, SHARED, name)
    if row is None:
        raise NotFound(f"namespace {shown(name)} does not exist")
    tx.delete(row)


def _left(tx: ReadTx, name: str) -> list[str]:
    left: dict[str, None] = {}
    for table in Owned.TABLES:
        if table.name != _SNAPSHOT_LINK:
            if next(tx.rows(table, name), None) is not None:
                left[_PLURAL.get(table.name, f"{table.name}s")] = None
            continue
        for row in tx.rows(table, name):
            left[f"snapshots of {row.body.snapshotter}"] = None
    return list(left)


def _exists(tx: ReadTx, name: str) -> bool:
    return tx.get(NAMESPACES, SHARED, name) is not None or bool(_left(tx, name))


def _show(row: Row[NamespaceBody]) -> Namespace:
    return Namespace(
        name=row.name,
        labels=row.body.labels,
        created_ns=row.created_ns,
        updated_ns=row.updated_ns,
        revision=row.mod_rev,
    )
