"""Hosts with volume sets, and what people do on them."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from snapfs import tables
from snapfs.anchors import Anchors
from snapfs.model import Unavailable
from snapfs.overlay import LayerCopy
from snapfs.snapshots import NoTrees, Snapshotter
from snapfs.store import WriteTx
from snapfs.sync import conflicts, remotes
from snapfs.sync.applying import blob_name
from snapfs.sync.engine import Engine, Report, Request
from snapfs.sync.peer import Peer
from snapfs.sync.planning import Direction
from snapfs.sync.replica import Replica
from snapfs.sync.threeway import Policy
from snapfs.volumes import (
    NewSnapshot,
    Note,
    VolumeSet,
    ancestry,
    branches,
    growing,
    sets,
    snapshots,
)
from snapfs.volumes.history import branch_anchor
from snapfs.volumes.ids import BranchId, VolumeSetId, VolumeSnapshotId
from snapfs.volumes.queries import list_snapshots

WHY = Note(author="ann@test", reason="test")


def new_id() -> str:
    return str(uuid.uuid4())


class Host:
    """A store and its user."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self._path = path
        self._open()

    def _open(self) -> None:
        self.snapshotter = Snapshotter(
            self._path,
            trees=NoTrees(),
            tables=tables.TABLES,
            checks=tables.CHECKS,
            copier=LayerCopy,
        )
        self.store = self.snapshotter.store
        self.replica = Replica(self.snapshotter)
        self.engine = Engine(self.replica)

    def close(self) -> None:
        try:
            assert self.snapshotter.fsck().problems == ()
        finally:
            self.snapshotter.close()

    def restart(self) -> None:
        """Forget all that is not in the store, as a crash between two transactions would."""
        self.snapshotter.close()
        self._open()

    def do(self, function: Callable[[WriteTx], Any]) -> Any:
        return self.store.update(function)

    # Syncing

    def sync(
        self,
        other: Host,
        set_id: VolumeSetId,
        direction: Direction = Direction.SYNC,
        policy: Policy = Policy.THEIRS,
        through: Callable[[Peer], Peer] = lambda peer: peer,
    ) -> Report:
        with self.store.view() as tx:
            known = {it.name for it in remotes.walk(tx)}
        if other.name not in known:
            self.do(lambda tx: remotes.add(tx, other.name, f"unix:///{other.name}"))
        request = Request(set_id, direction, policy, "ann@test")
        return self.engine.sync(other.name, through(other.replica), request)

    def pull(self, other: Host, set_id: VolumeSetId, **more: Any) -> Report:
        return self.sync(other, set_id, Direction.PULL, **more)

    def push(self, other: Host, set_id: VolumeSetId, **more: Any) -> Report:
        return self.sync(other, set_id, Direction.PUSH, **more)

    # What people do

    def new_set(self, name: str = "db") -> VolumeSetId:
        set_id = VolumeSetId(new_id())
        self.do(lambda tx: sets.create(tx, VolumeSet(id=set_id, name=name, creator="ann")))
        return set_id

    def edit_set(self, set_id: VolumeSetId, **fields: Any) -> None:
        self.do(lambda tx: sets.edit(tx, set_id, **fields))

    def delete_set(self, set_id: VolumeSetId) -> None:
        for blob in self.do(lambda tx: sets.delete(tx, set_id, WHY)):
            self.snapshotter.remove(blob)

    def fork(
        self, set_id: VolumeSetId, name: str, parent: str | None = None, message: str = ""
    ) -> str:
        """Make a branch with a new snapshot on `parent`; return the snapshot."""
        new = NewSnapshot(id=VolumeSnapshotId(new_id()), description=message)
        above = VolumeSnapshotId(parent) if parent else None
        branch = BranchId(new_id())
        self.do(lambda tx: growing.fork(tx, set_id, above, [new], branch, name, WHY))
        return new.id

    def branch_at(self, set_id: VolumeSetId, name: str, tip: str) -> None:
        branch = BranchId(new_id())
        self.do(lambda tx: growing.fork(tx, set_id, VolumeSnapshotId(tip), [], branch, name, WHY))

    def extend(self, set_id: VolumeSetId, name: str, count: int = 1) -> str:
        """Make snapshots at the end of a branch; return the last."""
        made = [NewSnapshot(id=VolumeSnapshotId(new_id())) for _ in range(count)]

        def extend(tx: WriteTx) -> None:
            row = branches.resolve(tx, set_id, name)
            tip = VolumeSnapshotId(row.body.tip_id)
            growing.extend(tx, set_id, BranchId(row.name), tip, made, WHY)

        self.do(extend)
        return made[-1].id

    def reset(self, set_id: VolumeSetId, name: str, tip: str) -> None:
        def reset(tx: WriteTx) -> None:
            row = branches.resolve(tx, set_id, name)
            branches.move(tx, row, ancestry.find(tx, set_id, VolumeSnapshotId(tip)), WHY)

        self.do(reset)

    def rename(self, set_id: VolumeSetId, name: str, new: str) -> None:
        self.do(lambda tx: branches.rename(tx, branches.resolve(tx, set_id, name), new))

    def remove(self, set_id: VolumeSetId, name: str) -> None:
        self.do(lambda tx: branches.remove(tx, branches.resolve(tx, set_id, name), WHY))

    def edit_snapshot(self, set_id: VolumeSetId, snapshot: str, **fields: Any) -> None:
        def edit(tx: WriteTx) -> None:
            row = ancestry.find(tx, set_id, VolumeSnapshotId(snapshot))
            snapshots.edit(tx, row, **fields)

        self.do(edit)

    def fill(
        self, set_id: VolumeSetId, snapshot: str, write: Callable[[Path], None], parent: str = ""
    ) -> None:
        """Give a snapshot data, on that of its parent."""
        name = blob_name(set_id, snapshot)
        below = self.show(set_id, parent).blob if parent else ""
        self.snapshotter.prepare(f"extract-{snapshot}", below)
        identity = self.snapshotter.stat(f"extract-{snapshot}").id
        write(self.replica.stock.directories.upper(identity))
        done = self.snapshotter.commit(f"extract-{snapshot}", name)

        def set_blob(tx: WriteTx) -> None:
            row = ancestry.find(tx, set_id, VolumeSnapshotId(snapshot))
            snapshots.set_blob(tx, row, name, done.usage.size_bytes)

        self.do(set_blob)

    def prune(self) -> None:
        """Let histories begin with what is in force now."""
        Anchors(self.store).expire(time.time_ns(), prefix="branch/")

    def settle(self, number: int, side: Policy) -> None:
        settled = self.do(lambda tx: conflicts.settle(tx, number, side, WHY))
        self.replica.discard(settled.unneeded)

    # What people see

    def tips(self, set_id: VolumeSetId) -> dict[str, str]:
        with self.store.view() as tx:
            return {row.body.name: row.body.tip_id for row in branches.rows(tx, set_id)}

    def set(self, set_id: VolumeSetId) -> VolumeSet:
        with self.store.view() as tx:
            return sets.show(tx, sets.find(tx, set_id))

    def show(self, set_id: VolumeSetId, snapshot: str) -> Any:
        with self.store.view() as tx:
            row = ancestry.find(tx, set_id, VolumeSnapshotId(snapshot))
            return snapshots.show(tx, row)

    def conflicts(self) -> list[conflicts.Kept]:
        with self.store.view() as tx:
            return list(conflicts.walk(tx))

    def history(self, set_id: VolumeSetId, name: str) -> list[str | None]:
        """Return what a branch's tips were, oldest first."""
        with self.store.view() as tx:
            row = branches.resolve(tx, set_id, name)
        found = Anchors(self.store).history(branch_anchor(set_id, BranchId(row.name)))
        return [entry.ref.value if entry.ref else None for entry in reversed(found)]

    def histories(self, set_id: VolumeSetId) -> dict[str, list[str | None]]:
        return {name: self.history(set_id, name) for name in self.tips(set_id) if "/" not in name}

    def contents(self, set_id: VolumeSetId) -> Any:
        """Return all of a set that is to be equal on every host."""
        with self.store.view() as tx:
            if not any(row.name == set_id for row in tx.rows(sets.SETS, sets.SCOPE)):
                return None
            row = sets.show(tx, sets.find(tx, set_id))
            lines = {}
            for branch in branches.rows(tx, set_id):
                if "/" not in branch.body.name:
                    lines[branch.name] = (branch.body.name, branch.body.tip_id)
            reached = {it.id for _, tip in lines.values() for it in self._line(tx, set_id, tip)}
            found = {
                it.id: (it.parent, it.name, it.description, dict(it.attributes), it.depth)
                for it in list_snapshots(tx, set_id)
                if it.id in reached
            }
        return (row.path, row.description, dict(row.attributes), row.owner, lines, found)

    @staticmethod
    def _line(tx: Any, set_id: VolumeSetId, tip: str) -> Iterator[Any]:
        for row in ancestry.upward(tx, ancestry.find(tx, set_id, VolumeSnapshotId(tip))):
            yield snapshots.show(tx, row)


class Breaking:
    """A peer whose connection breaks at the n-th call, before or after it was done."""

    def __init__(self, peer: Peer, at: int, *, is_done: bool) -> None:
        self._peer = peer
        self._is_done = is_done
        self._left = itertools.count(at, -1)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._peer, name)

        def call(*arguments: Any) -> Any:
            is_last = next(self._left) == 0
            if is_last and not self._is_done:
                raise Unavailable("the connection broke")
            result = method(*arguments)
            if is_last:
                raise Unavailable("the connection broke")
            return result

        return call
