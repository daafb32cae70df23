"""What a root holds and what is still to be done, for people."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from snapfs.snapshots.durability import Durability
from snapfs.snapshots.removal import PendingRemoval

Unpack: TypeAlias = Literal["overlay", "fuse"]
"""What containerd unpacks into: an overlay mount of the layers, or the tree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What a root holds and what is still to be done."""

    root: Path
    unpack: Unpack
    durability: Durability
    revision: int
    active: int
    views: int
    committed: int
    pending: tuple[PendingRemoval, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line for each removal that failed and is tried again."""
        return tuple(
            f"removal of {it.path} failed {it.attempts} times and is tried again: {it.error}"
            for it in self.pending
            if it.attempts
        )
