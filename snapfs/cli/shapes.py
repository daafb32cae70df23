"""The JSON that commands print, and the words people read: one function a record."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from snapfs.cli import output
from snapfs.model import Committed, Mount, Quota, Unbound, Usage

if TYPE_CHECKING:
    from snapfs.service.records import Change, DaemonRecord, QuotaRecord, Record
    from snapfs.service.snapshotter import FoundProblem

__all__ = ["Mount", "change", "daemon", "details", "mount", "problem", "record", "text"]


def text(path: bytes) -> str:
    """Return a path from the file system; bytes that are no UTF-8 come as lone surrogates."""
    return os.fsdecode(path)


def record(it: Record) -> dict[str, Any]:
    snapshot = it.snapshot
    return {
        "name": snapshot.name,
        "kind": snapshot.kind.word,
        "id": snapshot.id,
        "parent": snapshot.parent,
        "parent_ids": list(snapshot.parent_ids),
        "labels": dict(snapshot.labels),
        "created": output.iso(snapshot.created_ns),
        "updated": output.iso(snapshot.updated_ns),
        "usage": it.usage and {"size_bytes": it.usage.size_bytes, "inodes": it.usage.inodes},
        "digest": _digest(it),
        "lane": None if isinstance(snapshot, Committed) else snapshot.lane,
        "layer": str(it.layer),
        "mounted_at": [str(target) for target in it.mounted_at],
    }


def details(it: Record) -> Iterator[tuple[str, str]]:
    """Yield the lines of `snapshot info`."""
    snapshot = it.snapshot
    yield "name", snapshot.name
    yield "kind", snapshot.kind.word
    yield "id", str(snapshot.id)
    yield "parent", snapshot.parent or "-"
    yield "depth", str(len(snapshot.parent_ids))
    yield "created", output.when(snapshot.created_ns)
    yield "updated", output.when(snapshot.updated_ns)
    if it.usage is not None:
        yield (
            "size",
            f"{output.size(it.usage.size_bytes)} in {output.count(it.usage.inodes, 'inode')}",
        )
    if digest := _digest(it):
        yield "digest", digest
    if not isinstance(snapshot, Committed):
        yield "lane", snapshot.lane
    yield "layer", str(it.layer)
    for target in it.mounted_at:
        yield "mounted at", str(target)
    for key, value in sorted(snapshot.labels.items()):
        yield "label", f"{key}={value}"


def _digest(it: Record) -> str | None:
    """Return the digest of a sealed layer, in hexadecimal."""
    return it.snapshot.digest.hex() or None if isinstance(it.snapshot, Committed) else None


def quota(it: QuotaRecord) -> dict[str, Any]:
    return {
        "size_bytes": it.limits.size_bytes,
        "inodes": it.limits.inodes,
        "usage": {"size_bytes": it.used.size_bytes, "inodes": it.used.inodes},
        "unbound": {"files": it.unbound.files, "paths": list(it.unbound.paths)},
    }


def quota_warning(unbound: Unbound) -> str:
    """Say which files are written past a quota, and until when."""
    named = ", ".join(map(output.printable, unbound.paths))
    if more := unbound.files - len(unbound.paths):
        named += f" and {more} more"
    return (
        "files that were open already are not bound by the quota until they are closed: "
        f"{named}; end who writes to them to have it hold now"
    )


def quota_rows(limits: Quota, used: Usage) -> Iterator[tuple[str, str, str]]:
    """Yield the lines of `snapshot quota`."""
    most = "-" if limits.size_bytes is None else output.size(limits.size_bytes)
    yield "bytes", output.size(used.size_bytes), most
    yield "inodes", str(used.inodes), "-" if limits.inodes is None else str(limits.inodes)


def mount(it: Mount) -> dict[str, Any]:
    return {
        "type": it.type,
        "source": it.source,
        "target": it.target,
        "options": list(it.options),
    }


def change(it: Change) -> dict[str, str]:
    return {"kind": it.kind.value, "path": text(it.path)}


def problem(it: FoundProblem) -> dict[str, Any]:
    return {
        "kind": it.kind,
        "subject": it.subject,
        "message": it.message,
        "repaired": it.repaired,
    }


def daemon(it: DaemonRecord) -> dict[str, Any]:
    return {
        "version": it.version,
        "pid": it.pid,
        "started": output.iso(it.started_ns),
        "root": str(it.root),
        "state": str(it.state),
        "unpack": it.unpack,
        "revision": it.revision,
        "snapshots": {"active": it.active, "view": it.views, "committed": it.committed},
        "pending_removals": it.pending_removals,
        "warnings": list(it.warnings),
        "lanes": [
            {
                "name": lane.name,
                "mountpoint": str(lane.mountpoint),
                "mode": lane.mode,
                "state": lane.state,
                "worker_pid": lane.worker_pid,
                "restarts": lane.restarts,
                "features": dict(lane.features),
                "counts": dict(lane.counts),
                "requests": {
                    name: {"fast": count.fast, "python": count.python}
                    for name, count in lane.requests.items()
                },
            }
            for lane in it.lanes
        ],
    }
