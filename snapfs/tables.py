"""Everything that a root's store holds: who opens one for writing or checks it names all of it."""

from __future__ import annotations

from typing import Any

from snapfs import anchors, metadata, sync, volumes
from snapfs.store import Table

TABLES: tuple[Table[Any], ...] = (*anchors.TABLES, *metadata.TABLES, *volumes.TABLES, *sync.TABLES)
"""Tables beside those of snapshots, which the snapshotter knows itself."""

CHECKS = {**anchors.CHECKS, **metadata.CHECKS, **volumes.CHECKS}
