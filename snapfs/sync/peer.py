"""What a store answers to another that syncs with it; a connection carries it, or nothing does.

Every method may be called from any thread and raises SnapfsError. What a call has changed is
durable when it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import msgspec

from snapfs.anchors import History
from snapfs.sync.items import Tree
from snapfs.sync.planning import Change
from snapfs.transfer import Offer, Packed
from snapfs.volumes import Note
from snapfs.volumes.ids import BranchId, VolumeSetId, VolumeSnapshotId

PROTOCOL = 1


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """Who answers."""

    store: str
    version: str
    protocol: int = PROTOCOL


class SetName(msgspec.Struct, frozen=True, array_like=True):
    """A set that a store has, or had."""

    id: str
    path: str
    """Empty for one that was deleted."""


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What became of a change: "done", "moved" when it must be planned again, or "refused"."""

    state: str
    message: str = ""


DONE = Answer("done")

Wanted = Callable[[list[bytes]], Iterator[Packed]]
"""Gives the chunks that a receiver asks for."""


class Peer(Protocol):
    """A store that may be elsewhere."""

    def hello(self) -> Hello:
        """Say who answers."""

    def sets(self) -> list[SetName]:
        """Return every set there is, and those that were deleted."""

    def describe(self, set_id: VolumeSetId) -> Tree:
        """Return what there is of a set; nothing for one that never was."""

    def apply(self, set_id: VolumeSetId, changes: Sequence[Change], why: Note) -> list[Answer]:
        """Do changes, each whole or not at all; say of each what became of it."""

    def attach(self, set_id: VolumeSetId, tips: Sequence[VolumeSnapshotId]) -> None:
        """Say of the snapshots that lead to these that their data is here, where it has come."""

    def facts(self, set_id: VolumeSetId, branches: Sequence[BranchId]) -> list[History]:
        """Return the histories of branches."""

    def merge_facts(self, histories: Sequence[History]) -> None:
        """Add to the histories of branches what another store knows of them."""

    def offer(self, set_id: VolumeSetId, snapshot: VolumeSnapshotId) -> Offer:
        """Return what the data of a snapshot is. Raises NotFound when it is not there."""

    def manifest(self, set_id: VolumeSetId, snapshot: VolumeSnapshotId) -> Iterator[bytes]:
        """Yield the manifest of a snapshot's data."""

    def chunks(
        self, set_id: VolumeSetId, snapshot: VolumeSnapshotId, wanted: list[bytes]
    ) -> Iterator[Packed]:
        """Yield chunks of a snapshot's data."""

    def receive(
        self,
        set_id: VolumeSetId,
        snapshot: VolumeSnapshotId,
        parent: VolumeSnapshotId | None,
        offer: Offer,
        manifest: Iterable[bytes],
        chunks: Wanted,
    ) -> None:
        """Take the data of a snapshot; it is durable and verified on return."""
