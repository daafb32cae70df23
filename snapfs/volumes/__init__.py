"""Volumes: writable filesystems with history; see docs/volumes.md.

The rules are functions of a transaction, a file for each kind of thing: `sets`, `growing` (fork,
extend, import), `snapshots`, `branches`, `copies` (volumes), `queries`, `collecting`. `Volumes` is
for programs. `TABLES` is what the store must know beside those of snapshots and anchors, `CHECKS`
what verifies it.
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
from snapfs.volumes.replacing import Manner
from snapfs.volumes.schema import TABLES
from snapfs.volumes.timelines import Taken
from snapfs.volumes.volumes import Described, Volumes

__all__ = [
    "CHECKS",
    "TABLES",
    "Branch",
    "Bush",
    "Described",
    "Manner",
    "NewSnapshot",
    "Note",
    "Taken",
    "Tombstone",
    "Volume",
    "VolumeSet",
    "VolumeSnapshot",
    "Volumes",
]
