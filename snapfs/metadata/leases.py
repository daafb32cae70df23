"""Leases: what they hold stays, until they are deleted or expire."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from snapfs.filters import Adaptor
from snapfs.metadata import linking, references, resources
from snapfs.metadata.manager import Manager, adaptor, found
from snapfs.metadata.objects import Lease, Resource
from snapfs.metadata.schema import LEASES, LeaseBody
from snapfs.metadata.words import check_namespace
from snapfs.model import Labels, check_labels, check_name
from snapfs.store import Row, WriteTx


class Leases(Manager):
    """The leases of a store, by namespace and id."""

    def create(self, namespace: str, id_: str, labels: Labels | None = None) -> Lease:
        """Create a lease; the label containerd.io/gc.expire (RFC 3339) bounds its life.

        Raises AlreadyExists.
        """
        check_namespace(namespace)
        check_name(id_, "lease id")
        body = LeaseBody(labels=check_labels(labels or {}))

        def make(tx: WriteTx) -> Row[LeaseBody]:
            row = linking.create(tx, LEASES, namespace, id_, body)
            expires_ns = references.expiry_ns(body.labels)
            if expires_ns is not None:
                tx.expire_at(row.oid, expires_ns)
            return row

        return _show(self._update(make))

    def get(self, namespace: str, id_: str) -> Lease:
        """Return a lease, or raise NotFound."""
        return _show(self._get(LEASES, namespace, id_))

    def walk(self, namespace: str, filters: Sequence[str] = ()) -> Iterator[Lease]:
        """Yield leases; filters know `id` and `labels`."""
        return self._walk(LEASES, namespace, filters, _show, _adapt)

    def delete(self, namespace: str, id_: str) -> None:
        """Delete a lease and let go of what it held. Raises NotFound."""
        check_namespace(namespace)
        self._update(lambda tx: delete(tx, found(LEASES, *_at(tx, namespace, id_))), deletion=True)

    def add(self, namespace: str, id_: str, resource: Resource) -> None:
        """Let a lease hold a resource, which need not exist yet; twice is as good as once.

        Raises NotFound without the lease, InvalidArgument and NotImplementedYet for a resource
        that is none or that leases cannot hold.
        """
        check_namespace(namespace)
        name = resources.parse(resource)
        self._update(lambda tx: resources.add(tx, namespace, id_, resource.type, name))

    def change(
        self, namespace: str, id_: str, *, add: Sequence[Resource], remove: Sequence[Resource]
    ) -> None:
        """Add to and take from what a lease holds, all of it or nothing. Raises what `add` does."""
        check_namespace(namespace)
        added = [(resource.type, resources.parse(resource)) for resource in add]
        for resource in remove:
            resources.parse(resource)

        def apply(tx: WriteTx) -> None:
            for type_, name in added:
                resources.add(tx, namespace, id_, type_, name)
            for resource in remove:
                resources.remove(tx, namespace, id_, resource)

        self._update(apply, deletion=bool(remove))

    def remove(self, namespace: str, id_: str, resource: Resource) -> None:
        """Let a lease hold a resource no more, if it does. Raises what `add` raises."""
        check_namespace(namespace)
        resources.parse(resource)
        self._update(lambda tx: resources.remove(tx, namespace, id_, resource), deletion=True)

    def resources(self, namespace: str, id_: str) -> list[Resource]:
        """Return what a lease holds: content, images, ingests, then snapshots."""
        check_namespace(namespace)
        with self._store.view() as tx:
            holder = resources.lease(tx, namespace, id_)
            return [Resource(row.body.type, row.body.id) for row in resources.rows(tx, holder)]


def delete(tx: WriteTx, holder: Row[LeaseBody]) -> None:
    """Delete a lease with the rows of what it holds."""
    for row in list(resources.rows(tx, holder)):
        tx.delete(row)
    tx.delete(holder)


def _at(tx: WriteTx, namespace: str, id_: str) -> tuple[Row[LeaseBody] | None, str, str]:
    return tx.get(LEASES, namespace, id_), namespace, id_


def _show(row: Row[LeaseBody]) -> Lease:
    return Lease(
        id=row.name,
        labels=row.body.labels,
        created_ns=row.created_ns,
        updated_ns=row.updated_ns,
        revision=row.mod_rev,
    )


def _adapt(lease: Lease) -> Adaptor:
    return adaptor({"id": lease.id}, {"labels": lease.labels})
