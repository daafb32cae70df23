"""Sets, snapshots and branches under short names, as tests draw them."""

from __future__ import annotations

from snapfs import anchors, volumes
from snapfs.snapshots.schema import TABLES as SNAPSHOTS
from snapfs.store import Store
from snapfs.volumes import ancestry, branches, checking, copies, growing, sets
from snapfs.volumes import snapshots as rules
from snapfs.volumes.ids import BranchId, VolumeId, VolumeSetId, VolumeSnapshotId
from snapfs.volumes.model import Branch, NewSnapshot, Note, Volume, VolumeSet, VolumeSnapshot

TABLES = (*SNAPSHOTS, *anchors.TABLES, *volumes.TABLES)

SECOND = 1_000_000_000
NOW = 1_800_000_000 * SECOND

ANN = Note(author="ann", reason="test")


class Clock:
    """A clock that tests set."""

    def __init__(self, now_ns: int) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        self.now_ns += 1
        return self.now_ns


def identity(word: str) -> str:
    """Return an id that shows the word it is made of."""
    digits = word.encode().hex()[:20].ljust(32, "0")
    parts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
    return "-".join(parts)


def faults(store: Store) -> list[str]:
    with store.view() as tx:
        return list(checking.check(tx))


class Tree:
    """One set, `db`, that grows by words."""

    def __init__(self, store: Store, name: str = "db") -> None:
        self.store = store
        self.set_id = VolumeSetId(identity(name))
        store.update(lambda tx: sets.create(tx, VolumeSet(id=self.set_id, name=name)))

    def new(self, word: str) -> NewSnapshot:
        return NewSnapshot(id=snapshot_id(word), name=word, creator="ann")

    def fork(self, branch: str, parent: str | None, *words: str) -> Branch:
        above = snapshot_id(parent) if parent else None
        new = [self.new(word) for word in words]

        def grow(tx):
            row = growing.fork(
                tx, self.set_id, above, new, branch_id(branch or "-"), branch, ANN, tracking=True
            )
            return branches.show(tx, row)

        return self.store.update(grow)

    def extend(self, branch: str, parent: str, *words: str) -> Branch:
        new = [self.new(word) for word in words]

        def grow(tx):
            row = branches.resolve(tx, self.set_id, branch)
            grown = growing.extend(
                tx, self.set_id, BranchId(row.name), snapshot_id(parent), new, ANN
            )
            return branches.show(tx, grown)

        return self.store.update(grow)

    def snapshot(self, word: str) -> VolumeSnapshot:
        with self.store.view() as tx:
            return rules.show(tx, ancestry.find(tx, self.set_id, snapshot_id(word)))

    def branch(self, name: str) -> Branch:
        with self.store.view() as tx:
            return branches.show(tx, branches.resolve(tx, self.set_id, name))

    def line(self, branch: str) -> list[str]:
        with self.store.view() as tx:
            row = branches.resolve(tx, self.set_id, branch)
            return [it.body.name for it in branches.line(tx, row)]

    def delete(self, word: str) -> str:
        return self.store.update(
            lambda tx: rules.delete(
                tx, ancestry.find(tx, self.set_id, snapshot_id(word)), lambda: identity("x"), ANN
            )
        )

    def volume(self, name: str, base: str | None = None, branch: str = "") -> Volume:
        new = Volume(
            id=VolumeId(identity(name)),
            name=name,
            set_id=self.set_id,
            base=snapshot_id(base) if base else None,
            branch=branch_id(branch) if branch else None,
            mount_path=f"/srv/{name}",
        )
        return self.store.update(lambda tx: copies.show(copies.create(tx, new, ANN)))


def snapshot_id(word: str) -> VolumeSnapshotId:
    return VolumeSnapshotId(identity(word))


def branch_id(word: str) -> BranchId:
    return BranchId(identity(f"branch {word}"))
