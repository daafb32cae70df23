"""What a snapshotter has to offer, and what passes between it and a namespace."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol

from snapfs.metadata.snapshotlinks import Link
from snapfs.model import Labels, Mount, Snapshot, Usage

REF = "containerd.io/snapshot.ref"
"""Label of what a snapshotter may have for several namespaces, whatever they call it."""

_INHERITED = "containerd.io/snapshot/"


class Backend(Protocol):
    """A snapshotter. Thread-safe; raises SnapfsError."""

    def prepare(self, key: str, parent: str, labels: Labels) -> list[Mount]: ...

    def view(self, key: str, parent: str, labels: Labels) -> list[Mount]: ...

    def mounts(self, key: str) -> list[Mount]: ...

    def commit(self, key: str, name: str, labels: Labels, parent: str = "") -> object: ...

    def remove(self, key: str) -> object: ...

    def stat(self, key: str) -> Snapshot: ...

    def update(
        self, key: str, labels: Labels, fieldpaths: Sequence[str] | None = None
    ) -> Snapshot: ...

    def walk(self, filters: Sequence[str] = ()) -> Iterator[Snapshot]: ...

    def usage(self, key: str) -> Usage: ...

    def cleanup(self) -> object: ...


def inherited(labels: Labels) -> dict[str, str]:
    """Return the labels that a snapshotter hears of."""
    return {key: value for key, value in labels.items() if key == REF or key.startswith(_INHERITED)}


def merged(link: Link, told: Snapshot) -> Snapshot:
    """Return a snapshot as a namespace sees it."""
    return dataclasses.replace(
        told,
        name=link.body.key,
        parent=link.body.parent,
        labels={**told.labels, **link.body.labels},
        created_ns=link.created_ns,
        updated_ns=link.updated_ns,
    )
