"""Volumes, branches and anchors on a recorded disk, and what must be there after a cut.

The layers of volumes are written without a mount. What is written to a working copy is nobody's
promise until a snapshot has it; after a cut the next snapshot has what the working copy has then.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from snapfs import seals, tables
from snapfs.anchors import Anchors, Ref
from snapfs.overlay import LayerCopy, has_changed
from snapfs.snapshots import NoTrees, Snapshotter
from snapfs.volumes import Note, Volumes
from tests.crash.acts import fill
from tests.crash.ledger import Ledger, Moment, View, booted
from tests.transfer.kit import seen

WHY = Note(author="ann", reason="test")
MIB = 1 << 20


class Room:
    """An opened root with volumes."""

    def __init__(self, place: Path) -> None:
        self.snapshotter = Snapshotter(
            place / "root",
            trees=NoTrees(),
            tables=tables.TABLES,
            checks=tables.CHECKS,
            copier=LayerCopy,
        )
        self.volumes = Volumes(self.snapshotter, place / "mounts", changed=has_changed)
        self.anchors = Anchors(self.snapshotter.store)

    def upper(self, name: str) -> Path:
        return self.volumes.layers(name)[0]

    def view(self) -> View:
        seen: dict[str, object] = {f"volume {it.name}": it for it in self.volumes.walk()}
        for found in self.volumes.sets.walk():
            seen[f"set {found.id}"] = found
            for branch in self.volumes.branches.of(found.id):
                seen[f"branch {branch.id}"] = branch
            for it in self.volumes.log(found.id, everything=True):
                layers = self.snapshotter.all_layers(it.blob)
                seen[f"snapshot {it.id}"] = it, [seals.measure(layer) for layer in layers]
        for head in self.anchors.walk(deleted=True):
            seen[f"anchor {head.name}"] = self.anchors.history(head.name, repeats=True)
        return seen

    def check_data(self) -> None:
        """See that there are the working copies and the data that volumes have, and no other."""
        volumes = {it.key for it in self.volumes.walk()}
        blobs = {
            it.blob
            for found in self.volumes.sets.walk()
            for it in self.volumes.log(found.id, everything=True)
        }
        assert {it.name for it in self.snapshotter.walk()} == volumes | blobs

    def goes_on(self) -> None:
        """See that the next snapshot of each volume has what the volume has."""
        for volume in self.volumes.walk():
            upper = self.upper(volume.name)
            for number in range(2):
                (upper / "after").write_bytes(b"%d" % number)
                taken = self.volumes.history.snapshot(
                    volume.name, "after", branch="" if number else f"after-{volume.name}"
                )
                top, *_ = self.snapshotter.all_layers(taken.snapshot.blob)
                if not number:
                    assert _shown(top) == _shown(upper), f"{volume.name} differs"
                assert (top / "after").read_bytes() == b"%d" % number


def _shown(layer: Path) -> dict[bytes, object]:
    """Return what a layer shows; of a whiteout only that it is one: copies make their own."""
    return {
        path: "whiteout" if stat.S_ISCHR(it[0]) and it[4] == 0 else it
        for path, it in seen(layer).items()
    }


@contextmanager
def opened(place: Path) -> Iterator[Room]:
    room = Room(place)
    try:
        yield room
    finally:
        room.snapshotter.close()


def work(place: Path, now: Moment) -> Callable[[Path, int], None]:
    """Use volumes and anchors; return what checks a root after a cut at a moment."""
    with opened(place) as room:
        ledger = Ledger(now, room.view)
        _volumes(room, ledger)
        _anchors(room.anchors, ledger)
        _ends(room, ledger)
    return Check(ledger)


def _volumes(room: Room, ledger: Ledger) -> None:
    volumes, history, branches = room.volumes, room.volumes.history, room.volumes.branches
    with ledger.act("create"):
        volumes.create("db", size_bytes=64 * MIB, why=WHY)
    fill(room.upper("db"), 1)
    with ledger.act("first snapshot"):
        first = history.snapshot("db", "first", why=WHY).snapshot.id
    for number in range(2):
        _change(room.upper("db"), number)
        with ledger.act(f"snapshot {number}"):
            history.snapshot("db", f"change {number}", why=WHY)
    with ledger.act("branch"):
        branches.create("db", "side", why=WHY)
    with ledger.act("clone"):
        volumes.clone("db", "trial", ref=first, why=WHY)
    _change(room.upper("trial"), 7)
    with ledger.act("fork"):
        history.snapshot("trial", "of the clone", why=WHY)
    with ledger.act("describe"):
        volumes.sets.edit("db", description="of a test", attributes={"a": "b"})
    with ledger.act("switch"):
        history.switch("db", "trial", why=WHY)
    _change(room.upper("db"), 8)
    with ledger.act("snapshot where the clone was"):
        history.snapshot("db", "extends", why=WHY)
    with ledger.act("reset"):
        history.reset("db", first, why=WHY)
    with ledger.act("rename a branch"):
        branches.rename("db", "side", "other")
    with ledger.act("remove a branch"):
        branches.remove("db", "other", why=WHY)


def _change(upper: Path, number: int) -> None:
    """Change files as programs do: in place, by another in its place, gone, and moved."""
    path = upper / "changing"
    if path.exists():
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(bytes([number + 1]) * 4096)
    else:
        path.write_bytes(bytes([number]) * 20_000)
    (upper / "new").write_bytes(b"%d" % number * 300)
    (upper / "new").rename(upper / "replaced")
    directory = upper / f"directory{number}"
    directory.mkdir()
    (directory / "file").write_bytes(b"x" * number)
    (upper / f"directory{number - 1}" / "file").unlink(missing_ok=True)


def _anchors(anchors: Anchors, ledger: Ledger) -> None:
    with ledger.act("put"):
        first = anchors.put("image/web", Ref("snapshot", "web-1"), author="ann")
    with ledger.act("put if unchanged"):
        second = anchors.put("image/web", Ref("snapshot", "web-2"), expect_rev=first.revision)
    with ledger.act("put of a time before"):
        anchors.put("image/web", Ref("snapshot", "web-0"), at_ns=first.at_ns - 1)
    with ledger.act("delete"):
        anchors.delete("image/web", reason="gone")
    with ledger.act("expire"):
        anchors.expire(second.at_ns, prefix="image/")


def _ends(room: Room, ledger: Ledger) -> None:
    with ledger.act("prune", in_parts=True):
        count = room.volumes.history.prune(time.time_ns())
        assert count, "something is let go"
    with ledger.act("remove a volume"):
        room.volumes.remove("trial", why=WHY)
    with ledger.act("remove the last, and its history"):
        room.volumes.remove("db", history=True, why=WHY)
    with ledger.act("create again"):
        room.volumes.create("db", why=WHY)


class Check:
    """Looks at what a cut left."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def __call__(self, place: Path, moment: int) -> None:
        with booted(place), opened(place) as room:
            room.volumes.start()
            assert room.snapshotter.cleanup() == ()
            report = room.snapshotter.fsck()
            assert report.clean, report
            self._ledger.check(room.view(), moment)
            room.check_data()
            room.goes_on()
            assert room.snapshotter.fsck().clean
