"""The remotes' part of snapfs.v1: messages from records and back."""

from __future__ import annotations

from dataclasses import dataclass

from snapfs.model import InvalidArgument
from snapfs.service import sync_v1_pb2 as pb
from snapfs.service.convert import time_ns, timestamp
from snapfs.sync.conflicts import Kept
from snapfs.sync.engine import BranchReport, Progress, Report
from snapfs.sync.planning import Direction
from snapfs.sync.remotes import Remote
from snapfs.sync.threeway import Policy
from snapfs.volumes.ids import VolumeSetId


@dataclass(frozen=True, slots=True)
class SetReport:
    """What a sync of one set did, as a client sees it."""

    set_id: str
    path: str
    remote: str
    branches: tuple[BranchReport, ...]
    refused: tuple[str, ...]
    changes: tuple[str, ...]
    """What was changed of the set and of snapshots, in words."""
    conflicts: int
    layers: int
    sent_bytes: int
    received_bytes: int
    is_well: bool
    error: str
    """Why the sync of this set ended early; empty when it did not."""


def remote_to_wire(remote: Remote) -> pb.Remote:
    return pb.Remote(
        name=remote.name,
        url=remote.url,
        store=remote.store,
        added_at=timestamp(remote.added_ns),
    )


def remote_from_wire(message: pb.Remote) -> Remote:
    return Remote(message.name, message.url, message.store, time_ns(message.added_at))


def direction_from_wire(text: str) -> Direction:
    try:
        return Direction(text)
    except ValueError:
        raise InvalidArgument(f"{text!r} is no direction; use sync, push or pull") from None


def policy_from_wire(text: str) -> Policy:
    try:
        return Policy(text)
    except ValueError:
        raise InvalidArgument(f"{text!r} is no policy; use theirs, ours or fail") from None


def progress_to_wire(progress: Progress) -> pb.SyncProgress:
    return pb.SyncProgress(
        branch=progress.branch,
        to_here=progress.to_here,
        layer=progress.layer,
        layers=progress.layers,
        chunks=progress.chunks,
        chunks_wanted=progress.chunks_wanted,
        sent_bytes=progress.sent_bytes,
    )


def progress_from_wire(message: pb.SyncProgress) -> Progress:
    return Progress(
        message.branch,
        message.to_here,
        message.layer,
        message.layers,
        message.chunks,
        message.chunks_wanted,
        message.sent_bytes,
    )


def report_to_wire(report: Report, path: str) -> pb.SyncReport:
    return pb.SyncReport(
        set_id=report.set_id,
        path=path,
        remote=report.remote,
        branches=map(_branch_to_wire, report.branches),
        refused=report.refused,
        changes=report.changes,
        conflicts=len(report.conflicts),
        layers=report.layers,
        sent_bytes=report.sent_bytes,
        received_bytes=report.received_bytes,
        well=report.is_well,
    )


def report_from_wire(message: pb.SyncReport) -> SetReport:
    return SetReport(
        set_id=message.set_id,
        path=message.path,
        remote=message.remote,
        branches=tuple(map(_branch_from_wire, message.branches)),
        refused=tuple(message.refused),
        changes=tuple(message.changes),
        conflicts=message.conflicts,
        layers=message.layers,
        sent_bytes=message.sent_bytes,
        received_bytes=message.received_bytes,
        is_well=message.well,
        error=message.error,
    )


def _branch_to_wire(branch: BranchReport) -> pb.SyncedBranch:
    return pb.SyncedBranch(
        id=branch.id,
        name=branch.name,
        fate=branch.fate,
        message=branch.message,
        well=branch.is_well,
    )


def _branch_from_wire(message: pb.SyncedBranch) -> BranchReport:
    return BranchReport(message.id, message.name, message.fate, message.message)


def conflict_to_wire(kept: Kept) -> pb.SyncConflict:
    return pb.SyncConflict(
        number=kept.number,
        set_id=kept.set_id,
        remote=kept.remote,
        kind=kept.kind,
        item=kept.item,
        field=kept.field,
        ours=kept.ours,
        theirs=kept.theirs,
        last=kept.last,
        winner=kept.winner,
        since=timestamp(kept.since_ns),
        called=kept.called,
    )


def conflict_from_wire(message: pb.SyncConflict) -> Kept:
    return Kept(
        number=message.number,
        set_id=VolumeSetId(message.set_id),
        remote=message.remote,
        kind=message.kind,
        item=message.item,
        field=message.field,
        ours=message.ours if message.HasField("ours") else None,
        theirs=message.theirs if message.HasField("theirs") else None,
        last=message.last if message.HasField("last") else None,
        winner=message.winner,
        since_ns=time_ns(message.since),
        called=message.called,
    )
