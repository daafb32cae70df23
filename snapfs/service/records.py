"""What clients and the daemon tell each other, as frozen records; the proto's Python faces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from snapfs.model import Quota, Snapshot, Unbound, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One snapshot with everything an operator asks about."""

    snapshot: Snapshot
    usage: Usage | None
    """None where it was not asked for and would have to be measured."""
    layer: Path
    """Directory with the snapshot's own data."""
    mounted_at: tuple[Path, ...] = ()
    """Where it is mounted, as the daemon's mount namespace sees it."""


class ChangeKind(Enum):
    """How a path differs from the parent's."""

    ADDED = "added"
    CHANGED = "changed"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Change:
    """One path of a snapshot that differs from its parent's."""

    kind: ChangeKind
    path: bytes


@dataclass(frozen=True, slots=True)
class Requests:
    """How many requests of one operation a worker had, by where they were answered."""

    fast: int
    """In the fast lane."""
    python: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneRecord:
    """One FUSE mount and the worker that answers for it."""

    name: str
    mountpoint: Path
    mode: str
    """passthrough, readonly or no-open."""
    state: str
    """starting, serving, not answering, restarting, unmounted or stopped."""
    worker_pid: int | None
    restarts: int
    features: Mapping[str, str] = field(default_factory=dict)
    """What its mount could do, with why it cannot; empty: it can. None when no worker answers."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What its worker holds: nodes, lookups, files, backing."""
    requests: Mapping[str, Requests] = field(default_factory=dict)
    """What the kernel has asked its worker since it began, by the name of the operation; nothing
    where there is no fast lane."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonRecord:
    """What `snapfs serve` says of itself."""

    version: str
    pid: int
    started_ns: int
    root: Path
    state: Path
    unpack: str
    revision: int
    active: int
    views: int
    committed: int
    pending_removals: int
    """Layer directories that are gone from the metadata and still to be deleted."""
    warnings: tuple[str, ...] = ()
    """What failed and is tried again, one line each."""
    lanes: tuple[LaneRecord, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaRecord:
    """What an active snapshot may take, and takes."""

    limits: Quota
    used: Usage
    unbound: Unbound


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that fsck found."""

    kind: str
    subject: str
    message: str
    repaired: bool
