"""What the store keeps for metadata: tables, indexes and edges.

Scope of a row is its namespace, but for namespaces and blobs, whose scope is "". A namespace needs
no row to be used; it has one when it has labels or was created by name.

    tag  table             row name
    30   namespace         name
    31   image             name
    32   container         id
    33   sandbox           id
    34   lease             id
    35   lease resource    oid of the lease, u64 in hexadecimal, then "/TYPE/ID": a lease's follow
                           each other in the order in which they are listed
    36   content           digest
    37   blob              digest; the bytes, which every namespace's content shares
    38   ingest            reference
    39   snapshot link     SNAPSHOTTER/KEY
    40   collection        number of a garbage collection, u64 in hexadecimal: what it said

Every table of nodes has `links`, what its wants (references.py) mean in this store: pairs of an
edge's kind and a row's oid, kept true by linking.py whenever a row is written or comes into being.
A want for what does not exist has no link. Index "wants": TYPE 00 KEY of everything wanted, so that
a new row finds who waits for it. Index "backends" of snapshot links: one snapshot may have links in
many namespaces, and stays as long as any of them does. Edges 30 to 36 are references.Edge.

Invariants: `links` of each row are what `linking.resolve` says of its wants; content has a blob;
a lease resource has its lease; a blob that no content refers to is on its way out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, TypeVar

import msgspec

from snapfs.metadata import references
from snapfs.metadata.objects import Descriptor, Runtime, Typed
from snapfs.metadata.references import Edge, Name, Type, Want
from snapfs.store import Index, Reference, Table

Links = tuple[tuple[int, int], ...]
"""Pairs of an edge's kind and the oid that it leads to."""

SHARED = ""
"""Scope of what all namespaces have in common."""

WANTS = "wants"
"""Name of the index over what rows want."""

ROOTS = "roots"
"""Name of the index that has the rows that a label keeps, or their making, under an empty value."""

GOING = "going"
"""Name of the index that has the links to be removed, under an empty value."""

BACKENDS = "backends"
"""Name of the index over what snapshotters call the snapshots of links; see backend_key."""


class Node(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """A body whose row may refer to others and be referred to."""

    labels: dict[str, str] = {}
    links: Links = ()

    def wants(self) -> Iterator[Want]:
        """Yield what the row refers to: fields first, then labels."""
        yield from references.wants(self.labels)


class NamespaceBody(msgspec.Struct, frozen=True, array_like=True):
    labels: dict[str, str] = {}


class ImageBody(Node, frozen=True, array_like=True, kw_only=True):
    target: Descriptor

    def wants(self) -> Iterator[Want]:
        yield Want(Edge.KEEPS_ALWAYS, Name(Type.CONTENT, self.target.digest))
        unless_root = Edge.KEPT_BY
        for want in references.wants(self.labels):
            if want.edge is not unless_root:  # an image is a root itself
                yield want


class ContainerBody(Node, frozen=True, array_like=True, kw_only=True):
    runtime: Runtime
    spec: Typed | None = None
    image: str = ""
    snapshotter: str = ""
    snapshot_key: str = ""
    sandbox_id: str = ""
    extensions: dict[str, Typed] = {}

    def wants(self) -> Iterator[Want]:
        if self.snapshotter and self.snapshot_key:
            key = f"{self.snapshotter}/{self.snapshot_key}"
            yield Want(Edge.KEEPS, Name(Type.SNAPSHOT, key))
        yield from references.wants(self.labels)


class SandboxBody(Node, frozen=True, array_like=True, kw_only=True):
    runtime: Runtime
    spec: Typed | None = None
    sandboxer: str = ""
    extensions: dict[str, Typed] = {}


class LeaseBody(Node, frozen=True, array_like=True, kw_only=True):
    """Its labels say when it expires and whether it is flat; what it holds are its resources."""

    def wants(self) -> Iterator[Want]:
        return iter(())


class ResourceBody(Node, frozen=True, array_like=True, kw_only=True):
    lease: int
    """oid of the lease's row."""
    type: str
    id: str
    name: tuple[int, str]
    """What it holds, as a Name."""

    def wants(self) -> Iterator[Want]:
        yield Want(Edge.LEASED, Name(Type(self.name[0]), self.name[1]))


class ContentBody(Node, frozen=True, array_like=True, kw_only=True):
    size_bytes: int
    blob: int
    """oid of the blob's row."""


class BlobBody(msgspec.Struct, frozen=True, array_like=True):
    size_bytes: int
    going: bool = False
    """Its file is being removed: nobody may share it any more."""


class IngestBody(Node, frozen=True, array_like=True, kw_only=True):
    directory: str
    """Name of what is written, below the content store's `ingest`; empty for a virtual one."""
    expected: str = ""
    total_bytes: int = 0

    def wants(self) -> Iterator[Want]:
        if self.expected:
            yield Want(Edge.KEEPS, Name(Type.CONTENT, self.expected))


class SnapshotLinkBody(Node, frozen=True, array_like=True, kw_only=True):
    snapshotter: str
    key: str
    backend: str
    parent: str = ""
    going: bool = False
    """Collected: the snapshotter is asked to remove it, and asked again until it does."""
    removing: bool = False
    """It is being asked now: who wants the snapshot waits. Otherwise a new wish ends `going`."""
    making: bool = False
    """The snapshotter is asked to make it, or was when the process died (snapshots.py)."""
    source: int = 0
    """oid of the link to the active snapshot of which a commit makes it; 0 for one that is new."""

    @property
    def is_there(self) -> bool:
        return not self.going and not self.making

    def wants(self) -> Iterator[Want]:
        if self.parent:
            key = f"{self.snapshotter}/{self.parent}"
            yield Want(Edge.KEEPS_ALWAYS, Name(Type.SNAPSHOT, key))
        yield from references.wants(self.labels)


class CollectionBody(msgspec.Struct, frozen=True, array_like=True):
    """Figures of a garbage collection."""

    began_ns: int
    elapsed_ns: int
    marked: int
    removed: dict[str, int]
    mark_ns: int = 0
    failed: int = 0


AnyNode = TypeVar("AnyNode", bound=Node)


def want_key(name: Name) -> bytes:
    """Return the value under which the index "wants" has who wants `name`."""
    return f"{int(name.type)}\0{name.key}".encode()


def backend_key(snapshotter: str, backend: str) -> bytes:
    """Return the value under which the index "backends" has the links to a snapshot."""
    return f"{snapshotter}\0{backend}".encode()


def _wanted(body: Node) -> Iterable[bytes]:
    return {want_key(want.name) for want in body.wants()}


def _rooted(body: Node) -> Iterable[bytes]:
    return (b"",) if references.is_root(body.labels) else ()


def _rooted_link(body: SnapshotLinkBody) -> Iterable[bytes]:
    return (b"",) if body.making else _rooted(body)


def _going(body: SnapshotLinkBody) -> Iterable[bytes]:
    return (b"",) if body.going else ()


def _linked(edge: Edge) -> Callable[[Node], Iterable[int]]:
    return lambda body: [oid for kind, oid in body.links if kind == edge]


_WEAK = (Edge.KEEPS, Edge.KEEPS_ALWAYS, Edge.KEPT_BY, Edge.KEEPS_IF, Edge.LEASED)


def _nodes(
    tag: int,
    name: str,
    body: type[AnyNode],
    *indexes: Index[Any],
    strong: tuple[Reference[Any], ...] = (),
) -> Table[AnyNode]:
    """Return a table of nodes, with the index and the edges that all of those have."""
    weak: tuple[Reference[Any], ...] = tuple(
        Reference(edge, _linked(edge), strong=False) for edge in _WEAK
    )
    return Table(
        tag=tag,
        name=name,
        body=body,
        indexes=(Index(WANTS, _wanted), *indexes),
        references=(*weak, *strong),
    )


NAMESPACES: Table[NamespaceBody] = Table(tag=30, name="namespace", body=NamespaceBody)
IMAGES = _nodes(31, "image", ImageBody)
CONTAINERS = _nodes(32, "container", ContainerBody)
SANDBOXES = _nodes(33, "sandbox", SandboxBody)
LEASES = _nodes(34, "lease", LeaseBody)
RESOURCES: Table[ResourceBody] = _nodes(
    35,
    "lease resource",
    ResourceBody,
    strong=(Reference(Edge.LEASE, lambda body: (body.lease,), strong=True),),
)
CONTENT: Table[ContentBody] = _nodes(
    36,
    "content",
    ContentBody,
    Index(ROOTS, _rooted),
    strong=(Reference(Edge.BLOB, lambda body: (body.blob,), strong=True),),
)
BLOBS: Table[BlobBody] = Table(tag=37, name="blob", body=BlobBody)
INGESTS = _nodes(38, "ingest", IngestBody)
SNAPSHOT_LINKS: Table[SnapshotLinkBody] = _nodes(
    39,
    "snapshot link",
    SnapshotLinkBody,
    Index(ROOTS, _rooted_link),
    Index(GOING, _going),
    Index(BACKENDS, lambda body: (backend_key(body.snapshotter, body.backend),)),
)
COLLECTIONS: Table[CollectionBody] = Table(tag=40, name="collection", body=CollectionBody)

NODES: tuple[Table[Any], ...] = (
    IMAGES,
    CONTAINERS,
    SANDBOXES,
    LEASES,
    RESOURCES,
    CONTENT,
    INGESTS,
    SNAPSHOT_LINKS,
)
"""Tables whose rows refer to others."""

TABLES: tuple[Table[Any], ...] = (NAMESPACES, BLOBS, COLLECTIONS, *NODES)

TABLE_OF: dict[Type, Table[Any]] = {
    Type.CONTENT: CONTENT,
    Type.SNAPSHOT: SNAPSHOT_LINKS,
    Type.CONTAINER: CONTAINERS,
    Type.IMAGE: IMAGES,
    Type.LEASE: LEASES,
    Type.INGEST: INGESTS,
}


class Owned:
    """Names of what a namespace can hold, for messages."""

    TABLES: ClassVar[tuple[Table[Any], ...]] = (
        IMAGES,
        CONTENT,
        CONTAINERS,
        SNAPSHOT_LINKS,
        LEASES,
        INGESTS,
        SANDBOXES,
    )
