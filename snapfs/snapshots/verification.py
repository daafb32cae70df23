"""Reading committed layers again, from the disk, and comparing them with their digests.

Needs no service and disturbs none: it reads the store beside its writer, and layers that never
change. When a layer was last found sound is kept beside it, so that a check of a large root can be
ended and gone on with, or be done a part a night.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from snapfs import seals
from snapfs.model import DataLoss, FailedPrecondition, Kind, SnapshotId
from snapfs.seals import Damage
from snapfs.snapshots import records
from snapfs.snapshots.layers import LayerDirectories
from snapfs.snapshots.records import SnapshotRow, shown
from snapfs.snapshots.schema import TABLES
from snapfs.store import ReadStore

_STAMP = "verified"
"""Beside a layer's `fs`: its time is when the layer was last found sound."""


class Verdict(Enum):
    """What became of one layer."""

    SOUND = "sound"
    DAMAGED = "damaged"
    UNSEALED = "unsealed"
    """It has no digest to compare with."""
    RECENT = "recent"
    """It was found sound lately, and was not read."""


@dataclass(frozen=True, slots=True)
class Verified:
    """One committed snapshot, and how its layer is."""

    name: str
    id: SnapshotId
    verdict: Verdict
    damages: tuple[Damage, ...] = ()


def verify(
    root: Path,
    names: Collection[str] = (),
    *,
    since_ns: int | None = None,
    clock_ns: Callable[[], int] = time.time_ns,
) -> Iterator[Verified]:
    """Verify the layers of committed snapshots, all or those named; one that goes is left out.

    A layer that was found sound after `since_ns` is not read again. Raises NotFound for a name
    that does not exist, FailedPrecondition for one that is not committed; later, what reading the
    store raises.
    """
    with ReadStore.open(root / "metadata", TABLES) as store:
        layers = LayerDirectories(root)
        for row in _chosen(store, names):
            found = _verify(layers, row, since_ns, clock_ns)
            if _exists(store, row):
                yield found


def _chosen(store: ReadStore, names: Collection[str]) -> list[SnapshotRow]:
    with store.view() as tx:
        if not names:
            committed = Kind.COMMITTED.value
            return [row for row in records.rows(tx) if row.body.kind == committed]
        chosen = [records.find(tx, name) for name in names]
    for row in chosen:
        if row.body.kind != Kind.COMMITTED.value:
            kind = Kind(row.body.kind).word
            raise FailedPrecondition(
                f"snapshot {shown(row.name)} is {kind}; only committed ones can be verified"
            )
    return chosen


def _verify(
    layers: LayerDirectories,
    row: SnapshotRow,
    since_ns: int | None,
    clock_ns: Callable[[], int],
) -> Verified:
    identity = SnapshotId(row.body.id)
    if not layers.upper(identity).is_dir():
        return Verified(row.name, identity, Verdict.DAMAGED, (Damage(b"", "is gone"),))
    if not row.body.digest:
        return Verified(row.name, identity, Verdict.UNSEALED)
    stamp = layers.directory(identity) / _STAMP
    if since_ns is not None and (_stamped_ns(stamp) or -1) >= since_ns:
        return Verified(row.name, identity, Verdict.RECENT)
    found = seals.verify(layers.upper(identity), layers.seal(identity), row.body.digest)
    if found:
        return Verified(row.name, identity, Verdict.DAMAGED, tuple(found))
    with suppress(OSError):  # a full or read-only disk: then it is done the next time
        _mend_list(layers, identity, row.body.digest)
        stamp.touch(mode=0o600)
        os.utime(stamp, ns=(clock_ns(),) * 2)
    return Verified(row.name, identity, Verdict.SOUND)


def _mend_list(layers: LayerDirectories, identity: SnapshotId, digest: bytes) -> None:
    """Make the list of a sound layer anew when it is damaged: it names what rots later."""
    file = layers.seal(identity)
    try:
        is_sound = seals.digest_of(file) == digest
    except (DataLoss, OSError):
        is_sound = False
    if not is_sound:
        seals.seal(layers.upper(identity), file)


def _stamped_ns(stamp: Path) -> int | None:
    try:
        return stamp.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _exists(store: ReadStore, row: SnapshotRow) -> bool:
    with store.view() as tx:
        now = records.by_id(tx, row.body.id)
    return now is not None
