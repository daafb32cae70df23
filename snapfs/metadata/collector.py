"""Garbage collection: mark on a read snapshot, sweep in batches, never under a long lock.

    mark     on a read transaction at revision R: nobody waits; see marking.py
    sweep    updates of at most BATCH removals, what refers before what is referred to
             (ordering.py); before each, inside its transaction, everything that was written since
             the last look at the log is marked with all it keeps alive (barrier.py)
    after    bytes and foreign snapshots that no row names any more are removed, one by one; one
             that fails is logged and asked again in the next run

No live object is lost, whatever is written meanwhile; edges removed meanwhile leave garbage for the
next run only.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import msgspec
import structlog

from snapfs.metadata import apart, leases, marking, naming
from snapfs.metadata.barrier import Written, walk_of, written
from snapfs.metadata.collected import Collected
from snapfs.metadata.collectibles import Collectible, External, Externals, Round, keepers
from snapfs.metadata.content import ContentStore
from snapfs.metadata.graph import Mark, paced
from snapfs.metadata.manager import DEADLINE_S
from snapfs.metadata.marking import Found
from snapfs.metadata.removal import Removal, Snapshotter
from snapfs.metadata.schema import (
    COLLECTIONS,
    CONTENT,
    IMAGES,
    LEASES,
    NODES,
    SHARED,
    SNAPSHOT_LINKS,
    CollectionBody,
)
from snapfs.model import Compacted, SnapfsError, Unavailable
from snapfs.store import Row, Store, WriteTx

log = structlog.get_logger(__name__)

BATCH = 50
"""Rows that one update removes, unless more refer to each other in a circle: some ten milliseconds
for which others wait.
"""

KEPT_RUNS = 50
"""Runs whose figures are kept."""

ATTEMPTS = 3
"""Marks from the start, when the log was trimmed while a sweep ran."""

_TAGS = {table.tag: table for table in NODES}


@dataclass(frozen=True, slots=True)
class Garbage:
    """A row that nothing keeps."""

    table: str
    namespace: str
    name: str
    oid: int


class Collector:
    """Collects the garbage of a store. One run at a time: the caller sees to that (scheduler)."""

    def __init__(
        self,
        store: Store,
        content: ContentStore,
        snapshotters: Mapping[str, Snapshotter],
        *,
        deadline_s: float = DEADLINE_S,
        clock_ns: Callable[[], int] = time.time_ns,
        collectibles: Sequence[Collectible] = (),
    ) -> None:
        self._store = store
        self._collectibles = collectibles
        self._kept_by: dict[str, Sequence[External]] = {}
        """By kind, the resources that kept others when their collectible last took part."""
        self._content = content
        self._removal = Removal(store, snapshotters, deadline_s=deadline_s)
        self._deadline_s = deadline_s
        self._clock_ns = clock_ns
        self._stopping = threading.Event()
        self._released = array("Q")
        """Blobs of content that was swept."""

    def stop(self) -> None:
        """Have a run under way end at the next step, with Unavailable; the next one goes on."""
        self._stopping.set()

    def garbage(self) -> list[Garbage]:
        """Return what a run would remove now."""
        now_ns = self._clock_ns()
        rounds, externals = self._begin()
        try:
            oids = self._mark(now_ns, externals).garbage
        finally:
            _end(rounds, "cancel")
        rows = [_shown(row) for row in self._rows(oids)]
        return rows + [Garbage(word, it.namespace, it.key, 0) for word, it in externals.garbage()]

    def collect(self) -> Collected:
        """Remove what nothing keeps; what fails outside the store is reported, not raised."""
        done = Collected(self._clock_ns())
        began = time.monotonic_ns()
        rounds, externals = self._begin()
        try:
            self._take_part(rounds, externals, done)
        except Exception:
            _end(rounds, "cancel")
            raise
        _end(rounds, "finish")
        self._removal.run(done)
        self._remove_blobs(done)
        done.elapsed_ns = time.monotonic_ns() - began
        self._record(done)
        log.info(
            "gc.collected",
            removed=done.removed,
            marked=done.marked,
            failed=done.failures,
            dur_ms=done.elapsed_ns // 1_000_000,
        )
        return done

    def last(self) -> CollectionBody | None:
        """Return the figures of the last run, also of an earlier process."""
        return next(iter(self.runs()), None)

    def runs(self) -> list[CollectionBody]:
        """Return the figures of the last runs that did something, and of the last, newest first."""
        with self._store.view() as tx:
            return [row.body for row in tx.rows(COLLECTIONS, SHARED)][::-1]

    def _begin(self) -> tuple[dict[str, Round], Externals]:
        """Ask who has resources of their own to take part.

        Of one that cannot, what it kept when it last could stays. Raises Unavailable when nobody
        knows that yet.
        """
        rounds: dict[str, Round] = {}
        found: dict[str, Sequence[External]] = {}
        for it in self._collectibles:
            try:
                rounds[it.word] = begun = it.begin()
                found[it.word] = list(begun.all())
            except Exception as error:  # noqa: BLE001 - theirs must not end the others
                log.warning("gc.collectible_left_out", collectible=it.word, error=_told(error))
                _end({it.word: rounds.pop(it.word, None)}, "cancel")
                if it.word not in self._kept_by:
                    _end(rounds, "cancel")
                    raise Unavailable(
                        f"nobody knows yet what {it.word!r} resources keep ({_told(error)})"
                    ) from None
                found[it.word] = self._kept_by[it.word]
            else:
                self._kept_by[it.word] = keepers(found[it.word])
        return rounds, Externals(found)

    def _take_part(
        self, rounds: Mapping[str, Round], externals: Externals, done: Collected
    ) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                seen = self._mark_and_sweep(done, externals)
                if rounds:
                    marks, revision = seen
                    with self._store.view() as tx:
                        walk = walk_of(tx, done.began_ns, marks, written(tx, revision))
                        externals.mark_more(tx, walk)
                break
            except Compacted:
                if attempt == ATTEMPTS:
                    raise
                log.warning("gc.log_trimmed", attempt=attempt)
        for word, resource in externals.garbage():
            try:
                rounds[word].remove(resource)
            except Exception as error:  # noqa: BLE001 - as above
                log.warning("gc.resource_kept", kind=word, key=resource.key, error=_told(error))
                done.fail(f"{word}/{resource.key}")
            else:
                done.removed[word] = done.removed.get(word, 0) + 1

    def _mark(self, now_ns: int, externals: Externals) -> Found:
        """Find what is alive, among `externals` too, and what is garbage."""
        if self._store.stats().rows <= marking.HERE_ROWS:
            with self._store.view() as tx:
                return marking.find(tx, now_ns, externals, batch=BATCH)
        since = Written(self._store)

        def meanwhile() -> None:
            self._go_on()
            since.look()

        found = apart.find(self._store, now_ns, externals, batch=BATCH, meanwhile=meanwhile)
        since.look()
        with self._store.view() as tx:
            walk = since.walk(tx, now_ns, found.marks)
            externals.mark_more(tx, walk)
        found.marks.add(walk.marks)
        return replace(found, revision=since.revision)

    def _go_on(self) -> None:
        if self._stopping.is_set():
            raise Unavailable("the garbage collector is stopping; the next start goes on")

    def _rows(self, oids: Sequence[int]) -> Iterator[Row[Any]]:
        """Yield rows that may be many; what is gone is left out."""
        for begin in range(0, len(oids), BATCH):
            with self._store.view() as tx:
                for oid in paced(oids[begin : begin + BATCH]):
                    row = marking.collectible(tx, oid)
                    if row is not None:
                        yield row

    def _mark_and_sweep(
        self, done: Collected, externals: Externals
    ) -> tuple[Mapping[int, Mark], int]:
        """Do so; return what is alive, and up to which revision the log was looked at."""
        began = time.monotonic_ns()
        now_ns = done.began_ns
        found = self._mark(now_ns, externals)
        seen, marks = found.revision, found.marks
        done.marked, done.mark_ns = len(marks), time.monotonic_ns() - began
        for batch in found.batches():
            self._go_on()
            step = partial(
                _sweep,
                now_ns=now_ns,
                marks=marks,
                after_rev=seen,
                batch=batch,
                externals=externals,
            )
            swept = self._store.update(step, timeout_s=self._deadline_s)
            seen = swept.revision
            marks.add(swept.marks)
            self._released.extend(swept.blobs)
            for name, rows in swept.removed.items():
                done.removed[name] = done.removed.get(name, 0) + rows
        return marks, seen

    def _remove_blobs(self, done: Collected) -> None:
        released, self._released = self._released, array("Q")
        try:
            self._content.tidy(released)
        except (SnapfsError, OSError) as error:
            log.warning("gc.content_kept", error=str(error))
            done.fail(str(error))

    def _record(self, done: Collected) -> None:
        body = CollectionBody(
            done.began_ns,
            done.elapsed_ns,
            done.marked,
            done.removed,
            done.mark_ns,
            done.failures,
        )
        self._store.update(partial(_record, body=body), timeout_s=self._deadline_s)


def _end(rounds: Mapping[str, Round | None], how: Literal["finish", "cancel"]) -> None:
    for word, it in rounds.items():
        if it is None:
            continue
        try:
            it.finish() if how == "finish" else it.cancel()
        except Exception as error:  # noqa: BLE001 - as above
            log.warning("gc.collectible_failed", collectible=word, to=how, error=_told(error))


def _told(error: Exception) -> str:
    """Return an error in a line; one that is none of ours with its type."""
    return str(error) if isinstance(error, SnapfsError | OSError) else repr(error)


def _record(tx: WriteTx, *, body: CollectionBody) -> None:
    """Keep the figures of the last runs; one that did nothing is replaced by the next."""
    kept = list(tx.rows(COLLECTIONS, SHARED))
    if kept and not kept[-1].body.removed and not kept[-1].body.failed:
        tx.delete(kept.pop())
    for row in kept[: max(0, len(kept) - KEPT_RUNS + 1)]:
        tx.delete(row)
    number = tx.sequence(COLLECTIONS.name)
    tx.create(COLLECTIONS, SHARED, f"{number:016x}", body)


@dataclass(frozen=True, slots=True)
class _Swept:
    """What one update of a sweep found and did."""

    revision: int
    """The log has been looked at up to here."""
    marks: dict[int, Mark]
    """What turned out to be alive."""
    removed: dict[str, int]
    blobs: list[int]
    """Of the content that was removed."""


def _sweep(
    tx: WriteTx,
    *,
    now_ns: int,
    marks: Mapping[int, Mark],
    after_rev: int,
    batch: Iterable[int],
    externals: Externals,
) -> _Swept:
    """Remove what is still unmarked. It may be run again: `externals` only come to life in it."""
    revision = tx.revision
    walk = walk_of(tx, now_ns, marks, written(tx, after_rev))
    externals.mark_more(tx, walk)
    alive = walk.marks
    removed: dict[str, int] = {}
    blobs: list[int] = []
    for oid in batch:
        row = None if oid in marks or oid in alive else marking.collectible(tx, oid)
        if row is None:
            continue
        if row.table == LEASES.tag:
            leases.delete(tx, row)
        elif row.table == SNAPSHOT_LINKS.tag:
            tx.update(row, msgspec.structs.replace(row.body, going=True), spec=False)
        else:
            tx.delete(row)
            if row.table == IMAGES.tag:
                naming.end(tx, row.scope, row.name)
            elif row.table == CONTENT.tag:
                blobs.append(row.body.blob)
        name = _TAGS[row.table].name
        removed[name] = removed.get(name, 0) + 1
    return _Swept(revision, alive, removed, blobs)


def _shown(row: Row[Any]) -> Garbage:
    return Garbage(_TAGS[row.table].name, row.scope, row.name, row.oid)
