"""The snapshot metastore and the lifecycle of layer directories.

`MetaStore` is the metastore alone; `Snapshotter` adds layer directories, mounts, recovery and
fsck; `LayerReader` is what the FUSE worker sees of it. See docs/snapshots.md and docs/lifecycle.md.
"""

from snapfs.snapshots.durability import Durability
from snapfs.snapshots.examination import Problem, Report, fsck
from snapfs.snapshots.lifecycle import Snapshotter
from snapfs.snapshots.metastore import MetaStore, Removed
from snapfs.snapshots.placement import LANE_LABEL, Placement
from snapfs.snapshots.reader import LayerReader, Layers
from snapfs.snapshots.removal import PendingRemoval
from snapfs.snapshots.status import Status
from snapfs.snapshots.trees import Lanes, NoTrees, Trees
from snapfs.snapshots.verification import Verdict, Verified, verify

__all__ = [
    "LANE_LABEL",
    "Durability",
    "Lanes",
    "LayerReader",
    "Layers",
    "MetaStore",
    "NoTrees",
    "PendingRemoval",
    "Placement",
    "Problem",
    "Removed",
    "Report",
    "Snapshotter",
    "Status",
    "Trees",
    "Verdict",
    "Verified",
    "fsck",
    "verify",
]
