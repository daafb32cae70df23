"""The snapshot metastore and the lifecycle of layer directories.

`MetaStore` is the metastore alone; `Snapshotter` adds layer directories, mounts, recovery and
fsck; `LayerReader` is what the FUSE worker sees of it. See docs/snapshots.md and docs/lifecycle.md.

Each name is imported when it is asked for: a worker that others wait for needs few of them.
"""

from typing import TYPE_CHECKING

from snapfs.loading import on_demand

if TYPE_CHECKING:
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
else:
    __getattr__ = on_demand(
        __name__,
        {
            "durability": "Durability",
            "examination": "Problem Report fsck",
            "lifecycle": "Snapshotter",
            "metastore": "MetaStore Removed",
            "placement": "LANE_LABEL Placement",
            "reader": "LayerReader Layers",
            "removal": "PendingRemoval",
            "status": "Status",
            "trees": "Lanes NoTrees Trees",
            "verification": "Verdict Verified verify",
        },
    )

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
