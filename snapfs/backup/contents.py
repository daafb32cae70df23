"""What saved metadata speaks of that lies outside the store: layers and blobs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapfs import tables
from snapfs.metadata.schema import BlobBody, ContentBody, ImageBody
from snapfs.metadata.words import is_digest
from snapfs.model import DataLoss, Kind
from snapfs.snapshots.schema import TABLES as SNAPSHOT_TABLES
from snapfs.snapshots.schema import SnapshotBody
from snapfs.store import Row, Stream, Table, saved

TABLES: tuple[Table[Any], ...] = (*SNAPSHOT_TABLES, *tables.TABLES)
"""All of a root's tables: nothing of a store may be left out of its backup."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A committed layer; its id says which it is in one store, with the time in any."""

    id: int
    created_ns: int
    digest: bytes
    """Empty while it is not sealed."""
    name: str = ""
    """Of its snapshot."""


@dataclass(frozen=True, slots=True)
class Blob:
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Image:
    """An image; `links` are the oids that it leads to."""

    namespace: str
    name: str
    links: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Contents:
    """What one saved state of a store says."""

    uuid: bytes
    revision: int
    layers: tuple[Layer, ...]
    """In order of id."""
    blobs: tuple[Blob, ...]
    actives: tuple[str, ...]
    """Keys of active snapshots, whose layers may change."""
    chains: dict[str, tuple[int, ...]]
    """Layers below each snapshot."""
    images: tuple[Image, ...]
    links: dict[int, tuple[int, ...]]
    """By the oid of a namespace's content: those of its blob and of what its labels lead to."""
    digests: dict[int, str]
    """By the oid of a blob."""

    @classmethod
    def load(cls, stream: Path) -> Contents:
        """Read and verify a saved store; DataLoss, FailedPrecondition for a newer one, OSError."""
        with stream.open("rb") as source:
            contents = cls._of(saved(source, TABLES))
            if source.read(1):
                raise DataLoss("the saved store has something behind its end")
        return contents

    @classmethod
    def _of(cls, opened: Stream) -> Contents:
        layers: list[Layer] = []
        blobs: list[Blob] = []
        actives: list[str] = []
        chains: dict[str, tuple[int, ...]] = {}
        images: list[Image] = []
        links: dict[int, tuple[int, ...]] = {}
        digests: dict[int, str] = {}
        for _, row in opened.rows():
            if isinstance(row.body, SnapshotBody):
                chains[row.name] = row.body.chain
            match row.body:
                case SnapshotBody() as body if body.kind == Kind.COMMITTED.value:
                    layers.append(Layer(body.id, row.created_ns, body.digest, row.name))
                case SnapshotBody() as body if body.kind == Kind.ACTIVE.value:
                    actives.append(row.name)
                case BlobBody(going=False, size_bytes=size):
                    blobs.append(Blob(checked_digest(row.name), size))
                    digests[row.oid] = row.name
                case ContentBody() as body:
                    links[row.oid] = (body.blob, *(oid for _, oid in body.links))
                case ImageBody() as body:
                    images.append(Image(row.scope, row.name, tuple(it for _, it in body.links)))
        return cls(
            uuid=opened.head.uuid,
            revision=opened.head.revision,
            layers=tuple(sorted(layers, key=lambda layer: layer.id)),
            blobs=tuple(blobs),
            actives=tuple(actives),
            chains=chains,
            images=tuple(images),
            links=links,
            digests=digests,
        )

    def needed(self, image: Image) -> frozenset[str]:
        """Return the digests of the blobs that an image leads to."""
        seen, left = set[int](), list(image.links)
        while left:
            oid = left.pop()
            if oid not in seen:
                seen.add(oid)
                left += self.links.get(oid, ())
        return frozenset(self.digests[oid] for oid in seen if oid in self.digests)


def checked_digest(name: str) -> str:
    """Return the name of a saved blob; DataLoss when it is no digest and could lead elsewhere."""
    if not is_digest(name):
        raise DataLoss(f"the saved store has content {name[:140]!r}, which is no digest")
    return name


def is_committed(row: Row[SnapshotBody] | None, layer: Layer) -> bool:
    """Say whether a row is still that of a layer."""
    return row is not None and (row.body.kind, row.created_ns) == (
        Kind.COMMITTED.value,
        layer.created_ns,
    )
