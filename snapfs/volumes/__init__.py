"""Volumes: writable filesystems with history; see docs/volumes.md.

The rules are functions of a transaction, a file for each kind of thing: `sets`, `growing` (fork,
extend, import), `snapshots`, `branches`, `copies` (volumes), `queries`, `collecting`. `TABLES` is
what the store must know beside those of snapshots and anchors, `CHECKS` what verifies it.
"""

from snapfs.volumes.checking import CHECKS
from snapfs.volumes.model import (
    Branch,
    Bush,
    NewSnapshot,
    Note,
    Tombstone,
    Volume,
    VolumeSet,
    VolumeSnapshot,
)
from snapfs.volumes.schema import TABLES

__all__ = [
    "CHECKS",
    "TABLES",
    "Branch",
    "Bush",
    "NewSnapshot",
    "Note",
    "Tombstone",
    "Volume",
    "VolumeSet",
    "VolumeSnapshot",
]
