"""The anchors that branches and volumes write: each move of a tip or a head is an entry.

The entry names the snapshot and keeps its row (anchors, edge 20), until it expires. Anchors are
called by ids, so a renamed branch keeps its history.
"""

from __future__ import annotations

from snapfs.anchors import Ref, Statement, writing
from snapfs.anchors import reading as anchor_reading
from snapfs.anchors.facts import shown_time
from snapfs.model import NotFound
from snapfs.store import ReadTx, WriteTx
from snapfs.volumes.ids import BranchId, VolumeId, VolumeSetId, VolumeSnapshotId
from snapfs.volumes.model import Note

REF_TYPE = "volume-snapshot"


def branch_anchor(set_id: VolumeSetId, branch: BranchId) -> str:
    """Return the name of the anchor that has a branch's tips."""
    return f"branch/{set_id}/{branch}"


def volume_anchor(volume: VolumeId) -> str:
    """Return the name of the anchor that has a volume's heads."""
    return f"volume/{volume}"


def note(tx: WriteTx, anchor: str, snapshot: VolumeSnapshotId, oid: int, why: Note) -> bool:
    """Say that from now on `anchor` stands for a snapshot, whose row is `oid`.

    False, and nothing, when that is what it stands for already, as after the merge of another
    host's history.
    """
    ref = Ref(REF_TYPE, snapshot)
    last = anchor_reading.newest(tx, anchor_reading.anchor(tx, anchor))
    if last is not None and last.body.ref == ref:
        return False
    statement = Statement(author=why.author, reason=why.reason, target=oid)
    writing.put(tx, anchor, ref, statement)
    return True


def end(tx: WriteTx, anchor: str, why: Note) -> None:
    """Say that from now on `anchor` stands for nothing, if it stood for something."""
    row = anchor_reading.anchor(tx, anchor)
    last = anchor_reading.newest(tx, row)
    if last is not None and last.body.ref is not None:
        writing.delete(tx, anchor, Statement(author=why.author, reason=why.reason))


def at(tx: ReadTx, anchor: str, at_ns: int, called: str) -> VolumeSnapshotId:
    """Return what an anchor stood for at a time; or raise NotFound, about what is `called` so."""
    row = anchor_reading.anchor(tx, anchor)
    if row is None:
        raise NotFound(f"{called} has no history yet; take a snapshot first")
    found = anchor_reading.newest(tx, row, at_ns=at_ns)
    if found is None or found.body.ref is None:
        *_, first = anchor_reading.history(tx, anchor)
        raise NotFound(
            f"{called} has no snapshot of {shown_time(at_ns)}; its history begins at "
            f"{shown_time(first.at_ns)}"
        )
    return VolumeSnapshotId(found.body.ref.value)
