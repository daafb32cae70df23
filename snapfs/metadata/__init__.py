"""Namespaces, images, containers, content, leases and garbage collection; see docs/metadata.md.

`Metadata` is all of it over one store; `TABLES` is what the store must know.
"""

from snapfs.metadata.backends import Backend
from snapfs.metadata.checking import CHECKS
from snapfs.metadata.collected import Collected
from snapfs.metadata.collectibles import Collectible, External, Round
from snapfs.metadata.collector import Collector, Garbage
from snapfs.metadata.explain import Explanation, Step
from snapfs.metadata.ingests import Wish, Writer
from snapfs.metadata.metadata import Metadata
from snapfs.metadata.objects import (
    Container,
    Content,
    Context,
    Descriptor,
    Image,
    Ingest,
    Lease,
    Namespace,
    Resource,
    Runtime,
    Sandbox,
    SnapshotLink,
    Typed,
)
from snapfs.metadata.references import Name, Type
from snapfs.metadata.removal import Snapshotter
from snapfs.metadata.scheduler import Knobs, Plan, Scheduler
from snapfs.metadata.schema import TABLES
from snapfs.metadata.snapshots import Snapshots

__all__ = [
    "CHECKS",
    "TABLES",
    "Backend",
    "Collected",
    "Collectible",
    "Collector",
    "Container",
    "Content",
    "Context",
    "Descriptor",
    "Explanation",
    "External",
    "Garbage",
    "Image",
    "Ingest",
    "Knobs",
    "Lease",
    "Metadata",
    "Name",
    "Namespace",
    "Plan",
    "Resource",
    "Round",
    "Runtime",
    "Sandbox",
    "Scheduler",
    "SnapshotLink",
    "Snapshots",
    "Snapshotter",
    "Step",
    "Type",
    "Typed",
    "Wish",
    "Writer",
]
