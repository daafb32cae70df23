"""Records of volumes, as callers see them. Pure.

A *volume set* is a tree of *snapshots* with *branches*; a *volume* is a working copy of a set on
this host; a *bush* says which store holds the tree that grows from a root snapshot. Sets,
snapshots, branches and bushes travel between hosts; volumes and blobs do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from snapfs.volumes.ids import BranchId, VolumeId, VolumeSetId, VolumeSnapshotId

Attributes: TypeAlias = Mapping[str, str]
"""Words of the user's own about a set, a snapshot or a volume."""

RESERVED_ATTRIBUTES = "snapfs."
"""What the keys of attributes that snapfs itself sets begin with."""

DEFAULT_BRANCH = "main"
"""Name of the branch that the first snapshot of a volume makes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Who changes something and why: what the entries of anchors say."""

    author: str = ""
    reason: str = ""


NO_NOTE = Note()


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeSet:
    """A tree of snapshots."""

    id: VolumeSetId
    name: str
    prefix: str = ""
    """Path before the name; the two together are what people call the set."""
    description: str = ""
    attributes: Attributes = field(default_factory=dict)
    creator: str = ""
    owner: str = ""
    created_ns: int = 0
    modified_ns: int = 0
    """When name, prefix, description, attributes or owner last changed, on any host."""
    size_bytes: int = 0
    """Of this host: what its snapshots hold here."""
    snapshots: int = 0
    branches: int = 0
    last_snapshot_ns: int | None = None
    revision: int = 0
    """Revision of this store that last changed what travels of it."""

    @property
    def path(self) -> str:
        return f"{self.prefix}/{self.name}" if self.prefix else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSnapshot:
    """A snapshot as it comes into a store: made here, or imported with its id and times."""

    id: VolumeSnapshotId
    name: str = ""
    description: str = ""
    """What its maker says of it: the message."""
    attributes: Attributes = field(default_factory=dict)
    creator: str = ""
    owner: str = ""
    created_ns: int | None = None
    """None for now."""
    modified_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeSnapshot:
    """A point of a set's history, with what follows from the others."""

    id: VolumeSnapshotId
    set_id: VolumeSetId
    parent: VolumeSnapshotId | None
    name: str = ""
    description: str = ""
    attributes: Attributes = field(default_factory=dict)
    creator: str = ""
    owner: str = ""
    created_ns: int = 0
    modified_ns: int = 0
    size_bytes: int = 0
    blob: str = ""
    """Of this host: name of the committed snapshot that has the data; empty when absent."""
    depth: int = 1
    """Number of snapshots from the root to this one."""
    children: int = 0
    branches: tuple[str, ...] = ()
    """Names of the branches whose tip it is, "" for an unnamed one."""
    revision: int = 0

    @property
    def is_tip(self) -> bool:
        return bool(self.branches)


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """A line of history, known by its tip."""

    id: BranchId
    set_id: VolumeSetId
    name: str
    """Empty for an unnamed one."""
    tip: VolumeSnapshotId
    has_child: bool = False
    """The tip has children: other branches go on from here."""
    created_ns: int = 0
    modified_ns: int = 0
    revision: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bush:
    """The tree that grows from a root snapshot, and the store that holds its data."""

    set_id: VolumeSetId
    root: VolumeSnapshotId
    server: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A working copy of a set on this host."""

    id: VolumeId
    name: str
    set_id: VolumeSetId
    base: VolumeSnapshotId | None
    """What its data grew from; None before the first snapshot."""
    branch: BranchId | None
    """The branch that its snapshots extend; None when detached, or before the first snapshot."""
    next_branch: str = ""
    """Name of the branch that the next snapshot makes; empty when there is a branch, or none is
    wanted."""
    mount_path: str = ""
    """Where it is to be mounted, unique; empty for nowhere."""
    is_mounted: bool = False
    """It is to be mounted at its path whenever the daemon runs."""
    attributes: Attributes = field(default_factory=dict)
    size_bytes: int | None = None
    """What its own changes may take; None for no limit."""
    key: str = ""
    """Key of the active snapshot that has its data."""
    created_ns: int = 0
    revision: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tombstone:
    """Something that travels and was deleted: other hosts must hear of it."""

    kind: str
    """"set", "snapshot" or "branch"."""
    id: str
    set_id: VolumeSetId
    deleted_ns: int
    author: str = ""
