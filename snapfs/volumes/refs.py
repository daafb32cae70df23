"""References to snapshots as people write them: a base, a time, steps back. Pure but for `resolve`.

    REF   = BASE [ "@{" TIME "}" ] STEPS
    BASE  = "HEAD" | branch | id | short id, whole or from 4 digits     nothing: HEAD
    STEPS = { "^" | "~" NUMBER }                                        parents

HEAD is what the volume grew from. `branch@{TIME}` is what the branch ended in at that time, by its
history. TIME is nanoseconds since 1970 here; the command line takes it as people write it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from snapfs.model import InvalidArgument
from snapfs.store import ReadTx
from snapfs.volumes import ancestry, branches, history
from snapfs.volumes.ancestry import SnapshotRow
from snapfs.volumes.copies import VolumeRow
from snapfs.volumes.errors import Ambiguous, BranchNotFound, VolumeSnapshotNotFound
from snapfs.volumes.ids import (
    BranchId,
    VolumeId,
    VolumeSetId,
    VolumeSnapshotId,
    is_id,
    may_be_short,
    short,
)

HEAD = "HEAD"
MAX_STEPS = 1_000_000

_REF = re.compile(r"(?P<base>[^@^~{}\s]*)(?:@\{(?P<at>[^{}]*)\})?(?P<steps>(?:\^|~\d{1,7})*)")
_STEP = re.compile(r"\^|~(\d+)")


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference, read."""

    base: str = HEAD
    at_ns: int | None = None
    steps: int = 0


def parse(text: str) -> Reference:
    """Return what `text` says, or raise InvalidArgument."""
    found = _REF.fullmatch(text)
    at = found["at"] if found else None
    if found is None or (at is not None and not (at.isascii() and at.isdigit())):
        raise InvalidArgument(
            f"reference {text[:64]!r} is not understood; write an id, a branch, HEAD^, main~2 or "
            "main@{2026-11-20 09:00}"
        )
    steps = sum(int(step[1] or 1) for step in _STEP.finditer(found["steps"]))
    if steps > MAX_STEPS:
        raise InvalidArgument(f"reference {text[:64]!r} goes back too far")
    return Reference(found["base"] or HEAD, int(at) if at else None, steps)


def with_times(text: str, convert: Callable[[str], int]) -> str:
    """Return `text` with the time in it, if there is one, as nanoseconds."""
    return re.sub(r"@\{([^{}]*)\}", lambda found: f"@{{{convert(found[1])}}}", text, count=1)


@dataclass(frozen=True, slots=True)
class Target:
    """What a reference means."""

    row: SnapshotRow
    branch: BranchId | None
    """The branch, when the reference is just its name."""


def resolve(tx: ReadTx, set_id: VolumeSetId, text: str, volume: VolumeRow | None = None) -> Target:
    """Return what a reference means in a set, for a volume if there is one.

    Raises InvalidArgument, VolumeSnapshotNotFound, BranchNotFound, Ambiguous, and NotFound for a
    time before the history.
    """
    reference = parse(text)
    base = _base(tx, set_id, reference, volume)
    row = base.row
    for _ in range(reference.steps):
        if not row.body.parent:
            raise VolumeSnapshotNotFound(f"{text!r} goes back behind the first snapshot")
        row = ancestry.by_oid(tx, row.body.parent)
    is_plain = reference.at_ns is None and reference.steps == 0
    return Target(row, base.branch if is_plain else None)


def _base(
    tx: ReadTx, set_id: VolumeSetId, reference: Reference, volume: VolumeRow | None
) -> Target:
    if reference.base == HEAD:
        return Target(_head(tx, set_id, reference, volume), None)
    branch = branches.named(tx, set_id, reference.base)
    if branch is not None:
        return Target(_tip(tx, set_id, branch, reference), BranchId(branch.name))
    if reference.at_ns is not None:
        raise BranchNotFound(f"branch {reference.base[:64]!r} does not exist, and has no history")
    return Target(_snapshot(tx, set_id, reference.base), None)


def _head(
    tx: ReadTx, set_id: VolumeSetId, reference: Reference, volume: VolumeRow | None
) -> SnapshotRow:
    if volume is None:
        raise InvalidArgument("HEAD is of a volume; give a branch or an id")
    if reference.at_ns is not None:
        anchor = history.volume_anchor(VolumeId(volume.name))
        called = f"volume {volume.body.name!r}"
        return ancestry.find(tx, set_id, history.at(tx, anchor, reference.at_ns, called))
    if not volume.body.base:
        raise VolumeSnapshotNotFound(f"volume {volume.body.name!r} has no snapshot yet; take one")
    return ancestry.by_oid(tx, volume.body.base)


def _tip(
    tx: ReadTx, set_id: VolumeSetId, branch: ancestry.BranchRow, reference: Reference
) -> SnapshotRow:
    if reference.at_ns is None:
        return ancestry.by_oid(tx, branch.body.tip)
    anchor = history.branch_anchor(set_id, BranchId(branch.name))
    called = f"branch {branch.body.name!r}"
    return ancestry.find(tx, set_id, history.at(tx, anchor, reference.at_ns, called))


def _snapshot(tx: ReadTx, set_id: VolumeSetId, text: str) -> SnapshotRow:
    if is_id(text):
        return ancestry.find(tx, set_id, VolumeSnapshotId(text))
    found = ancestry.by_short(tx, set_id, text) if may_be_short(text) else []
    if not found:
        raise VolumeSnapshotNotFound(
            f"{text[:64]!r} is no branch and no snapshot of this volume; `snapfs volume log --all` "
            "shows what there is"
        )
    if len(found) > 1:
        ids = ", ".join(short(row.name) for row in found[:8])
        raise Ambiguous(f"{text!r} is one of several snapshots: {ids}; give more of it")
    return found[0]
