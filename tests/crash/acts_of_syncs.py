"""Syncs of a volume set between two roots on a recorded disk, and what must be there after a cut.

A sync changes both sides in parts: fields, histories, data, tips, rows of conflicts. A cut one
leaves each part as it was or as it is to be, and the same sync again does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from snapfs import seals
from snapfs.anchors import Anchors
from snapfs.overlay import has_changed
from snapfs.sync.planning import Direction
from snapfs.sync.threeway import Policy
from snapfs.volumes import Volumes
from snapfs.volumes.ids import VolumeSetId
from tests.crash.acts import fill
from tests.crash.ledger import Ledger, Moment, View, booted
from tests.sync.kit import WHY, Host


class Side:
    """One of the two roots."""

    def __init__(self, place: Path, name: str) -> None:
        self.name = name
        self.host = Host(name, place / name)
        mounts = place / f"{name}-mounts"
        self.volumes = Volumes(self.host.snapshotter, mounts, changed=has_changed)

    def write(self, volume: str, data: bytes) -> None:
        (self.volumes.layers(volume)[0] / "table").write_bytes(data)

    def snapshot(self, volume: str, message: str) -> None:
        self.volumes.history.snapshot(volume, message, why=WHY)

    def view(self) -> View:
        seen: dict[str, object] = {}
        for volume in self.volumes.walk():
            seen[f"volume {volume.name}"] = volume.base, volume.branch, volume.key
        for found in self.volumes.sets.walk():
            attributes = dict(found.attributes)
            seen[f"set {found.id}"] = found.path, found.description, found.owner, attributes
            for branch in self.volumes.branches.of(found.id):
                seen[f"branch {branch.name}"] = branch.tip
            for it in self.volumes.log(found.id, everything=True):
                seen[f"snapshot {it.id}"] = it.parent, it.name, it.description, it.depth
                if it.blob:
                    (top, *_) = self.volumes.layers(found.id, it.id)
                    seen[f"data of {it.id}"] = seals.measure(top)
        for entry in Anchors(self.host.store).each():
            ref = entry.ref and entry.ref.value
            seen[f"moved {entry.name} {entry.at_ns} {ref}"] = entry.author, entry.reason
        for kept in self.host.conflicts():
            what = f"conflict {kept.kind} {kept.called} {kept.field}"
            seen[what] = kept.ours, kept.theirs, kept.winner
        return {f"{self.name}: {part}": value for part, value in seen.items()}

    def check_data(self) -> None:
        """See that there is the data that volumes and snapshots have, and no other."""
        wanted = {it.key for it in self.volumes.walk()}
        for found in self.volumes.sets.walk():
            wanted |= {it.blob for it in self.volumes.log(found.id, everything=True)}
        assert {it.name for it in self.host.snapshotter.walk()} == wanted - {""}


class Pair:
    """Both roots, opened."""

    def __init__(self, near: Side, far: Side) -> None:
        self.near, self.far = near, far

    def view(self) -> View:
        return {**self.near.view(), **self.far.view()}

    def sync(self, how: Sync) -> None:
        (found,) = self.near.volumes.sets.walk()
        report = self.near.host.sync(
            self.far.host, VolumeSetId(found.id), how.direction, how.policy
        )
        assert not report.refused
        assert "failed" not in {it.fate for it in report.branches}


@dataclass(frozen=True)
class Sync:
    """How to sync."""

    direction: Direction = Direction.SYNC
    policy: Policy = Policy.THEIRS


SYNCS = {
    "push": Sync(Direction.PUSH),
    "pull": Sync(Direction.PULL),
    "sync with a conflict": Sync(),
    "sync with a conflict that stays": Sync(policy=Policy.FAIL),
    "sync of a branch that diverged": Sync(),
    "sync of a branch that is gone": Sync(),
}


@contextmanager
def opened(place: Path) -> Iterator[Pair]:
    with ExitStack() as stack:
        sides = []
        for name in ("near", "far"):
            sides.append(Side(place, name))
            stack.callback(sides[-1].host.close)
        yield Pair(*sides)


def work(place: Path, now: Moment) -> Callable[[Path, int], None]:
    """Sync in all ways; return what checks both roots after a cut at a moment."""
    with opened(place) as pair:
        ledger = Ledger(now, pair.view)
        _travel(pair, ledger)
        _disagree(pair, ledger)
    return Check(ledger)


def _travel(pair: Pair, ledger: Ledger) -> None:
    near, far = pair.near, pair.far
    with ledger.act("create"):
        near.volumes.create("db", why=WHY)
    fill(near.volumes.layers("db")[0], 1)
    data = bytes(range(251)) * 1000
    for number in range(2):
        near.write("db", data[: 100_000 * number] + b"%d" % number + data[100_000 * number :])
        with ledger.act(f"snapshot {number}"):
            near.snapshot("db", f"change {number}")
    _sync(pair, ledger, "push")
    (found,) = far.volumes.sets.walk()
    with ledger.act("clone there"):
        far.volumes.clone(found.id, "copy", ref="main", branch="theirs", why=WHY)
    far.write("copy", data[:50_000] + b"there" + data[50_000:])
    with ledger.act("snapshot there"):
        far.snapshot("copy", "there")
    _sync(pair, ledger, "pull")


def _disagree(pair: Pair, ledger: Ledger) -> None:
    near, far = pair.near, pair.far
    (found,) = far.volumes.sets.walk()
    with ledger.act("describe here"):
        near.volumes.sets.edit("db", description="here", attributes={"here": "1"})
    with ledger.act("describe there"):
        far.volumes.sets.edit(found.id, description="there", attributes={"there": "2"})
    _sync(pair, ledger, "sync with a conflict")
    with ledger.act("own here"):
        near.volumes.sets.edit("db", owner="ann")
    with ledger.act("own there"):
        far.volumes.sets.edit(found.id, owner="bob")
    _sync(pair, ledger, "sync with a conflict that stays")
    (kept,) = (it for it in near.host.conflicts() if it.field == "owner")
    with ledger.act("settle"):
        near.host.settle(kept.number, Policy.OURS)
    with ledger.act("switch there"):
        far.volumes.history.switch("copy", "main", discard=True, why=WHY)
    far.write("copy", b"far" * 3000)
    with ledger.act("snapshot of main there"):
        far.snapshot("copy", "diverges there")
    near.write("db", b"near" * 3000)
    with ledger.act("snapshot of main here"):
        near.snapshot("db", "diverges here")
    _sync(pair, ledger, "sync of a branch that diverged")
    with ledger.act("remove a branch there"):
        far.volumes.branches.remove(found.id, "theirs", why=WHY)
    _sync(pair, ledger, "sync of a branch that is gone")


def _sync(pair: Pair, ledger: Ledger, name: str) -> None:
    with ledger.act(name, in_parts=True):
        pair.sync(SYNCS[name])


class Check:
    """Looks at what a cut left."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def __call__(self, place: Path, moment: int) -> None:
        with booted(place), opened(place) as pair:
            for side in (pair.near, pair.far):
                side.volumes.start()
                assert side.host.snapshotter.cleanup() == ()
                assert side.host.snapshotter.fsck().clean
            self._ledger.check(pair.view(), moment)
            self._sync_again(pair, moment)
            for side in (pair.near, pair.far):
                side.host.replica.sweep(1 << 62)
                side.check_data()

    def _sync_again(self, pair: Pair, moment: int) -> None:
        """Do the sync that was cut again; then both sides are as it would have left them."""
        _last, under_way = self._ledger.at(moment)
        if under_way.name in SYNCS:
            pair.sync(SYNCS[under_way.name])
            assert _without_times(pair.view()) == _without_times(under_way.view)
        elif pair.near.volumes.sets.walk():
            pair.sync(Sync())


def _without_times(view: View) -> View:
    """Leave out histories: what a sync repeats is an entry of another time."""
    return {part: value for part, value in view.items() if ": moved " not in part}
