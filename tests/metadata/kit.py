"""What tests of metadata share: a clock, names, and short ways to make objects."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

from snapfs import anchors
from snapfs.metadata import TABLES as METADATA
from snapfs.metadata import Context, Descriptor, Image, Metadata, Wish
from snapfs.model import NotFound
from snapfs.snapshots.schema import TABLES as SNAPSHOTS

TABLES = (*SNAPSHOTS, *anchors.TABLES, *METADATA)
SECOND = 1_000_000_000
HOUR = 3600 * SECOND
NOW = 1_800_000_000 * SECOND
LAYER = "application/vnd.oci.image.layer.v1.tar"


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self, now_ns: int = NOW) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns


class Backend:
    """A snapshotter that keeps names only, and can be told to refuse."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.refuses: set[str] = set()
        self.removed: list[str] = []

    def remove(self, key: str) -> None:
        if key in self.refuses:
            raise OSError(5, f"{key} is stuck")
        if key not in self.keys:
            raise NotFound(key)
        self.keys.remove(key)
        self.removed.append(key)

    def stat(self, key: str) -> None:
        if key not in self.keys:
            raise NotFound(key)

    def cleanup(self) -> None:
        """Nothing is left to clean."""


def rfc3339(ns: int) -> str:
    return datetime.fromtimestamp(ns / SECOND, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def image(name: str, digest: str, labels: dict[str, str] | None = None) -> Image:
    return Image(
        name=name,
        target=Descriptor("application/vnd.oci.image.manifest.v1+json", digest, 10),
        labels=labels or {},
    )


def write(
    metadata: Metadata, context: Context, data: bytes, labels: dict[str, str] | None = None
) -> str:
    """Write content whole and return its digest."""
    with metadata.content.writer(context, f"ref-{digest_of(data)}") as writer:
        writer.write(data)
        return writer.commit(Wish(labels=labels)).digest
