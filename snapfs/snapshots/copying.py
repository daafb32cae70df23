"""Committing a copy of an active snapshot that goes on: it keeps its id, its mounts and open files.

    copy  ids reserved with an intent -> directories made and fsynced -> changed files copied ahead
          -> the tree frozen -> the copy made -> the tree thawed -> data durable, usage measured
          -> one transaction writes the committed row, and whatever else the caller has to say

A copy that was killed anywhere has no row, and its directory goes at the next opening as that of
any unfinished creation. What the upper looked like is kept in its work directory (`copied`), so
that the next copy takes only what changed since and goes over this one. Without that file, after
`LONGEST_CHAIN` copies, or when it is from before the host last started, a whole copy is made: data
and times of a file may go apart when the power fails.

How a layer is copied is the overlay's affair (overlay/layercopy.py); a `Copier` is given.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import msgspec
import structlog

from snapfs.model import Committed, FailedPrecondition, Labels, SnapfsError, SnapshotId, Usage
from snapfs.snapshots import records
from snapfs.snapshots.durability import DataSync
from snapfs.snapshots.faults import naming, refusing
from snapfs.snapshots.layers import LayerDirectories, sync_directory
from snapfs.snapshots.locks import KeyedLocks
from snapfs.snapshots.metastore import MetaStore
from snapfs.snapshots.reserve import IdReserve
from snapfs.snapshots.trees import Lanes, Trees
from snapfs.snapshots.unfinished import Unfinished
from snapfs.snapshots.usage import measure
from snapfs.store import WriteTx

log = structlog.get_logger(__name__)

T = TypeVar("T")

LONGEST_CHAIN = 64
"""Copies that go over each other before a whole one is made."""

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_RECORD = "copied"
_DRAFT = "copied.new"


class Copying(Protocol):
    """A copy of a layer in the making; overlay.LayerCopy is one. Raises OSError."""

    copied_bytes: int
    copied_files: int

    def warm(self) -> None:
        """Copy ahead what has changed; the layer may go on to change."""

    def make(self) -> None:
        """Make the copy of a layer that holds still."""

    def known(self) -> bytes:
        """Return what the next copy must know of this one."""
        ...

    def clear(self) -> None:
        """Remove what was copied ahead in vain."""


class Changed(Protocol):
    """Says whether a layer differs from its last copy; overlay.has_changed is one."""

    def __call__(
        self, upper: Path, last: tuple[Sequence[Path], bytes] | None, *, doubted: bool
    ) -> bool: ...


class Copier(Protocol):
    """Begins a copy; overlay.LayerCopy is one."""

    def __call__(
        self, upper: Path, below: Sequence[Path], target: Path, spare: Path, before: bytes | None
    ) -> Copying: ...


class Record(msgspec.Struct, frozen=True, array_like=True):
    """What is remembered of the last copy of an active."""

    base: int
    """Id of the copy."""
    known: bytes
    """What `Copying.known` returned."""
    boot: str = ""
    """Names the time between two starts of the host in which it was written."""

    @property
    def is_doubted(self) -> bool:
        """Whether the host was started since: what it says of a file may not hold for its data."""
        return self.boot != _boot()


@dataclass(frozen=True, slots=True)
class Copied(Generic[T]):
    """A copy that was committed."""

    snapshot: Committed
    pause_ns: int
    """How long writers of the active had to wait."""
    files: int
    size_bytes: int
    """Length of the files that it took over."""
    also: T
    """What the caller's part of the transaction returned."""


@dataclass(slots=True)
class _Held:
    """A freeze, and once it is over how long it took."""

    pause_ns: int = 0


@dataclass(frozen=True, slots=True)
class _Source:
    """The active, its last copy, and the same if another can go over it."""

    key: str
    id: SnapshotId
    trees: Trees
    chain: tuple[int, ...]
    last: Record | None
    against: Record | None


class LayerCopier:
    """Commits copies of the active snapshots of one root. Thread-safe."""

    def __init__(
        self,
        copier: Copier | None,
        *,
        meta: MetaStore,
        layers: LayerDirectories,
        reserve: IdReserve,
        unfinished: Unfinished,
        trees: Lanes,
        busy: KeyedLocks,
        sync: DataSync | None,
        deadline_s: float,
        steps: Callable[[str], None],
    ) -> None:
        """`sync` makes data durable before the row; None leaves that to the kernel."""
        self._copier = copier
        self._meta = meta
        self._layers = layers
        self._reserve = reserve
        self._unfinished = unfinished
        self._trees = trees
        self._busy = busy
        self._sync = sync
        self._deadline_s = deadline_s
        self._steps = steps

    def commit_copy(
        self,
        key: str,
        name: str,
        labels: Labels | None,
        also: Callable[[WriteTx, Committed], T],
    ) -> Copied[T]:
        """Commit a copy of the active `key` as `name`; `also` runs in the same transaction.

        Durable on return. Writers of the active wait while the tree is frozen, which is measured.
        Raises what `records.commit_copy` and freezing raise; then nothing has changed.
        """
        if self._copier is None:
            raise FailedPrecondition("this snapshotter was built without a copier; give it one")
        records.checked_name(name, "name")
        records.checked_labels(labels)
        source = self._source(key, name)
        what = f"snapshot {records.shown(key)}"
        with self._busy.hold(source.id, what, self._deadline_s), self._directory() as identity:
            self._steps("copy.made")
            with refusing(f"copy snapshot {records.shown(key)}"):
                copying, known, pause_ns = self._copy(self._copier, source, identity)
                usage = self._settle(identity)
            base = None if source.against is None else SnapshotId(source.against.base)

            def record(tx: WriteTx) -> tuple[Committed, T]:
                done = records.commit_copy(
                    tx, key, name, usage, labels, snapshot_id=identity, against=base
                )
                return done, also(tx, done)

            committed, extra = self._meta.apply(record)
            self._steps("copy.recorded")
            self._remember(source.id, Record(identity, known, _boot()))
        log.info(
            "snapshot.copied",
            key=key,
            name=name,
            id=identity,
            files=copying.copied_files,
            pause_ms=round(pause_ns / 1e6, 1),
        )
        return Copied(committed, pause_ns, copying.copied_files, copying.copied_bytes, extra)

    def has_changed(self, key: str, changed: Changed, *, still: bool = False) -> bool:
        """Say whether an active has changed since its last copy, or since it was made.

        With `still` its tree is frozen meanwhile, and mappings are written back before. Raises
        NotFound, FailedPrecondition for what is not active.
        """
        source = self._source(key, "")
        last = source.last
        what = f"look at snapshot {records.shown(key)}"
        with ExitStack() as stack:
            if still:
                stack.enter_context(self._busy.hold(source.id, what, self._deadline_s))
                stack.enter_context(self._frozen(source))
            with refusing(what):
                return changed(
                    self._layers.upper(source.id),
                    None if last is None else (self._layers_of(last.base), last.known),
                    doubted=last is not None and last.is_doubted,
                )

    def _layers_of(self, copy: int) -> Sequence[Path]:
        with self._meta.store.view() as tx:
            row = records.by_id(tx, copy)
        return self._layers.lowers((copy, *(row.body.chain if row else ())))

    def _source(self, key: str, name: str) -> _Source:
        with self._meta.store.view() as tx:
            body = records.check_commit(tx, key, name).body
            identity = SnapshotId(body.id)
            last = self._last(identity)
            base = records.by_id(tx, last.base) if last else None
        if last is None or base is None:
            last = against = None
        else:
            is_long = len(base.body.chain) - len(body.chain) >= LONGEST_CHAIN
            against = None if is_long or last.is_doubted else last
        trees = self._trees.lane(records.lane(body))
        return _Source(key, identity, trees, body.chain, last, against)

    def _last(self, identity: SnapshotId) -> Record | None:
        """Return what is remembered of the last copy."""
        try:
            packed = (self._layers.work(identity) / _RECORD).read_bytes()
            return msgspec.msgpack.decode(packed, type=Record)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None

    @contextmanager
    def _directory(self) -> Iterator[SnapshotId]:
        """Make the directories of a new snapshot; when the block fails they go again."""
        identity = self._reserve.take()
        is_done = False
        try:
            self._steps("copy.reserved")
            with refusing("make a layer directory for a copy"):
                self._layers.make(identity, None)
            yield identity
            is_done = True
        finally:
            if is_done:
                self._reserve.settle(identity)
            else:
                self._unfinished.add([identity])

    def _copy(
        self, copier: Copier, source: _Source, identity: SnapshotId
    ) -> tuple[Copying, bytes, int]:
        """Make the copy; return it with what the next one must know, and how long writers
        waited."""
        copying = copier(
            self._layers.upper(source.id),
            self._layers.lowers(source.chain) if source.chain else (),
            self._layers.upper(identity),
            self._layers.work(identity),
            None if source.against is None else source.against.known,
        )
        try:
            copying.warm()
            self._steps("copy.warm")
            with self._frozen(source) as held:
                self._steps("copy.frozen")
                copying.make()
                self._steps("copy.copied")
        finally:
            copying.clear()
        self._steps("copy.thawed")
        return copying, copying.known(), held.pause_ns

    @contextmanager
    def _frozen(self, source: _Source) -> Iterator[_Held]:
        """Keep a tree frozen for the block; afterwards, say for how long writers had to wait."""
        began_ns = time.monotonic_ns()
        with naming(f"snapshot {records.shown(source.key)}"):
            source.trees.freeze(source.id, timeout_s=self._deadline_s, lasting=False)
        held = _Held()
        try:
            yield held
        finally:
            known_ns = None
            try:
                known_ns = source.trees.thaw(source.id)
            except SnapfsError as error:
                log.error("tree.thaw_failed", id=source.id, error=str(error))
            held.pause_ns = known_ns or time.monotonic_ns() - began_ns

    def _settle(self, identity: SnapshotId) -> Usage:
        upper = self._layers.upper(identity)
        if self._sync is not None:
            self._sync.sync(upper)
        self._steps("copy.durable")
        return measure(upper)

    def _remember(self, identity: SnapshotId, record: Record) -> None:
        """Keep what the next copy goes over; without it, that is a whole one."""
        work = self._layers.work(identity)
        try:
            with (work / _DRAFT).open("wb") as file:
                file.write(msgspec.msgpack.encode(record))
                file.flush()
                os.fsync(file.fileno())
            (work / _DRAFT).rename(work / _RECORD)
            sync_directory(work)
        except OSError as error:
            log.warning("snapshot.copy_not_remembered", id=identity, error=str(error))
            with suppress(OSError):
                (work / _RECORD).unlink()


def _boot() -> str:
    return BOOT_ID.read_text().strip()
