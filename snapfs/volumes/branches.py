"""Branches, as functions of a transaction: find, create, move, rename, remove.

A branch is a name for a line of history, known by its tip. Several branches may have one tip: a new
branch begins where another stands and has all of its history. Each move of a tip is an entry of the
branch's anchor (history.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from snapfs.model import AlreadyExists, FailedPrecondition, InvalidArgument
from snapfs.store import ReadTx, WriteTx
from snapfs.volumes import ancestry, history, tombstones
from snapfs.volumes.ancestry import BranchRow, SnapshotRow
from snapfs.volumes.errors import BranchNotFound, SnapshotImportMismatch
from snapfs.volumes.ids import BranchId, VolumeSetId, VolumeSnapshotId, check_id, is_id
from snapfs.volumes.model import Branch, Note
from snapfs.volumes.names import check_branch
from snapfs.volumes.schema import BRANCHES, SCOPE, VOLUMES, BranchBody

TRACKING = "/"
"""In the name of a branch that follows a remote's, REMOTE/BRANCH."""


def find(tx: ReadTx, set_id: VolumeSetId, branch: BranchId) -> BranchRow:
    """Return the row of an id, or raise BranchNotFound."""
    row = tx.get(BRANCHES, set_id, branch)
    if row is None:
        raise BranchNotFound(f"branch {branch} does not exist in set {set_id}")
    return row


def named(tx: ReadTx, set_id: VolumeSetId, name: str) -> BranchRow | None:
    """Return the branch of a name, or None."""
    value = name.encode("utf-8", "replace")
    return next(tx.find(BRANCHES, "name", value, scope=set_id), None) if name else None


def resolve(tx: ReadTx, set_id: VolumeSetId, text: str) -> BranchRow:
    """Return the branch of an id or a name, or raise BranchNotFound with the names there are."""
    if is_id(text):
        return find(tx, set_id, BranchId(text))
    row = named(tx, set_id, text)
    if row is None:
        names = ", ".join(sorted(it.body.name for it in rows(tx, set_id) if it.body.name)[:8])
        raise BranchNotFound(f"branch {text[:64]!r} does not exist; there are: {names or 'none'}")
    return row


def rows(tx: ReadTx, set_id: VolumeSetId) -> Iterator[BranchRow]:
    """Yield the branches of a set, in the order of ids."""
    return tx.rows(BRANCHES, set_id)


def create(
    tx: WriteTx,
    set_oid: int,
    branch: BranchId,
    name: str,
    tip: SnapshotRow,
    why: Note,
    *,
    tracking: bool = False,
) -> BranchRow:
    """Create a branch with a tip that exists; an empty name is an unnamed branch.

    `tracking` allows a slash: the branch follows one of a remote. Raises AlreadyExists.
    """
    set_id = VolumeSetId(tip.scope)
    check_id(branch, "branch")
    if name:
        check_branch(name, tracking=tracking)
        _check_free(tx, set_id, name)
    body = BranchBody(
        id=branch,
        set=set_oid,
        name=name,
        tip=tip.oid,
        tip_id=tip.name,
        modified_ns=tx.now_ns,
    )
    if tx.get(BRANCHES, set_id, branch) is not None:
        raise AlreadyExists(f"branch {branch} already exists in set {set_id}")
    tombstones.lift(tx, "branch", branch, set_id)
    row = tx.create(BRANCHES, set_id, branch, body)
    _note(tx, row, tip, why)
    return row


def is_tracking(row: BranchRow) -> bool:
    """Say whether a branch follows one of a remote: syncs alone move it, and it does not travel."""
    return TRACKING in row.body.name


def move(
    tx: WriteTx,
    branch: BranchRow,
    tip: SnapshotRow,
    why: Note,
    *,
    expect: VolumeSnapshotId | None = None,
) -> BranchRow:
    """Let a branch have another tip; `expect` is the tip that the caller saw.

    Raises SnapshotImportMismatch when it has moved since. Nothing is deleted: what the branch no
    longer reaches stays while another branch, a volume or an entry of an anchor has it.
    """
    if expect is not None and branch.body.tip_id != expect:
        raise mismatch(branch, expect)
    if branch.body.tip == tip.oid:
        return branch
    body = msgspec.structs.replace(branch.body, tip=tip.oid, tip_id=tip.name, modified_ns=tx.now_ns)
    _note(tx, branch, tip, why)
    return tx.update(branch, body)


def mismatch(branch: BranchRow, expected: VolumeSnapshotId) -> SnapshotImportMismatch:
    """Return the refusal of what does not begin at a branch's tip."""
    body = branch.body
    shown = repr(body.name) if body.name else body.id
    return SnapshotImportMismatch(
        f"branch {shown} has the tip {body.tip_id}, not {expected}; it moved, look again",
        branch=BranchId(body.id),
        expected=expected,
        tip=VolumeSnapshotId(body.tip_id),
    )


def rename(tx: WriteTx, branch: BranchRow, name: str, *, tracking: bool = False) -> BranchRow:
    """Give a branch another name; its history stays its own.

    Raises InvalidArgument for a bad name or the one it has, AlreadyExists.
    """
    check_branch(name, tracking=tracking)
    if branch.body.name == name:
        raise InvalidArgument(f"branch {name!r} has that name already")
    _check_free(tx, VolumeSetId(branch.scope), name)
    body = msgspec.structs.replace(branch.body, name=name, modified_ns=tx.now_ns)
    return tx.update(branch, body)


def remove(tx: WriteTx, branch: BranchRow, why: Note) -> None:
    """Remove a branch; what only it reached stays until its history expires.

    Refused with FailedPrecondition while a volume is on it.
    """
    volumes = tx.find(VOLUMES, "branch", branch.name.encode(), scope=SCOPE)
    names = sorted(it.body.name for it in volumes)
    if names:
        raise FailedPrecondition(
            f"branch {branch.body.name or branch.name!r} is in use by {', '.join(names[:8])}; "
            "switch them to another, or remove them"
        )
    drop(tx, branch, why)


def drop(tx: WriteTx, branch: BranchRow, why: Note) -> None:
    """Remove a branch whoever is on it; the caller sees to those."""
    set_id = VolumeSetId(branch.scope)
    history.end(tx, history.branch_anchor(set_id, BranchId(branch.name)), why)
    tx.delete(branch)
    tombstones.put(tx, "branch", branch.name, set_id, why)


def show(tx: ReadTx, row: BranchRow) -> Branch:
    """Return the record of a branch."""
    tip = ancestry.by_oid(tx, row.body.tip)
    return Branch(
        id=BranchId(row.name),
        set_id=VolumeSetId(row.scope),
        name=row.body.name,
        tip=VolumeSnapshotId(row.body.tip_id),
        has_child=ancestry.has_children(tx, tip),
        created_ns=row.created_ns,
        modified_ns=row.body.modified_ns,
        revision=row.spec_rev,
    )


def line(tx: ReadTx, row: BranchRow) -> Iterator[SnapshotRow]:
    """Yield the snapshots of a branch, from its tip to the root."""
    return ancestry.upward(tx, ancestry.by_oid(tx, row.body.tip))


def _note(tx: WriteTx, branch: BranchRow, tip: SnapshotRow, why: Note) -> None:
    anchor = history.branch_anchor(VolumeSetId(branch.scope), BranchId(branch.name))
    history.note(tx, anchor, VolumeSnapshotId(tip.name), tip.oid, why)


def _check_free(tx: ReadTx, set_id: VolumeSetId, name: str) -> None:
    if named(tx, set_id, name) is not None:
        raise AlreadyExists(f"branch {name!r} already exists; use another name, or rename it first")
