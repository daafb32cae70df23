"""Copies of active snapshots that a power cut left without data: made whole before anybody looks.

How is the overlay's (overlay/refill.py); here is for which snapshots, and what becomes of those
for which it fails: they are named by the log and by fsck, and not committed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import structlog

from snapfs.model import DataLoss, Kind, SnapshotId
from snapfs.snapshots import counted, records
from snapfs.snapshots.layers import LayerDirectories
from snapfs.store import ReadTx

log = structlog.get_logger(__name__)


class Lacking(Protocol):
    """A copy that may lack data; see overlay.Lacking."""

    @property
    def path(self) -> str: ...

    @property
    def why(self) -> str: ...


class Refill(Protocol):
    """Puts in what copies in an upper layer lack; overlay.refill is one."""

    def __call__(
        self,
        upper: Path,
        work: Path,
        lowers: Sequence[Path],
        /,
        *,
        first: Callable[[], object],
    ) -> Sequence[Lacking]: ...


def refill_all(
    tx: ReadTx, layers: LayerDirectories, refill: Refill
) -> Mapping[SnapshotId, tuple[str, ...]]:
    """Make all active snapshots whole; return what those lack for which it failed, in words."""
    lacking = {}
    for row in records.rows(tx):
        if row.body.kind == Kind.ACTIVE.value:
            found = _refill_one(SnapshotId(row.body.id), row.body.chain, layers, refill)
            for why in found:
                log.error("snapshot.lacks_data", key=row.name, reason=why)
            if found:
                lacking[SnapshotId(row.body.id)] = found
    return lacking


def _refill_one(
    identity: SnapshotId, chain: Sequence[int], layers: LayerDirectories, refill: Refill
) -> tuple[str, ...]:
    upper, work = layers.upper(identity), layers.work(identity)
    try:
        found = refill(upper, work, layers.lowers(chain), first=lambda: counted.take(work))
    except OSError as error:
        return (f"its layers cannot be read: {error}",)
    return tuple(f"{it.path or upper}: {it.why}" for it in found)


def check_whole(lacking: Mapping[SnapshotId, tuple[str, ...]], identity: SnapshotId) -> None:
    """Raise DataLoss for a snapshot with copies that could not be made whole."""
    if identity in lacking:
        raise DataLoss(
            f"copies in it may lack data since a power cut ({'; '.join(lacking[identity])}); see "
            "to that, unmount it and restart the service, or make the layer anew"
        )
