"""The JSON that commands on volumes print, and the words people read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from snapfs.cli import output

if TYPE_CHECKING:
    from snapfs.volumes import Branch, Described, Taken, VolumeSet, VolumeSnapshot


def short(identity: str) -> str:
    """Return an id as people read it."""
    return identity[:8] + identity[-4:]


def volume(it: Described) -> dict[str, Any]:
    own = it.volume
    return {
        "name": own.name,
        "id": own.id,
        "set": {"id": it.set.id, "path": it.set.path, "snapshots": it.set.snapshots},
        "branch": it.branch,
        "snapshot": own.base,
        "mount_path": own.mount_path,
        "is_mounted": own.is_mounted,
        "mounted_at": it.mounted_at,
        "limit_bytes": own.size_bytes,
        "usage": {"size_bytes": it.usage.size_bytes, "inodes": it.usage.inodes},
        "attributes": dict(it.set.attributes),
        "key": own.key,
        "created": output.iso(own.created_ns),
    }


def details(it: Described) -> Iterator[tuple[str, str]]:
    """Yield the lines of `volume info`."""
    own = it.volume
    yield "name", own.name
    yield "id", own.id
    yield "set", f"{it.set.path} ({it.set.id})"
    if it.set.description:
        yield "description", it.set.description
    yield "branch", it.branch or "-"
    yield "snapshot", short(own.base) if own.base else "none yet"
    of_snapshots = output.count(it.set.snapshots, "snapshot")
    yield "history", f"{of_snapshots} on {output.count(it.set.branches, 'branch', 'branches')}"
    yield "created", output.when(own.created_ns)
    limit = "" if own.size_bytes is None else f", at most {output.size(own.size_bytes)}"
    used = f"{output.size(it.usage.size_bytes)} in {output.count(it.usage.inodes, 'inode')}"
    yield "own data", f"{used}{limit}"
    yield "mounted at", it.mounted_at or "-"
    yield "data", own.key
    for key, value in sorted(it.set.attributes.items()):
        yield "attribute", f"{key}={value}"


def of_set(it: VolumeSet, volumes: Sequence[str]) -> dict[str, Any]:
    return {
        "path": it.path,
        "id": it.id,
        "description": it.description,
        "attributes": dict(it.attributes),
        "creator": it.creator,
        "owner": it.owner,
        "created": output.iso(it.created_ns),
        "modified": output.iso(it.modified_ns),
        "last_snapshot": None if it.last_snapshot_ns is None else output.iso(it.last_snapshot_ns),
        "size_bytes": it.size_bytes,
        "snapshots": it.snapshots,
        "branches": it.branches,
        "volumes": list(volumes),
        "revision": it.revision,
    }


def snapshot(it: VolumeSnapshot) -> dict[str, Any]:
    return {
        "id": it.id,
        "short": short(it.id),
        "set": it.set_id,
        "parent": it.parent,
        "message": it.description,
        "attributes": dict(it.attributes),
        "author": it.creator,
        "created": output.iso(it.created_ns),
        "size_bytes": it.size_bytes,
        "data": it.blob,
        "depth": it.depth,
        "children": it.children,
        "branches": list(it.branches),
        "revision": it.revision,
    }


def line(it: VolumeSnapshot, *, is_head: bool = False) -> str:
    """Return a snapshot in one line; `is_head` when it is where the volume stands."""
    ends = ", ".join(["HEAD"] * is_head + [name or "(unnamed)" for name in it.branches])
    subject = it.description.splitlines()[0] if it.description else ""
    parts = [short(it.id), f"({ends})" if ends else "", output.when(it.created_ns)]
    parts += [output.size(it.size_bytes) if it.blob else "absent", it.creator, subject]
    return output.printable("  ".join(part for part in parts if part))


def branch(it: Branch) -> dict[str, Any]:
    return {
        "name": it.name,
        "id": it.id,
        "set": it.set_id,
        "tip": it.tip,
        "has_child": it.has_child,
        "modified": output.iso(it.modified_ns),
        "revision": it.revision,
    }


def taken(it: Taken) -> dict[str, Any]:
    return {
        **snapshot(it.snapshot),
        "branch": it.branch.name,
        "pause_ms": round(it.pause_ns / 1e6, 3),
        "files": it.files,
        "copied_bytes": it.copied_bytes,
    }
