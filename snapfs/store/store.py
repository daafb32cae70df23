"""The store as its writer opens it: reads at once, updates through the one writer thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from snapfs.closing import Closing
from snapfs.model import FailedPrecondition
from snapfs.store import (
    batch,
    checking,
    creation,
    inspection,
    migrations,
    reshaping,
    retention,
    stream,
)
from snapfs.store.batch import Outcome
from snapfs.store.changes import Change
from snapfs.store.checking import Problem
from snapfs.store.environment import Environment, opening
from snapfs.store.feed import Feed
from snapfs.store.inspection import Inspected
from snapfs.store.lock import WriterLock
from snapfs.store.proposer import LocalProposer, Proposer
from snapfs.store.requests import Request
from snapfs.store.restoring import Restored
from snapfs.store.specifiers import Specifier
from snapfs.store.tables import Registry, Table
from snapfs.store.views import Views
from snapfs.store.watchdog import WEDGED_AFTER_S, Watchdog, Wedge
from snapfs.store.watching import LIMIT, Watch
from snapfs.store.writer import Writer
from snapfs.store.writing import WriteTx

T = TypeVar("T")

MAP_SIZE_BYTES = 1 << 30
"""First size of the map: address space, not disk or memory."""

MAX_MAP_SIZE_BYTES = 1 << 40


class Store(Closing, Views):
    """A store open for reading and writing; at most one at a time, over all processes.

    Thread-safe. `view` never waits for writers; `update` waits until its change is durable.
    """

    def __init__(
        self,
        environment: Environment,
        registry: Registry,
        writer: Writer,
        feed: Feed,
        proposer: Proposer,
        watchdog: Watchdog,
    ) -> None:
        super().__init__(environment, registry)
        self._writer = writer
        self._feed = feed
        self.proposer = proposer
        self._watchdog = watchdog
        self._closing = threading.Lock()
        self._resources = ExitStack()

    @classmethod
    def open(
        cls,
        path: Path,
        tables: Sequence[Table[Any]],
        *,
        map_size_bytes: int = MAP_SIZE_BYTES,
        max_map_size_bytes: int = MAX_MAP_SIZE_BYTES,
        keep_revisions: int = retention.KEEP_REVISIONS,
        proposer: Proposer | None = None,
        wedged_after_s: float = WEDGED_AFTER_S,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> Store:
        """Open the store in the directory `path`, and make it if there is none.

        Raises FailedPrecondition when another process has it open for writing (naming it), when
        the directory is of another program, the format newer, or a table unknown; DataLoss when
        the data file is damaged. What is refused is left as it was.
        """
        registry = Registry(tables)
        with opening, ExitStack() as stack:
            lock = WriterLock(path)
            stack.callback(lock.release)
            found = _prepare(path, lock, registry, clock_ns)
            size = max(found.map_size_bytes, map_size_bytes)
            migrations.run(path, found.format, size)
            environment = Environment.acquire(path, readonly=False, map_size_bytes=size)
            stack.callback(environment.release)
            reshaping.run(environment, registry)
            views = Views(environment, registry)
            feed = Feed(registry, views.revision)
            stack.callback(feed.close)
            proposer = proposer or LocalProposer(views)
            writer = Writer(
                environment,
                registry,
                clock_ns=clock_ns,
                max_map_size_bytes=max_map_size_bytes,
                keep_revisions=keep_revisions,
                feed=feed,
                proposer=proposer,
            )
            writer.start()
            stack.callback(writer.stop)
            watchdog = Watchdog(
                path, lambda: writer.holding, lambda: writer.thread_id, after_s=wedged_after_s
            )
            watchdog.start()
            stack.callback(watchdog.stop)
            store = cls(environment, registry, writer, feed, proposer, watchdog)
            store._resources = stack.pop_all()
        return store

    def update(self, function: Callable[[WriteTx], T], *, timeout_s: float | None = None) -> T:
        """Run `function` on a write transaction and return its result once it is durable.

        What it wrote takes effect whole, with a revision of its own, or not at all: when it
        raises, nothing of it remains and the error comes here. It must be pure, since it may run
        more than once; side effects go through intents. `timeout_s` limits the wait for its
        beginning (DeadlineExceeded, nothing done). Raises ResourceExhausted when the disk or the
        map is full; the store stays usable.
        """
        if self._writer.is_current_thread():
            raise FailedPrecondition("an update inside an update would wait for itself; use its tx")
        request = Request(function)
        self._writer.queue.put(cast("Request[object]", request))
        return self._writer.queue.await_answer(request, timeout_s)

    def batch(
        self, items: Iterable[Callable[[WriteTx], T]], *, timeout_s: float | None = None
    ) -> list[Outcome[T]]:
        """Run many functions, each as an update would be, in few transactions; say how each went.

        An item takes effect whole or raises and leaves nothing, which does not stop the others.
        They share revisions, up to 200 changes and 1.1 MiB in each; between those other updates
        have their turn. Items must be pure, and are taken from the iterator as they are needed.
        What it raises, and what `update` raises, ends the batch: revisions that were committed
        stay, later items do nothing. `timeout_s` limits the wait for the beginning of each.
        """
        return list(batch.run(partial(self.update, timeout_s=timeout_s), items))

    def restore(self, source: BinaryIO, tables: Sequence[Table[Any]] | None = None) -> Restored:
        """Make the store, or some tables of it, what `save` wrote to `source`; durable on return.

        All or nothing, in one update, after the stream was verified to its end. A new store
        becomes a copy, revisions included; in another one, what differs is created, updated and
        deleted with events. Raises DataLoss for a damaged stream, InvalidArgument for another
        file, FailedPrecondition or NotFound when tables not restored refer to what would go, or
        are referred to and lack it.
        """
        tags = None if tables is None else frozenset(table.tag for table in tables)
        with stream.spool(self.path) as kept:
            received = stream.receive(source, kept, self._registry, self.path)
            return self.update(lambda tx: tx.restore(received, tags))

    def apply(self, changes: Iterable[Change]) -> int:
        """Do what was done elsewhere, revision by revision; return the revision reached.

        The store must be a copy of the other as of the revision before the first: restored from
        it when new, changed by nothing but `apply` since. Changes come from its `Proposer`, and
        are durable here up to the one that is refused. Raises Conflict when a change is not the
        next, or finds another row than it found there.
        """
        source = iter(changes)
        while window := list(islice(source, batch.CHANGES)):
            requests = [Request(partial(_apply, change)) for change in window]
            for request in requests:
                self._writer.queue.put(cast("Request[object]", request))
            for request in requests:
                self._writer.queue.await_answer(request, None)
        return self.revision

    def watch(
        self,
        after_rev: int | None,
        *specifiers: Specifier[Any],
        limit: int = LIMIT,
        commits: bool = True,
    ) -> Watch:
        """Watch what happens after a revision: first out of the log, then live; None is from now.

        A revision that a read transaction saw joins the two without gap or lock: what was read,
        then all that came later. With specifiers only what one of them is for, and with `commits`
        the end of every revision, whatever it changed. Close it, or use it in a `with` block.
        Raises Compacted when the log does not reach back so far, InvalidArgument for a revision
        still to come.
        """
        return Watch(self, self._feed, after_rev, specifiers, limit=limit, commits=commits)

    def forget_dead_readers(self) -> int:
        """Free what processes that died while they read held back; return how many they were."""
        return self._environment.clear_stale_readers()

    def wedged(self) -> Wedge | None:
        """Return what holds the writer for longer than `wedged_after_s`, None when all is well."""
        return self._watchdog.wedged()

    def check(self) -> list[Problem]:
        """Verify the data file's structure and every invariant of the schema."""
        return checking.check_pages(self.path) or super().check()

    def close(self) -> None:
        """Finish the waiting updates and close; again does nothing."""
        with self._closing:
            self._resources.pop_all().close()


def _apply(change: Change, tx: WriteTx) -> None:
    tx.apply(change)


def _prepare(
    path: Path, lock: WriterLock, registry: Registry, clock_ns: Callable[[], int]
) -> Inspected:
    """Take the lock and see to it that a sound store is in `path`; return what it is.

    A store is inspected before anything is written to its directory, also before a lock file is.
    """
    if inspection.holds_store(path):
        lock.take_existing()
        Environment.refuse_if_open(path)
        found = inspection.inspect(path)
        lock.take()
        return found
    creation.make_directory(path)
    lock.take()
    if not inspection.holds_store(path):  # another process may have made it before we had the lock
        creation.create(path, registry, clock_ns())
    return inspection.inspect(path)
