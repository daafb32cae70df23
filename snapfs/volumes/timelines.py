"""The history of volumes: taking snapshots, going back, going elsewhere, and what is let go.

A working copy is replaced in this order: the new one made, the old one unmounted, one transaction,
the new one mounted, the old one removed. A crash leaves one of the two whole, and the next start
mounts it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, assert_never

import structlog

from snapfs.anchors import Anchors
from snapfs.model import (
    Committed,
    FailedPrecondition,
    InvalidArgument,
)
from snapfs.store import ReadTx, WriteTx
from snapfs.volumes import (
    ancestry,
    branches,
    collecting,
    copies,
    growing,
    refs,
    replacing,
    snapshots,
)
from snapfs.volumes.ancestry import BranchRow
from snapfs.volumes.autorule import Base, Extend, Fork, Growth, choose
from snapfs.volumes.common import Common, blob, refusing
from snapfs.volumes.copies import VolumeRow
from snapfs.volumes.data import blob_name
from snapfs.volumes.ids import (
    BranchId,
    VolumeId,
    VolumeSetId,
    VolumeSnapshotId,
)
from snapfs.volumes.model import NO_NOTE, Attributes, Branch, NewSnapshot, Note, VolumeSnapshot
from snapfs.volumes.replacing import Manner

log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A snapshot that was taken, and what it cost."""

    snapshot: VolumeSnapshot
    branch: Branch
    pause_ns: int
    """How long writers had to wait."""
    files: int
    """Files that had changed since the snapshot before."""
    copied_bytes: int
    """Length of those."""


class Timelines:
    """Operations on the history of one root's volumes; see `Volumes`."""

    def __init__(self, common: Common) -> None:
        self.common = common

    def snapshot(
        self,
        name: str,
        message: str,
        *,
        branch: str = "",
        attributes: Attributes | None = None,
        auto: bool = True,
        why: Note = NO_NOTE,
    ) -> Taken:
        """Take a snapshot of a volume, which goes on: it stays mounted, and its files open.

        It extends the volume's branch, or forks `branch` (autorule.py). Crash-consistent: what a
        power loss at that moment would have left. Writers wait while the changed files are copied.
        """
        if not message.strip():
            raise InvalidArgument("a snapshot needs a message; give one with -m")
        with self.common.held(name) as row:
            with self.common.store.view() as tx:
                growth = _growth(tx, row, branch, auto=auto)
            set_id, made_id = VolumeSetId(row.body.set_id), VolumeSnapshotId(self.common.new_id())
            new = NewSnapshot(
                id=made_id,
                description=message,
                attributes=attributes or {},
                creator=why.author,
            )
            reason = Note(author=why.author, reason=why.reason or message[:200])
            fresh = BranchId(self.common.new_id())

            def record(tx: WriteTx, data: Committed) -> tuple[VolumeSnapshot, Branch]:
                on = _grow(tx, row, growth, new, fresh, reason)
                made = ancestry.find(tx, set_id, made_id)
                made = snapshots.set_blob(tx, made, data.name, data.usage.size_bytes)
                here = copies.resolve(tx, row.name)
                copies.stand(tx, here, made_id, BranchId(on.name), reason)
                return snapshots.show(tx, made), branches.show(tx, on)

            done = self.common.data.copy(row.body.key, blob_name(set_id, made_id), record)
        log.info(
            "volume.snapshot",
            name=row.body.name,
            id=made_id,
            pause_ms=round(done.pause_ns / 1e6, 1),
        )
        return Taken(
            snapshot=done.also[0],
            branch=done.also[1],
            pause_ns=done.pause_ns,
            files=done.files,
            copied_bytes=done.size_bytes,
        )

    def reset(
        self,
        name: str,
        ref: str,
        *,
        manner: Manner = replacing.REFUSE,
        why: Note = NO_NOTE,
    ) -> VolumeSnapshot:
        """Let a volume, and the branch that it is on, be what `ref` was; changes are discarded.

        The snapshots that the branch no longer reaches stay while other branches, volumes or
        entries of the history have them.
        """
        with self.common.held(name) as row:
            with self.common.store.view() as tx:
                target = refs.resolve(tx, VolumeSetId(row.body.set_id), ref, row).row

            def change(tx: WriteTx, key: str) -> VolumeSnapshot:
                here = copies.resolve(tx, row.name)
                branch = BranchId(here.body.branch) if here.body.branch else None
                if branch is not None:
                    on = branches.find(tx, VolumeSetId(here.body.set_id), branch)
                    branches.move(tx, on, target, why)
                _stand(tx, here, target, branch, why, key)
                return snapshots.show(tx, ancestry.by_oid(tx, target.oid))

            return self._exchange(row, blob(target), manner, change)

    def switch(
        self,
        name: str,
        ref: str,
        *,
        discard: bool = False,
        manner: Manner = replacing.REFUSE,
        why: Note = NO_NOTE,
    ) -> VolumeSnapshot:
        """Let a volume be at a branch, or at a snapshot and on no branch.

        Where that is what it grew from already, its changes stay. Else they must be in a snapshot,
        or `discard` is given; FailedPrecondition.
        """
        with self.common.held(name) as row:
            with self.common.store.view() as tx:
                target = refs.resolve(tx, VolumeSetId(row.body.set_id), ref, row)

            def change(tx: WriteTx, key: str | None) -> VolumeSnapshot:
                here = copies.resolve(tx, row.name)
                _stand(tx, here, target.row, target.branch, why, key)
                return snapshots.show(tx, ancestry.by_oid(tx, target.row.oid))

            if target.row.oid == row.body.base and not discard:
                return self.common.update(lambda tx: change(tx, None))
            if not discard and self.common.data.has_changed(row.body.key):
                raise _unsaved(row)
            return self._exchange(row, blob(target.row), manner, change, keep=not discard)

    def _exchange(
        self,
        row: VolumeRow,
        blob: str,
        manner: Manner,
        change: Callable[[WriteTx, str], T],
        *,
        keep: bool = False,
    ) -> T:
        """Give a volume a new working copy, with `change` in the transaction that says so.

        `keep` refuses when the old one has changes by the time that nobody uses it any more: who
        was told to end may have written until then.
        """

        def record() -> T:
            if keep and self.common.data.has_changed(row.body.key, still=True):
                raise _unsaved(row)
            return self.common.update(lambda tx: change(tx, key))

        key = self.common.data.prepare(VolumeId(row.name), blob)
        with self.common.discarding(key):
            if row.body.size_bytes:
                self.common.data.limit(key, row.body.size_bytes)
            old = self.common.data.tree(row.body.key, row.body.mount_path)
            with refusing(f"replace volume {row.body.name!r}"):
                if old is None:
                    done = record()
                else:
                    new = self.common.data.source
                    with (
                        self.common.pausing(manner) as frozen,
                        replacing.replaced(old, lambda: new(key), manner, frozen),
                    ):
                        done = record()
        self.common.data.discard(row.body.key)
        return done

    def prune(self, before_ns: int, *, go_on: Callable[[], bool] = lambda: True) -> int:
        """Expire the histories of branches and volumes before a time, and delete what nothing has.

        Returns the number of snapshots deleted. Ends early, with the rest for another time, when
        `go_on` says no.
        """
        anchors = Anchors(self.common.store)
        for prefix in ("branch/", "volume/"):
            anchors.expire(before_ns, prefix=prefix)
        with self.common.store.view() as tx:
            waiting = list(collecting.unkept(tx))
        count = 0
        while waiting and go_on():
            row = waiting.pop()
            parents = self._collect(row)
            if parents is not None:
                count += 1
                waiting += parents
        return count

    def _collect(self, row: ancestry.SnapshotRow) -> list[ancestry.SnapshotRow] | None:
        """Delete a snapshot that nothing has; return what may follow, or None when it stays."""
        found: list[ancestry.SnapshotRow] = []

        def collect(tx: WriteTx) -> None:
            found.clear()
            found.extend(collecting.collect(tx, row))

        try:
            if row.body.blob:
                self.common.data.remove(row.body.blob, collect)
            else:
                self.common.update(collect)
        except FailedPrecondition as error:  # it is mounted, or kept by now
            log.info("volume.snapshot_kept", id=row.name, reason=str(error))
            return None
        return found


def _unsaved(row: VolumeRow) -> FailedPrecondition:
    return FailedPrecondition(
        f"volume {row.body.name!r} has changes that no snapshot has; take one, or give --discard"
    )


def _growth(tx: ReadTx, row: VolumeRow, branch: str, *, auto: bool) -> Growth:
    """Return what a snapshot of a volume does; FailedPrecondition when its branch went on."""
    if not row.body.base:
        return choose(None, branch or row.body.next_branch, auto=auto)
    base = ancestry.by_oid(tx, row.body.base)
    ending = [it for it in ancestry.branches_at(tx, base) if not branches.is_tracking(it)]
    state = Base(
        branches=tuple((BranchId(it.name), it.body.name) for it in ending),
        has_children=ancestry.has_children(tx, base),
    )
    if branch or not row.body.branch:
        return choose(state, branch or row.body.next_branch, auto=auto)
    on = branches.find(tx, VolumeSetId(row.body.set_id), BranchId(row.body.branch))
    if branches.is_tracking(on):
        raise FailedPrecondition(
            f"branch {on.body.name!r} follows a remote's, and the next sync moves it; name a "
            "branch of your own with --branch"
        )
    if on.body.tip != base.oid:
        raise FailedPrecondition(
            f"branch {on.body.name or on.name!r} has gone on since volume {row.body.name!r} stood "
            "at its end; name a new branch with --branch, or reset the volume to it"
        )
    return Extend(BranchId(on.name))


def _grow(
    tx: WriteTx, row: VolumeRow, growth: Growth, new: NewSnapshot, fresh: BranchId, why: Note
) -> BranchRow:
    set_id = VolumeSetId(row.body.set_id)
    parent = VolumeSnapshotId(row.body.base_id) if row.body.base_id else None
    match growth:
        case Extend(branch=branch):
            return growing.extend(
                tx, set_id, branch, VolumeSnapshotId(row.body.base_id), [new], why
            )
        case Fork(name=name):
            return growing.fork(tx, set_id, parent, [new], fresh, name, why)
    assert_never(growth)


def _stand(
    tx: WriteTx,
    row: VolumeRow,
    target: ancestry.SnapshotRow,
    branch: BranchId | None,
    why: Note,
    key: str | None,
) -> None:
    copies.stand(tx, row, VolumeSnapshotId(target.name), branch, why, key=key)
