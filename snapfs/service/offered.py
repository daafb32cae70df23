"""What the daemon offers to the services that other packages add to its gRPC server."""

from __future__ import annotations

from dataclasses import dataclass

from snapfs.config import Config
from snapfs.metadata import Metadata
from snapfs.snapshots import Snapshotter


@dataclass(frozen=True, slots=True)
class Offered:
    """The parts of a serving house."""

    snapshotter: Snapshotter
    metadata: Metadata
    config: Config
