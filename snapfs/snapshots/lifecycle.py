"""Snapshots with their layer directories: the order of effects, and recovery.

    create  ids reserved with an intent (a range at a time) -> directories made and fsynced
            -> one transaction writes the row
    commit  freeze the tree -> data durable -> usage measured -> one transaction turns key into name
            -> the tree is dropped; on a failure before the transaction it is thawed
            (what nobody ever looked at is claimed instead: claims.py)
    remove  one transaction removes the row and writes an intent -> the tree is dropped
            -> the directory is deleted in the background, then the intent cleared

A crash between any two steps is finished or undone at the next opening (docs/lifecycle.md).
No lock is held while data is measured, synced or deleted, but for the one of the snapshot itself.
Thread-safe. Every wait has a deadline.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import structlog

from snapfs.closing import Closing
from snapfs.model import (
    Active,
    Committed,
    FailedPrecondition,
    Kind,
    Labels,
    LaneName,
    Mount,
    Mountable,
    NotFound,
    Quota,
    SnapfsError,
    Snapshot,
    SnapshotId,
    Unavailable,
    Unbound,
    Usage,
    View,
)
from snapfs.snapshots import claims, counted, records, recovery
from snapfs.snapshots import mounts as rules
from snapfs.snapshots.copying import Copier, LayerCopier
from snapfs.snapshots.dropping import Dropper
from snapfs.snapshots.durability import DataSync, Durability
from snapfs.snapshots.examination import NO_CHECKS, Checks, Report, examine
from snapfs.snapshots.faults import naming, refusing
from snapfs.snapshots.idmapping import IdMapping
from snapfs.snapshots.layers import LayerDirectories
from snapfs.snapshots.locks import KeyedLocks
from snapfs.snapshots.metastore import DEADLINE_S, MetaStore, Removed
from snapfs.snapshots.quotas import Quotas
from snapfs.snapshots.removal import PendingRemoval, Remover
from snapfs.snapshots.reserve import IdReserve
from snapfs.snapshots.schema import SnapshotBody
from snapfs.snapshots.sealer import Sealer
from snapfs.snapshots.status import Status, Unpack
from snapfs.snapshots.trees import Lanes, Trees
from snapfs.snapshots.unfinished import Unfinished
from snapfs.snapshots.usage import measure
from snapfs.store import ReadTx, Store, Table, WriteTx

log = structlog.get_logger(__name__)

Differ: TypeAlias = Callable[[Path, Sequence[Path]], Iterator[Any]]
"""Says how an upper directory differs from the lowers under it; overlay.diff.changes is one."""

NO_QUOTA = Quota()

Steps: TypeAlias = Callable[[str], None]
"""Called with the name of each gap between two effects; tests stop the process there."""

_INDEX_PARAMETER = Path("/sys/module/overlay/parameters/index")


def _nothing(_tx: WriteTx) -> None:
    pass


class Snapshotter(Closing):
    """The snapshots of one root: metadata, layer directories and what is mounted of them."""

    def __init__(
        self,
        root: Path,
        *,
        trees: Lanes,
        unpack: Unpack = "overlay",
        durability: Durability = "full",
        differ: Differ | None = None,
        copier: Copier | None = None,
        tables: Sequence[Table[Any]] = (),
        checks: Checks = NO_CHECKS,
        default_quota: Quota = NO_QUOTA,
        seals: bool = False,
        deadline_s: float = DEADLINE_S,
        clock_ns: Callable[[], int] = time.time_ns,
        steps: Steps = lambda _name: None,
    ) -> None:
        """Open the root, make it when it is missing, and settle what an earlier run left.

        `tables` are those of other rooms that keep their rows in the same store, `checks` what
        they verify of them in an fsck. With `seals` each committed layer gets a digest, in the
        background.
        `deadline_s` bounds each wait: for a tree, for another call on the same snapshot, for other
        writers of the store.
        """
        self.root = root
        self._trees = trees
        self._unpack: Unpack = unpack
        self._durability: Durability = durability
        self._differ = differ
        self._checks = checks
        self._deadline_s = deadline_s
        self._steps = steps
        self._index_off = _INDEX_PARAMETER.exists()
        self._busy = KeyedLocks()
        self._closing = threading.Lock()
        self._closed = False
        self._layers = LayerDirectories(root)
        with refusing(f"open root {root}"):
            self._layers.establish()
            self._sync = DataSync(self._layers.path)
        try:
            self._meta = MetaStore(
                root / "metadata", tables=tables, clock_ns=clock_ns, deadline_s=deadline_s
            )
        except SnapfsError:
            self._sync.close()
            raise
        self._store = self._meta.store
        self._quotas = Quotas(self._meta, trees, default_quota)
        self._reserve = IdReserve(self._meta, self._layers)
        self._dropper = Dropper()
        self._remover = Remover(self._layers, self._clear_intents, steps=steps)
        self._unfinished = Unfinished(self._meta, self._layers, self._reserve, self._remover)
        self.copies = LayerCopier(
            copier,
            meta=self._meta,
            layers=self._layers,
            reserve=self._reserve,
            unfinished=self._unfinished,
            trees=trees,
            busy=self._busy,
            sync=self._sync if durability == "full" else None,
            deadline_s=deadline_s,
            steps=steps,
        )
        """Commits copies of actives that go on."""
        self._sealer = Sealer(self._layers, self._record_seal) if seals else None
        try:
            left = recovery.recover(self._store, self._layers)
            self._remover.start(left.removing)
            self._unfinished.add(left.unfinished, left.creating)
            self._start_sealing()
        except SnapfsError:
            self.close()
            raise

    @property
    def store(self) -> Store:
        """The root's store, for the rooms whose tables it was opened with."""
        return self._store

    # Creating

    def prepare(
        self, key: str, parent: str = "", labels: Labels | None = None, *, owner: str = ""
    ) -> list[Mount]:
        """Create an active snapshot; return how to mount it. Durable on return.

        `owner` names a client with a collector of its own, also of what is committed from it.
        Refusals as `MetaStore.create`; also ResourceExhausted when the disk is full.
        """
        made = self._create(Kind.ACTIVE, key, parent, labels, owner)
        log.info("snapshot.prepared", key=key, parent=parent, id=made.id)
        return self._mounts(made)

    def view(
        self, key: str, parent: str = "", labels: Labels | None = None, *, owner: str = ""
    ) -> list[Mount]:
        """Create a read-only look at a committed snapshot; return how to mount it."""
        made = self._create(Kind.VIEW, key, parent, labels, owner)
        log.info("snapshot.viewed", key=key, parent=parent, id=made.id)
        return self._mounts(made)

    def _create(
        self, kind: Kind, key: str, parent: str, labels: Labels | None, owner: str
    ) -> Mountable:
        records.checked_name(key, "key")
        self._quotas.check(records.checked_labels(labels))
        IdMapping.of(labels)
        lane = self._trees.place(kind, labels)
        with self._store.view() as tx:
            above = records.check_create(tx, key, parent)
        if kind is Kind.VIEW or not self._is_unpacked_beside(key):
            self._trees.serve(lane)
        with self._identity() as identity:
            self._steps("create.reserved")
            if kind is Kind.ACTIVE:
                with refusing(f"make the layer directory of snapshot {records.shown(key)}"):
                    self._layers.make(identity, SnapshotId(above.body.id) if above else None)
            self._steps("create.made")
            made = self._meta.apply(
                lambda tx: records.create(
                    tx, kind, key, parent, labels, snapshot_id=identity, lane=lane, owner=owner
                )
            )
            self._steps("create.recorded")
        return made

    @contextmanager
    def _identity(self) -> Iterator[SnapshotId]:
        """Give an id for the block to make a snapshot of; when it fails, undo what it made."""
        identity = self._reserve.take()
        is_done = False
        try:
            yield identity
            is_done = True
        finally:
            if is_done:
                self._reserve.settle(identity)
            else:
                self._undo_create(identity)

    def _undo_create(self, identity: SnapshotId) -> None:
        """Delete a new directory without a row; if that fails, promise to."""
        try:
            with self._store.view() as tx:
                is_recorded = records.by_id(tx, identity) is not None
            with refusing(f"undo the creation of {self._layers.directory(identity)}"):
                if not is_recorded:
                    self._layers.delete(identity)
        except SnapfsError as error:
            log.warning("snapshot.undo_failed", id=identity, error=str(error))
            self._unfinished.add([identity])
        else:
            self._reserve.settle(identity)

    # Committing and removing

    def commit(
        self, key: str, name: str, labels: Labels | None = None, parent: str = ""
    ) -> Committed:
        """Turn the active `key` into the committed `name`; its data is durable before the row.

        Key missing: NotFound, checked first; the rest as `MetaStore.commit`. Layer gone:
        FailedPrecondition. A refusal leaves the snapshot active and writable.
        """
        records.checked_name(name, "name")
        records.checked_labels(labels)
        began = time.monotonic()
        with self._store.view() as tx:
            body = records.find(tx, key).body
        identity, trees = SnapshotId(body.id), self._trees.lane(records.lane(body))
        what = f"snapshot {records.shown(key)}"
        with self._busy.hold(identity, what, self._deadline_s):
            with self._store.view() as tx:
                _check_same(tx, key, identity)
                records.check_commit(tx, key, name, parent)
            with refusing(f"commit {what}"):
                self._layers.upper(identity).stat()  # a worker that knows it says nothing
            with self._still(key, identity, trees):
                usage = self._settle_data(key, identity, trees)

                def record(tx: WriteTx) -> Committed:
                    _check_same(tx, key, identity)
                    return records.commit(tx, key, name, usage, labels, parent)

                done = self._meta.apply(record)
        self._steps("commit.dropped")
        dur_ms = round((time.monotonic() - began) * 1000)
        if self._sealer is not None:
            self._sealer.add(identity)
        log.info("snapshot.committed", key=key, name=name, id=identity, dur_ms=dur_ms)
        return done

    @contextmanager
    def _still(self, key: str, identity: SnapshotId, trees: Trees) -> Iterator[None]:
        """Let nothing change a tree from now on, unless the block fails."""
        is_claimed = claims.claim(self._layers.work(identity))
        with self._claimed(identity) if is_claimed else self._frozen(key, identity, trees):
            self._steps("commit.frozen")
            yield
        self._steps("commit.recorded")
        if not is_claimed:
            self._drop(identity, trees)

    @contextmanager
    def _claimed(self, identity: SnapshotId) -> Iterator[None]:
        """Keep the claim on a tree for good, unless the block fails.

        A worker may have read that the snapshot is active and find the claim only afterwards.
        """
        is_done = False
        try:
            yield
            is_done = True
        finally:
            if not is_done:
                self._release(identity)

    @contextmanager
    def _frozen(self, key: str, identity: SnapshotId, trees: Trees) -> Iterator[None]:
        """Keep a tree frozen for the block, and after it unless the block fails."""
        self._freeze(key, identity, trees)
        is_done = False
        try:
            yield
            is_done = True
        finally:
            if not is_done:
                self._thaw(identity, trees)

    def _freeze(self, key: str, identity: SnapshotId, trees: Trees) -> None:
        with naming(f"snapshot {records.shown(key)}"):
            trees.freeze(identity, timeout_s=self._deadline_s)

    def _settle_data(self, key: str, identity: SnapshotId, trees: Trees) -> Usage:
        """Make a frozen layer durable, then measure it: blocks are allocated only when written."""
        upper = self._layers.upper(identity)
        with refusing(f"commit snapshot {records.shown(key)}"):
            try:
                if self._durability == "full":
                    self._sync.sync(upper)
                self._steps("commit.durable")
                usage = self._usage_now(key, identity, trees)
            except FileNotFoundError:
                with self._store.view() as tx:
                    _check_same(tx, key, identity)  # removed meanwhile: NotFound
                raise
        self._steps("commit.measured")
        return usage

    def rename(self, name: str, new_name: str) -> Committed:
        """Give a committed snapshot another name; see `records.rename`."""
        return self._meta.apply(lambda tx: records.rename(tx, name, new_name))

    def remove(self, key: str, *, first: Callable[[WriteTx], None] = _nothing) -> Removed:
        """Remove a snapshot of any kind; its directory is deleted in the background.

        `first` is done in the same transaction, before: what refers to the snapshot goes there.
        NotFound; FailedPrecondition while it has children. Nothing that goes wrong afterwards is
        the caller's: see `status`.
        """

        def take_away(tx: WriteTx) -> tuple[SnapshotBody, Trees | None, int | None]:
            first(tx)
            return self._remove_row(tx, key)

        body, trees, intent = self._meta.apply(take_away)
        self._steps("remove.recorded")
        kind, identity = Kind(body.kind), SnapshotId(body.id)

        def delete() -> None:
            if intent is not None:
                self._remover.add(intent, identity)

        if trees is None:
            delete()
        else:
            self._dropper.drop(trees, identity, delete)
        log.info("snapshot.removed", key=key, id=identity, kind=kind.word)
        return Removed(identity, kind)

    def _remove_row(self, tx: WriteTx, key: str) -> tuple[SnapshotBody, Trees | None, int | None]:
        body = records.remove(tx, key)
        kind = Kind(body.kind)
        trees = None if kind is Kind.COMMITTED else self._trees.lane(records.lane(body))
        has_directory = kind is not Kind.VIEW
        intent = recovery.promise_removal(tx, SnapshotId(body.id)) if has_directory else None
        return body, trees, intent

    def _release(self, identity: SnapshotId) -> None:
        try:
            claims.release(self._layers.work(identity))
        except OSError as error:
            log.error("tree.release_failed", id=identity, error=str(error))

    def _thaw(self, identity: SnapshotId, trees: Trees) -> None:
        try:
            trees.thaw(identity)
        except SnapfsError as error:
            log.error("tree.thaw_failed", id=identity, error=str(error))

    def _drop(self, identity: SnapshotId, trees: Trees) -> None:
        """Tell the trees what is already true; a tree that does not hear it changes nothing."""
        try:
            trees.drop(identity)
        except SnapfsError as error:
            log.error("tree.drop_failed", id=identity, error=str(error))

    # Looking

    def mounts(self, key: str) -> list[Mount]:
        """Return how to mount an active or view; NotFound, FailedPrecondition if committed."""
        return self._mounts(self._meta.get(key))

    def _mounts(self, found: Mountable) -> list[Mount]:
        match found:
            case View():
                return [self._bind(found, writable=False)]
            case Active():
                direct = self._is_unpacked_beside(found.name)
                chosen = self._overlay(found) if direct else None
                return [chosen or self._bind(found, writable=True)]

    def _bind(self, found: Mountable, *, writable: bool) -> Mount:
        self._trees.serve(found.lane)
        mapping = IdMapping.of(found.labels)
        source = self._trees.lane(found.lane).mountpoint(found.id, mapping)
        return rules.bind(source, writable=writable)

    def _is_unpacked_beside(self, key: str) -> bool:
        return self._unpack == "overlay" and rules.is_extraction(key)

    def _overlay(self, found: Active) -> Mount | None:
        return rules.overlay(
            self._layers.upper(found.id),
            self._layers.work(found.id),
            self._layers.lowers(found.parent_ids),
            index_off=self._index_off,
        )

    def stat(self, key: str) -> Snapshot:
        """Return a snapshot of any kind, or raise NotFound."""
        return self._meta.info(key)

    def update(self, key: str, labels: Labels, fieldpaths: Sequence[str] | None = None) -> Snapshot:
        """Change labels: all of them, or those that `fieldpaths` ("labels.NAME") name."""
        IdMapping.of(labels)
        return self._quotas.update(key, labels, fieldpaths)

    def quota(self, key: str) -> Quota:
        """Return what an active snapshot may take; NotFound, FailedPrecondition of others."""
        return self._quotas.get(key)

    def set_quota(
        self, key: str, *, size_bytes: int | None = None, inodes: int | None = None
    ) -> Quota:
        """Change what an active snapshot may take, from the next request on; durable on return.

        None leaves a limit as it is, 0 takes it away. Less than is used stops growth only.
        """
        return self._quotas.change(key, size_bytes, inodes)

    def unbound(self, key: str) -> Unbound:
        """Return the files that are written past the quota, until they are closed; or NotFound."""
        return self._quotas.unbound(key)

    def walk(self, filters: Sequence[str] = ()) -> Iterator[Snapshot]:
        """Yield what `filters` select, with no transaction open in between."""
        return self._meta.walk(filters)

    def usage(self, key: str) -> Usage:
        """Return a snapshot's own usage: measured now when active, as stored when committed."""
        match self._meta.info(key):
            case Committed(usage=stored):
                return stored
            case View():
                return Usage()
            case Active(id=identity, lane=lane):
                return self._measure(key, identity, self._trees.lane(lane))

    def _usage_now(self, key: str, identity: SnapshotId, trees: Trees) -> Usage:
        """Ask who shows an active, then what its last close left; else walk over the layer.

        What is unpacked beside the trees changes without their knowing.
        """
        known = None
        if not self._is_unpacked_beside(key):
            known = trees.usage(identity) or counted.read(self._layers.work(identity))
        return known or measure(self._layers.upper(identity))

    def _measure(self, key: str, identity: SnapshotId, trees: Trees) -> Usage:
        with refusing(f"measure snapshot {records.shown(key)}"):
            try:
                return self._usage_now(key, identity, trees)
            except FileNotFoundError:
                self._meta.info(key)  # removed meanwhile: NotFound
                raise

    def layers(self, name: str) -> tuple[Path, tuple[Path, ...]]:
        """Return the directory of a committed snapshot's layer, and those of its parents.

        They do not change. Raises NotFound, FailedPrecondition for one that is not committed.
        """
        found = self._meta.info(name)
        if not isinstance(found, Committed):
            raise FailedPrecondition(
                f"snapshot {records.shown(name)} is {found.kind.word}; commit it first"
            )
        below = self._layers.lowers(found.parent_ids) if found.parent_ids else ()
        return self._layers.upper(found.id), below

    @contextmanager
    def held(self, key: str) -> Iterator[tuple[Path, tuple[Path, ...]]]:
        """Give the layer directories of an active snapshot, the top one first, for the block.

        Nothing changes them meanwhile: writers wait, and who only looks does not. Raises NotFound,
        FailedPrecondition for a snapshot that is not active and while files of it are open that the
        kernel writes by itself.
        """
        found = self._meta.info(key)
        if not isinstance(found, Active):
            raise FailedPrecondition(
                f"snapshot {records.shown(key)} is {found.kind.word}; only an active one is held"
            )
        with self._busy.hold(found.id, f"snapshot {records.shown(key)}", self._deadline_s):
            with self._store.view() as tx:
                _check_same(tx, key, found.id)
            with self._kept_still(key, found.id, self._trees.lane(found.lane)):
                below = self._layers.lowers(found.parent_ids) if found.parent_ids else ()
                yield self._layers.upper(found.id), below

    @contextmanager
    def _kept_still(self, key: str, identity: SnapshotId, trees: Trees) -> Iterator[None]:
        """Let nothing change a tree for the block only, nor after this process is gone.

        Also one that nobody ever looked at is frozen, not claimed: it may be looked at meanwhile.
        """
        with naming(f"snapshot {records.shown(key)}"):
            trees.freeze(identity, timeout_s=self._deadline_s, lasting=False)
        try:
            yield
        finally:
            self._thaw(identity, trees)

    def all_layers(self, name: str) -> tuple[Path, ...]:
        """Return the layers that a snapshot of any kind shows, topmost first.

        That of an active one changes. Raises NotFound.
        """
        found = self._meta.info(name)
        own = () if isinstance(found, View) else (self._layers.upper(found.id),)
        return (*own, *map(self._layers.upper, found.parent_ids))

    def diff(self, name: str) -> Iterator[Any]:
        """Yield the paths of a snapshot that differ from its parent's; of a view, none."""
        if self._differ is None:
            raise FailedPrecondition("this snapshotter was built without a differ; give it one")
        found = self._meta.info(name)
        if isinstance(found, View):
            return iter(())
        return self._diff(self._differ, found)

    def _diff(self, differ: Differ, found: Snapshot) -> Iterator[Any]:
        with refusing(f"compare snapshot {records.shown(found.name)} with its parent"):
            below = self._layers.lowers(found.parent_ids) if found.parent_ids else ()
            yield from differ(self._layers.upper(found.id), below)

    # Keeping house

    def cleanup(self) -> tuple[PendingRemoval, ...]:
        """Delete now what removals left for later; return what could not be, after a deadline."""
        self._dropper.drain(self._deadline_s)
        return self._remover.drain(self._deadline_s)

    def status(self) -> Status:
        """Return counts and pending removals; the cost grows with the number of snapshots."""
        kinds = [found.kind for found in self._meta.walk()]
        return Status(
            root=self.root,
            unpack=self._unpack,
            durability=self._durability,
            revision=self._store.revision,
            active=kinds.count(Kind.ACTIVE),
            views=kinds.count(Kind.VIEW),
            committed=kinds.count(Kind.COMMITTED),
            pending=self._remover.pending(),
        )

    def lanes_in_use(self) -> set[LaneName]:
        """Return the lanes of all that can be mounted; the cost grows with the number of
        snapshots."""
        return {it.lane for it in self._meta.walk() if not isinstance(it, Committed)}

    def probe(self, *, timeout_s: float) -> None:
        """Return when the store's writer answers; raise DeadlineExceeded or Unavailable."""
        if self._closed:
            raise Unavailable(f"root {self.root} is closed; open it again")
        self._store.update(lambda _tx: None, timeout_s=timeout_s)

    def fsck(self, repair: bool = False) -> Report:
        """Compare metadata and directories; with `repair` mend what is safe to mend."""
        return examine(
            self._store,
            self._layers,
            checks=self._checks,
            repair=repair,
            under_way=self._reserve.intents,
        )

    def close(self) -> None:
        """End background work and close the store; a second call does nothing."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        if self._sealer is not None:
            self._sealer.stop(self._deadline_s)
        self._unfinished.stop(self._deadline_s)
        self._dropper.stop(self._deadline_s)
        self._remover.stop(self._deadline_s)
        with ExitStack() as stack:
            stack.callback(self._sync.close)
            stack.callback(self._store.close)
            self._give_ids_back()

    def _give_ids_back(self) -> None:
        try:
            self._reserve.close()
        except SnapfsError as error:  # the next start does it
            log.warning("ids.not_given_back", error=str(error))

    def _start_sealing(self) -> None:
        if self._sealer is not None:
            with self._store.view() as tx:
                self._sealer.start(records.unsealed(tx))

    def _record_seal(self, identity: SnapshotId, digest: bytes) -> bool:
        return self._meta.apply(lambda tx: records.seal(tx, identity, digest))

    def _clear_intents(self, numbers: Iterable[int]) -> None:
        def clear(tx: WriteTx) -> None:
            for number in numbers:
                tx.clear_intent(number)

        self._meta.apply(clear)


def _check_same(tx: ReadTx, key: str, identity: SnapshotId) -> None:
    """Raise NotFound when `key` is gone, or is another snapshot made under it since."""
    if records.find(tx, key).body.id != identity:
        raise NotFound(
            f"snapshot {records.shown(key)} was removed, and another made under its key, while it "
            "was being committed; commit that one"
        )
