"""What the store keeps for volumes: tables 50 to 55 and edges 50 to 55.

    tag  table              scope    row name
    50   volume set         snapfs   id
    51   volume snapshot    set id   id
    52   branch             set id   id
    53   bush               set id   id of the root snapshot
    54   volume             snapfs   id
    55   volume tombstone   set id   KIND/ID; that of a set itself in the scope "snapfs"

    edge 50  strong, from snapshots, branches, bushes and volumes to their set
    edge 51  strong, from a snapshot to its parent
    edge 52  strong, from a branch to its tip
    edge 53  strong, from a volume to its base
    edge 54  strong, from a snapshot to the committed snapshot (table 1) that has its data here
    edge 55  strong, from a volume to the active snapshot (table 1) that has its data
    edge 56  strong, from a bush to its root

What a host only knows of itself (size, blob, mounting) is written as status: `spec_rev` of a row is
the revision that last changed what travels.

Invariants: depth is the parent's plus one; a branch's name is unique in its set unless it is empty;
a root snapshot has a bush; a volume's name and mount path are its own; a snapshot whose data is
here has a parent whose data is here. A tombstone's row is gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from snapfs.store import Index, Reference, Table
from snapfs.volumes.ids import short

SCOPE = "snapfs"
"""Scope of sets, volumes and the tombstones of sets."""

SET_EDGE = 50
PARENT_EDGE = 51
TIP_EDGE = 52
BASE_EDGE = 53
DATA_EDGE = 54
ACTIVE_EDGE = 55
ROOT_EDGE = 56


class SetBody(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """A set; the order of fields is the order on disk, here and below."""

    id: str
    name: str
    prefix: str = ""
    description: str = ""
    attributes: dict[str, str] = {}
    creator: str = ""
    owner: str = ""
    modified_ns: int = 0
    size_bytes: int = 0

    @property
    def path(self) -> str:
        return f"{self.prefix}/{self.name}" if self.prefix else self.name


class SnapshotBody(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """A snapshot; `created_ns` of its row is when it was made, on whatever host."""

    id: str
    set: int
    """oid of the set's row."""
    parent: int = 0
    """oid of the parent's row; 0 for a root."""
    parent_id: str = ""
    depth: int = 1
    name: str = ""
    description: str = ""
    attributes: dict[str, str] = {}
    creator: str = ""
    owner: str = ""
    modified_ns: int = 0
    size_bytes: int = 0
    blob: str = ""
    """Name of the committed snapshot that has the data in this store."""
    data: int = 0
    """oid of that snapshot's row."""


class BranchBody(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """A branch."""

    id: str
    set: int
    name: str
    tip: int
    tip_id: str
    modified_ns: int = 0


class BushBody(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """Where the tree of a root snapshot is."""

    set: int
    root: int
    server: str


class VolumeBody(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """A volume."""

    id: str
    set: int
    set_id: str
    name: str
    base: int = 0
    base_id: str = ""
    branch: str = ""
    """Id of the branch that it is on."""
    next_branch: str = ""
    mount_path: str = ""
    is_mounted: bool = False
    attributes: dict[str, str] = {}
    size_bytes: int | None = None
    key: str = ""
    active: int = 0
    """oid of the active snapshot's row."""


class TombstoneBody(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What was deleted, by whom."""

    kind: str
    id: str
    set_id: str
    author: str = ""


def _some(*values: str) -> Iterable[bytes]:
    return tuple(value.encode() for value in values if value)


def _oid(oid: int) -> tuple[int, ...]:
    return (oid,) if oid else ()


_OF_SET: Reference[Any] = Reference(SET_EDGE, lambda body: (body.set,))

SETS: Table[SetBody] = Table(
    tag=50,
    name="volume set",
    body=SetBody,
    indexes=(
        Index("path", lambda body: _some(body.path)),
        Index("short", lambda body: _some(short(body.id))),
    ),
)

SNAPSHOTS: Table[SnapshotBody] = Table(
    tag=51,
    name="volume snapshot",
    body=SnapshotBody,
    indexes=(Index("short", lambda body: _some(short(body.id))),),
    references=(
        _OF_SET,
        Reference(PARENT_EDGE, lambda body: _oid(body.parent)),
        Reference(DATA_EDGE, lambda body: _oid(body.data)),
    ),
)

BRANCHES: Table[BranchBody] = Table(
    tag=52,
    name="branch",
    body=BranchBody,
    indexes=(Index("name", lambda body: _some(body.name), unique=True),),
    references=(_OF_SET, Reference(TIP_EDGE, lambda body: (body.tip,))),
)

BUSHES: Table[BushBody] = Table(
    tag=53,
    name="bush",
    body=BushBody,
    references=(_OF_SET, Reference(ROOT_EDGE, lambda body: (body.root,))),
)

VOLUMES: Table[VolumeBody] = Table(
    tag=54,
    name="volume",
    body=VolumeBody,
    indexes=(
        Index("name", lambda body: _some(body.name), unique=True),
        Index("mount path", lambda body: _some(body.mount_path), unique=True),
        Index("branch", lambda body: _some(body.branch)),
    ),
    references=(
        _OF_SET,
        Reference(BASE_EDGE, lambda body: _oid(body.base)),
        Reference(ACTIVE_EDGE, lambda body: _oid(body.active)),
    ),
)

TOMBSTONES: Table[TombstoneBody] = Table(tag=55, name="volume tombstone", body=TombstoneBody)

TABLES = (SETS, SNAPSHOTS, BRANCHES, BUSHES, VOLUMES, TOMBSTONES)
