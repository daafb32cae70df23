"""Rows V4 to V7 of what FlockerHub's metastore was tested for; docs/volumes.md has all rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapfs.model import NotFound
from snapfs.sync.peer import Peer
from snapfs.sync.planning import Direction
from snapfs.volumes import NewSnapshot, VolumeSet, growing, sets
from snapfs.volumes.ids import BranchId, VolumeSetId, VolumeSnapshotId
from tests.sync.kit import WHY, Host, new_id

MakeHost = Callable[[str], Host]


# V4: the table of merges, for sets and for snapshots, in each direction


class Field:
    """The description of a set, or of a snapshot of it, on either host."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self.set_id = VolumeSetId(new_id())
        self._snapshot = VolumeSnapshotId(new_id())
        self._branch = BranchId(new_id())

    def make(self, host: Host, value: str) -> None:
        """Have set, snapshot and branch with their ids, as if they had come from a third host."""
        new = NewSnapshot(id=self._snapshot, description=value, created_ns=1)
        whole = VolumeSet(id=self.set_id, name="db", description=value)

        def make(tx: Any) -> None:
            sets.import_set(tx, whole)
            growing.fork(tx, self.set_id, None, [new], self._branch, "main", WHY)

        host.do(make)

    def edit(self, host: Host, value: str) -> None:
        if self._kind == "set":
            host.edit_set(self.set_id, description=value)
        else:
            host.edit_snapshot(self.set_id, self._snapshot, description=value)

    def on(self, host: Host) -> str:
        if self._kind == "set":
            return host.set(self.set_id).description
        return str(host.show(self.set_id, self._snapshot).description)


SYNC, PUSH, PULL = Direction.SYNC, Direction.PUSH, Direction.PULL


@pytest.mark.parametrize("kind", ["set", "snapshot"])
@pytest.mark.parametrize(
    ("last", "ours", "theirs", "after", "conflicts"),
    [
        ("i", "i", "i", {SYNC: "ii", PUSH: "ii", PULL: "ii"}, 0),
        ("i", "i", "t", {SYNC: "tt", PUSH: "it", PULL: "tt"}, 0),
        ("i", "c", "i", {SYNC: "cc", PUSH: "cc", PULL: "ci"}, 0),
        ("i", "x", "x", {SYNC: "xx", PUSH: "xx", PULL: "xx"}, 0),
        ("i", "c", "t", {SYNC: "tt", PUSH: "ct", PULL: "tt"}, 1),
        (None, "x", "x", {SYNC: "xx", PUSH: "xx", PULL: "xx"}, 0),
        # A push overwrote what was there, and said nothing.
        (None, "c", "t", {SYNC: "tt", PUSH: "ct", PULL: "tt"}, 1),
    ],
)
@pytest.mark.parametrize("direction", Direction)
def test_v4_a_field_is_merged_by_the_table_in_each_direction(
    host: MakeHost,
    kind: str,
    last: str | None,
    ours: str,
    theirs: str,
    after: dict[Direction, str],
    conflicts: int,
    direction: Direction,
) -> None:
    ann, bob, field = host("ann"), host("bob"), Field(kind)
    field.make(ann, last or "")
    if last is None:
        field.make(bob, "")
    else:
        ann.sync(bob, field.set_id)
    for each, value in ((ann, ours), (bob, theirs)):
        if value != last:
            field.edit(each, value)
    report = ann.sync(bob, field.set_id, direction)
    assert field.on(ann) + field.on(bob) == after[direction]
    assert [it.kind for it in report.conflicts] == [kind] * conflicts
    assert len(ann.conflicts()) == conflicts


def test_v4_a_field_apart_is_settled_for_both_though_a_push_changes_one(host: MakeHost) -> None:
    ann, bob, field = host("ann"), host("bob"), Field("set")
    field.make(ann, "i")
    ann.sync(bob, field.set_id)
    field.edit(ann, "c")
    field.edit(bob, "t")
    ann.push(bob, field.set_id)
    assert [(it.ours, it.theirs, it.last) for it in ann.conflicts()] == [("c", "t", "i")]
    ann.sync(bob, field.set_id)
    assert field.on(ann) == field.on(bob) == "t"


# V5: which snapshots a sync brings


@pytest.mark.parametrize("names", ["az", "za"])
def test_v5_branches_that_share_a_point_come_in_whatever_order(host: MakeHost, names: str) -> None:
    ann, bob = host("ann"), host("bob")
    set_id = ann.new_set()
    ann.fork(set_id, names[0])
    shared = ann.extend(set_id, names[0], 3)
    ann.extend(set_id, names[0], 4)
    ann.fork(set_id, names[1], shared)
    assert {it.fate for it in ann.push(bob, set_id).branches} == {"pushed"}
    assert bob.contents(set_id) == ann.contents(set_id)
    bob.extend(set_id, names[1])
    ann.extend(set_id, names[0])
    assert {it.fate for it in ann.sync(bob, set_id).branches} == {"pushed", "pulled"}
    assert bob.contents(set_id) == ann.contents(set_id)


# V6 and V7: which data travels, against what, in which order


class Listening:
    """A peer that notes which layers it gives or takes, each with what it goes over."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self.layers: list[tuple[str, str | None]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._peer, name)

    def receive(self, set_id: VolumeSetId, snapshot: str, parent: str | None, *rest: Any) -> None:
        self.layers.append((snapshot, parent))
        self._peer.receive(set_id, snapshot, parent, *rest)  # type: ignore[arg-type]


def write(text: str) -> Callable[[Path], None]:
    return lambda upper: (upper / text).write_text(text) and None


def line(host: Host, set_id: VolumeSetId, branch: str, count: int, parent: str = "") -> list[str]:
    """Grow a branch by snapshots with data; return them."""
    made = []
    for number in range(count):
        if number == 0:
            snapshot = host.fork(set_id, branch, parent or None)
        else:
            snapshot = host.extend(set_id, branch)
        host.fill(set_id, snapshot, write(f"{branch}{number}"), parent)
        made.append(snapshot)
        parent = snapshot
    return made


def brought(ann: Host, bob: Host, set_id: VolumeSetId, direction: Direction) -> list[Any]:
    """Move a set from ann to bob, by either's command; return the layers as bob took them."""
    there = Listening(bob.replica)
    if direction is PUSH:
        report = ann.push(bob, set_id, through=lambda _: there)
    else:
        bob.engine.here = there  # type: ignore[assignment]
        report = bob.pull(ann, set_id)
        bob.engine.here = bob.replica
    assert report.is_well
    return there.layers


@pytest.mark.parametrize("direction", [PUSH, PULL])
@pytest.mark.parametrize("has", range(5))
def test_v6_what_is_missing_comes_each_against_the_newest_that_is_there(
    host: MakeHost, has: int, direction: Direction
) -> None:
    """None, some in the middle, all: FindNonMissingSnapshot and the offers of differences."""
    ann, bob = host("ann"), host("bob")
    set_id = ann.new_set()
    made = line(ann, set_id, "main", 4)
    if has:
        tip = ann.tips(set_id)["main"]
        ann.reset(set_id, "main", made[has - 1])
        ann.push(bob, set_id)
        ann.reset(set_id, "main", tip)
    below = [None, *made]
    assert brought(ann, bob, set_id, direction) == list(zip(made, below, strict=False))[has:]
    assert brought(ann, bob, set_id, direction) == []
    assert all(bob.show(set_id, it).blob for it in made)


def test_v6_what_is_unknown_or_has_no_data_is_not_found(host: MakeHost) -> None:
    """FlockerHub logged it and passed on, so that a pull seemed whole."""
    ann, bob = host("ann"), host("bob")
    set_id = ann.new_set()
    (first,) = line(ann, set_id, "main", 1)
    empty = VolumeSnapshotId(ann.extend(set_id, "main"))
    for snapshot in (VolumeSnapshotId(new_id()), empty):
        with pytest.raises(NotFound, match=f"data of volume snapshot {snapshot} is not in"):
            ann.replica.offer(set_id, snapshot)
    assert brought(ann, bob, set_id, PULL) == [(first, None)]
    assert bob.tips(set_id) == {"main": empty}
    assert not bob.show(set_id, empty).blob


def test_v6_what_is_here_is_asked_for_by_nobody(host: MakeHost) -> None:
    ann = host("ann")
    set_id = ann.new_set()
    (made,) = line(ann, set_id, "main", 1)
    offer = ann.replica.offer(set_id, VolumeSnapshotId(made))
    with ann.replica.landing(set_id, VolumeSnapshotId(made), None, offer) as landing:
        assert landing is None


@pytest.mark.parametrize("direction", [PUSH, PULL])
def test_v7_layers_come_from_the_root_on_and_shared_ones_once(
    host: MakeHost, direction: Direction
) -> None:
    ann, bob = host("ann"), host("bob")
    set_id = ann.new_set()
    main = line(ann, set_id, "main", 3)
    side = line(ann, set_id, "side", 2, main[1])
    ann.branch_at(set_id, "copy", main[2])
    lone = line(ann, set_id, "lone", 1)
    layers = brought(ann, bob, set_id, direction)
    came = [snapshot for snapshot, _ in layers]
    assert sorted(came) == sorted([*main, *side, *lone])
    for snapshot, parent in layers:
        assert parent is None or came.index(parent) < came.index(snapshot)
    assert dict(layers)[side[0]] == main[1]
