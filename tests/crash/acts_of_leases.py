"""Leases that expire, collections, and quotas on a recorded disk; what must be there after a cut.

A clock of the test's own says when a lease has expired. What a lease held goes in parts: rows,
then snapshots, then content. Whatever a cut leaves of that, the next start and collection finish.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from snapfs import seals, tables
from snapfs.backup import storing
from snapfs.metadata import Context, Metadata, Resource
from snapfs.metadata.blobs import blob_path
from snapfs.metadata.schema import BLOBS, SHARED, SNAPSHOT_LINKS
from snapfs.model import Committed
from snapfs.snapshots import NoTrees, Snapshotter
from tests.crash.acts import fill
from tests.crash.ledger import Ledger, Moment, View
from tests.metadata.kit import HOUR, NOW, Clock, image, rfc3339, write

NAMESPACE = "default"
EXPIRY, REST = "what an expired lease held goes", "what a deleted lease held goes"
SHORT, LONG = Context(NAMESPACE, "short"), Context(NAMESPACE, "long")
HOLDERS = (LONG, SHORT, SHORT)
"""Under which lease each snapshot is made."""
MIB = 1 << 20


class Room:
    """An opened root with metadata."""

    def __init__(self, root: Path, clock: Clock) -> None:
        self.root = root
        self.snapshotter = Snapshotter(
            root, trees=NoTrees(), tables=tables.TABLES, checks=tables.CHECKS
        )
        self.store = self.snapshotter.store
        self.metadata = Metadata(
            self.store, root / "content", {"snapfs": self.snapshotter}, clock_ns=clock
        )
        self.snapshots = self.metadata.snapshots("snapfs")

    def layer(self, name: str) -> Path:
        return self.snapshotter.all_layers(name)[0]

    def backend(self, key: str) -> str:
        """Return what the snapshotter calls a snapshot of the namespace."""
        with self.store.view() as tx:
            row = tx.get(SNAPSHOT_LINKS, NAMESPACE, f"snapfs/{key}")
        assert row is not None
        return row.body.backend

    def view(self) -> View:
        seen: dict[str, object] = {}
        leases, content = self.metadata.leases, self.metadata.content
        for lease in leases.walk(NAMESPACE):
            seen[f"lease {lease.id}"] = lease
            for held in leases.resources(NAMESPACE, lease.id):
                if held.type == "ingests":  # half-written content waits for a day
                    continue
                seen[f"lease {lease.id} holds {held.type} {held.id}"] = True
        for it in self.metadata.images.walk(NAMESPACE):
            seen[f"image {it.name}"] = it
        for blob in content.walk(NAMESPACE):
            seen[f"content {blob.digest}"] = blob
            storing.verify_blob(content.path(NAMESPACE, blob.digest), blob.digest, blob.size_bytes)
        for found in self.snapshots.walk(NAMESPACE):
            name = self.backend(found.name)
            is_done = isinstance(found, Committed)
            digest = seals.measure(self.layer(name)) if is_done else b""
            seen[f"snapshot {found.name}"] = replace(found, updated_ns=0), digest
        for own in self.snapshotter.walk(["name==bounded"]):
            seen[own.name] = own, self.snapshotter.quota(own.name)
        return seen

    def check_data(self) -> None:
        """See that there is what rows speak of, and nothing else."""
        with self.store.view() as tx:
            links = {row.body.backend for row in tx.rows(SNAPSHOT_LINKS, NAMESPACE)}
            blobs = {blob_path(self.root / "content", row.name) for row in tx.rows(BLOBS, SHARED)}
        found = {it.name for it in self.snapshotter.walk()} - {"bounded"}
        assert found == links, f"there is {found}, and links to {links}"
        assert set((self.root / "content").glob("blobs/*/*")) == blobs
        report = self.snapshotter.fsck()
        assert report.clean, report

    def close(self) -> None:
        self.metadata.close()
        self.snapshotter.close()


@contextmanager
def opened(place: Path, clock: Clock) -> Iterator[Room]:
    room = Room(place / "root", clock)
    try:
        yield room
    finally:
        room.close()


def work(place: Path, now: Moment) -> Callable[[Path, int], None]:
    """Use leases and quotas; return what checks a root after a cut at a moment."""
    clock = Clock()
    with opened(place, clock) as room:
        ledger = Ledger(now, room.view)
        _quotas(room.snapshotter, ledger)
        _lease(room, ledger)
        clock.now_ns = NOW + 2 * HOUR
        with ledger.act(EXPIRY, in_parts=True):
            assert room.metadata.collector.collect().failures == 0
        with ledger.act("delete a lease"):
            room.metadata.leases.delete(NAMESPACE, "long")
        with ledger.act(REST, in_parts=True):
            assert room.metadata.collector.collect().failures == 0
        with ledger.act("a snapshot after that"):
            room.snapshots.prepare(Context(NAMESPACE), "later", "", {"containerd.io/gc.root": ""})
    return Check(ledger)


def _quotas(snapshotter: Snapshotter, ledger: Ledger) -> None:
    with ledger.act("prepare"):
        snapshotter.prepare("bounded", labels={"containerd.io/snapshot/max-size": "10MiB"})
    with ledger.act("another limit"):
        snapshotter.set_quota("bounded", size_bytes=20 * MIB, inodes=100)
    with ledger.act("labels"):
        snapshotter.update("bounded", {"a": "b"}, ["labels.a"])
    with ledger.act("no limit of bytes"):
        snapshotter.set_quota("bounded", size_bytes=0)


def _lease(room: Room, ledger: Ledger) -> None:
    """Give a short lease and a long one things to hold, of which both have some."""
    metadata, snapshots = room.metadata, room.snapshots
    with ledger.act("a lease"):
        expires = {"containerd.io/gc.expire": rfc3339(NOW + HOUR)}
        metadata.leases.create(NAMESPACE, SHORT.lease, expires)
    with ledger.act("a lease without end"):
        metadata.leases.create(NAMESPACE, LONG.lease)
    for number, context in enumerate(HOLDERS):
        key, name = f"key{number}", f"name{number}"
        with ledger.act(f"prepare {key}", in_parts=True):
            snapshots.prepare(context, key, f"name{number - 1}" if number else "")
        fill(room.layer(room.backend(key)), number)
        with ledger.act(f"commit {key}", in_parts=True):
            snapshots.commit(context, key, name)
        with ledger.act(f"write content {number}", in_parts=True):
            write(metadata, context, b"%d" % number * 5000)
    with ledger.act("an image"):
        digest = next(iter(metadata.content.walk(NAMESPACE))).digest
        metadata.images.create(Context(NAMESPACE), image("example.org/a:1", digest))
    with ledger.act("hold more"):
        metadata.leases.add(NAMESPACE, LONG.lease, Resource("snapshots/snapfs", "name1"))


class Check:
    """Looks at what a cut left."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def __call__(self, place: Path, moment: int) -> None:
        clock = Clock()
        with opened(place, clock) as room:
            room.snapshots.recover()
            assert room.snapshotter.cleanup() == ()
            self._ledger.check(room.view(), moment)
            self._check_collections(room, clock, moment)
            context = Context(NAMESPACE)
            room.snapshots.prepare(context, "goes-on", "", {"containerd.io/gc.root": ""})
            room.snapshots.commit(context, "goes-on", "went-on", {"containerd.io/gc.root": ""})

    def _check_collections(self, room: Room, clock: Clock, moment: int) -> None:
        """See that collections take what nothing holds, while the short lease lasts and after."""
        last, under_way = self._ledger.at(moment)
        is_whole = self._ledger.step(EXPIRY).began >= moment
        if is_whole:
            assert room.metadata.collector.collect().failures == 0
            self._ledger.check(room.view(), moment)
            self._commit_again(room, under_way.name)
        clock.now_ns = NOW + 2 * HOUR
        assert room.metadata.collector.collect().failures == 0
        room.check_data()
        for name, since in ((EXPIRY, "hold more"), (REST, "delete a lease")):
            if last.name in (since, name) and under_way.name in (since, name):
                assert room.view() == self._ledger.step(name).view

    def _commit_again(self, room: Room, name: str) -> None:
        """Ask for a commit again that was under way and was not done."""
        for number, context in enumerate(HOLDERS):
            if name == f"commit key{number}" and f"snapshot name{number}" not in room.view():
                room.snapshots.commit(context, f"key{number}", f"name{number}")
