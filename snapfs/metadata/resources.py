"""What leases hold: parsing of resources, and their rows as functions of a transaction."""

from __future__ import annotations

from collections.abc import Iterator

from snapfs.metadata import linking
from snapfs.metadata.objects import Resource, ResourceType
from snapfs.metadata.references import Name, Type
from snapfs.metadata.schema import LEASES, RESOURCES, LeaseBody, ResourceBody
from snapfs.metadata.words import check_digest, shown
from snapfs.model import InvalidArgument, NotFound, NotImplementedYet
from snapfs.store import ReadTx, Row, WriteTx

_TYPES = {
    ResourceType.CONTENT: Type.CONTENT,
    ResourceType.IMAGE: Type.IMAGE,
    ResourceType.INGEST: Type.INGEST,
}
_KNOWN_BUT_NOT_HELD = ("leases", "containers", "sandboxes", "tasks")


def parse(resource: Resource) -> Name:
    """Return what a resource means, or raise InvalidArgument or NotImplementedYet."""
    first, slash, rest = resource.type.partition("/")
    if not resource.id:
        raise InvalidArgument(f"a resource of type {resource.type!r} needs an id")
    if first == ResourceType.SNAPSHOT.value:
        if not slash or not rest or "/" in rest:
            raise InvalidArgument(
                f"resource type {resource.type!r} must be snapshots/SNAPSHOTTER with one slash"
            )
        return Name(Type.SNAPSHOT, f"{rest}/{resource.id}")
    if slash or first in _KNOWN_BUT_NOT_HELD:
        raise NotImplementedYet(f"a lease cannot hold a resource of type {resource.type!r}")
    for kind, type_ in _TYPES.items():
        if first == kind.value:
            if type_ is Type.CONTENT:
                check_digest(resource.id)
            return Name(type_, resource.id)
    known = "content, images, ingests, snapshots/SNAPSHOTTER"
    raise InvalidArgument(f"resource type {resource.type!r} is not known; there are: {known}")


def lease(tx: ReadTx, namespace: str, id_: str) -> Row[LeaseBody]:
    """Return a lease's row, or raise NotFound."""
    row = tx.get(LEASES, namespace, id_)
    if row is None:
        raise NotFound(f"lease {shown(id_)} does not exist in namespace {namespace!r}")
    return row


def add(tx: WriteTx, namespace: str, id_: str, type_: str, name: Name) -> None:
    """Let a lease hold `name`; a no-op when it does. Raises NotFound when there is no lease."""
    holder = lease(tx, namespace, id_)
    key = name.key.partition("/")[2] if name.type is Type.SNAPSHOT else name.key
    resource = Resource(type_, key)
    row_name = _row_name(holder.oid, resource)
    if tx.get(RESOURCES, namespace, row_name) is None:
        body = ResourceBody(
            lease=holder.oid, type=resource.type, id=resource.id, name=(int(name.type), name.key)
        )
        linking.create(tx, RESOURCES, namespace, row_name, body)


def remove(tx: WriteTx, namespace: str, id_: str, resource: Resource) -> bool:
    """Let a lease hold something no more; say whether it did."""
    row = tx.get(RESOURCES, namespace, _row_name(lease(tx, namespace, id_).oid, resource))
    if row is not None:
        tx.delete(row)
    return row is not None


def rows(tx: ReadTx, holder: Row[LeaseBody]) -> Iterator[Row[ResourceBody]]:
    """Yield what a lease holds: content, images, ingests, then snapshots."""
    return tx.rows(RESOURCES, holder.scope, prefix=f"{holder.oid:016x}/")


def _row_name(lease_oid: int, resource: Resource) -> str:
    return f"{lease_oid:016x}/{resource.type}/{resource.id}"
