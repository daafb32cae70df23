"""A root as a peer: its volume sets, histories and layers, for its own syncs and for others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import msgspec
import structlog

from snapfs import __version__
from snapfs.anchors import Anchors, History, Ref, merging
from snapfs.model import InvalidArgument, NotFound, SnapfsError
from snapfs.snapshots import Snapshotter, records
from snapfs.snapshots.schema import SCOPE as DATA_SCOPE
from snapfs.snapshots.schema import SNAPSHOTS as DATA
from snapfs.store import ReadTx
from snapfs.sync import applying, looking
from snapfs.sync.applying import RECEIVED, Moved, blob_name
from snapfs.sync.items import Tree
from snapfs.sync.merging import Dot
from snapfs.sync.peer import DONE, Answer, Hello, SetName, Wanted
from snapfs.sync.planning import Change
from snapfs.transfer import PREFIX, Landing, Offer, Packed, Sink, Source, Stock
from snapfs.volumes import Note, tombstones
from snapfs.volumes.history import REF_TYPE, branch_anchor
from snapfs.volumes.ids import BranchId, VolumeSetId, VolumeSnapshotId, check_id
from snapfs.volumes.schema import SCOPE as SETS_SCOPE
from snapfs.volumes.schema import SETS, SNAPSHOTS

log = structlog.get_logger(__name__)

DEADLINE_S = 30.0
FACTS_AT_ONCE = 1000
"""At most of one part of a history: they take 9 MiB if their words are as long as can be."""
_BRANCH_PREFIX = "branch/"


class Replica:
    """The volume sets of one root; a `peer.Peer`."""

    def __init__(self, snapshotter: Snapshotter, *, deadline_s: float = DEADLINE_S) -> None:
        """`deadline_s` bounds the wait for other writers of the store."""
        self.snapshotter = snapshotter
        self.store = snapshotter.store
        self.stock = Stock(snapshotter)
        self._source, self._sink = Source(self.stock), Sink(self.stock)
        self._anchors = Anchors(self.store)
        self._deadline_s = deadline_s

    def sweep(self, before_ns: int) -> None:
        """Remove data that came before a time and that no volume snapshot has.

        A sync that was cut short and is to go on finds the younger there.
        """
        left = [
            it
            for it in self.snapshotter.walk()
            if it.name.startswith((RECEIVED, PREFIX)) and it.created_ns < before_ns
        ]
        for found in sorted(left, key=lambda it: -len(it.parent_ids)):
            with self.store.view() as tx:
                row = records.find(tx, found.name)
                is_left = not tx.has_referrers(row.oid)
            if is_left:
                log.info("sync.swept", name=found.name)
                self._remove_data(found.name)

    def hello(self) -> Hello:
        """Say who this is."""
        with self.store.view() as tx:
            return Hello(looking.store_id(tx), __version__)

    def dot(self) -> Dot:
        """Return a change of this store that no other has the number of."""
        return self.store.update(looking.next_dot, timeout_s=self._deadline_s)

    def sets(self) -> list[SetName]:
        """Return every set there is, and those that were deleted."""
        with self.store.view() as tx:
            found = [SetName(row.name, row.body.path) for row in tx.rows(SETS, SETS_SCOPE)]
            return [*found, *(SetName(it.id, "") for it in tombstones.sets(tx))]

    def describe(self, set_id: VolumeSetId) -> Tree:
        """Return what there is of a set; nothing for one that never was."""
        check_id(set_id, "volume set")
        return self.store.update(lambda tx: looking.look(tx, set_id), timeout_s=self._deadline_s)

    def apply(self, set_id: VolumeSetId, changes: Sequence[Change], why: Note) -> list[Answer]:
        """Do changes, each in a transaction of its own."""
        check_id(set_id, "volume set")
        return [self._apply(set_id, change, why) for change in changes]

    def _apply(self, set_id: VolumeSetId, change: Change, why: Note) -> Answer:
        try:
            unneeded = self.store.update(
                lambda tx: applying.apply(tx, set_id, change, why), timeout_s=self._deadline_s
            )
        except Moved as error:
            return Answer("moved", str(error))
        except SnapfsError as error:
            return Answer("refused", str(error))
        self.discard(unneeded)
        return DONE

    def discard(self, names: Iterable[str]) -> None:
        """Remove data that nothing needs any more."""
        for name in names:
            self._remove_data(name)

    def _remove_data(self, name: str) -> None:
        try:
            self.snapshotter.remove(name)
        except NotFound:
            return
        except SnapfsError as error:  # something else stands on it
            log.info("sync.data_kept", name=name, reason=str(error))

    def attach(self, set_id: VolumeSetId, tips: Sequence[VolumeSnapshotId]) -> None:
        """Say of the snapshots that lead to these that their data is here, where it has come."""
        for tip in tips:
            self.store.update(
                partial(applying.attach, set_id=set_id, tip=tip), timeout_s=self._deadline_s
            )

    # Histories

    def facts(self, set_id: VolumeSetId, branches: Sequence[BranchId]) -> list[History]:
        """Return the histories of branches, without horizons: how long to keep is each host's.

        Long ones are in several parts, so that each has room in a message.
        """
        found: list[History] = []
        for branch in branches:
            try:
                whole = self._anchors.export(branch_anchor(set_id, branch))
            except NotFound:
                continue
            found += merging.split(_unlimited(whole), FACTS_AT_ONCE)
        return found

    def merge_facts(self, histories: Sequence[History]) -> None:
        """Add to the histories of branches what another store knows of them.

        A horizon in them counts for nothing: it would take away what is to be kept here.
        """
        for history in histories:
            if not history.name.startswith(_BRANCH_PREFIX):
                raise InvalidArgument(f"anchor {history.name!r} is not of a branch")
            set_id = history.name.split("/")[1]
            resolve = partial(_resolve, set_id=set_id)
            self._anchors.merge(_unlimited(history), resolve=resolve)

    # Layers

    def offer(self, set_id: VolumeSetId, snapshot: VolumeSnapshotId) -> Offer:
        """Return what the data of a snapshot is."""
        return self._source.offer(self._blob(set_id, snapshot))

    def manifest(self, set_id: VolumeSetId, snapshot: VolumeSnapshotId) -> Iterator[bytes]:
        """Yield the manifest of a snapshot's data."""
        return self._source.manifest(self._blob(set_id, snapshot))

    def chunks(
        self, set_id: VolumeSetId, snapshot: VolumeSnapshotId, wanted: list[bytes]
    ) -> Iterator[Packed]:
        """Yield chunks of a snapshot's data."""
        return self._source.chunks(self._blob(set_id, snapshot), wanted)

    def receive(
        self,
        set_id: VolumeSetId,
        snapshot: VolumeSnapshotId,
        parent: VolumeSnapshotId | None,
        offer: Offer,
        manifest: Iterable[bytes],
        chunks: Wanted,
    ) -> None:
        """Take the data of a snapshot; it is durable and verified on return."""
        with self.landing(set_id, snapshot, parent, offer) as landing:
            if landing is None:
                return
            for packed in chunks(landing.take_manifest(manifest)):
                landing.put(packed)
            landing.finish()

    @contextmanager
    def landing(
        self,
        set_id: VolumeSetId,
        snapshot: VolumeSnapshotId,
        parent: VolumeSnapshotId | None,
        offer: Offer,
    ) -> Iterator[Landing | None]:
        """Give what takes the data of a snapshot; None when it is here. See `Sink.receive`."""
        check_id(set_id, "volume set")
        check_id(snapshot, "volume snapshot")
        below = self._data_name(set_id, parent) if parent else ""
        with self._sink.receive(self._data_name(set_id, snapshot), below, offer) as landing:
            yield landing

    def _blob(self, set_id: VolumeSetId, snapshot: VolumeSnapshotId) -> str:
        name = self._data_name(set_id, snapshot)
        with self.store.view() as tx:
            if tx.get(DATA, DATA_SCOPE, name) is None:
                raise NotFound(f"the data of volume snapshot {snapshot} is not in this store")
        return name

    def _data_name(self, set_id: VolumeSetId, snapshot: VolumeSnapshotId) -> str:
        """Return the name of the committed snapshot that has, or is to have, a snapshot's data."""
        with self.store.view() as tx:
            row = tx.get(SNAPSHOTS, set_id, snapshot)
        return (row.body.blob if row else "") or blob_name(set_id, snapshot)


def _unlimited(history: History) -> History:
    return msgspec.structs.replace(history, horizon=None)


def _resolve(tx: ReadTx, ref: Ref, *, set_id: str) -> int:
    row = tx.get(SNAPSHOTS, set_id, ref.value) if ref.type == REF_TYPE else None
    return row.oid if row else 0
