"""The store as its writer opens it: reads at once, updates through the one writer thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

from snapfs.model import FailedPrecondition
from snapfs.store import checking, creation, inspection, migrations, reshaping, retention
from snapfs.store.checking import Problem
from snapfs.store.environment import Environment, opening
from snapfs.store.inspection import Inspected
from snapfs.store.lock import WriterLock
from snapfs.store.requests import Request
from snapfs.store.tables import Registry, Table
from snapfs.store.views import Views
from snapfs.store.writer import Writer
from snapfs.store.writing import WriteTx

T = TypeVar("T")

MAP_SIZE_BYTES = 1 << 30
"""First size of the map: address space, not disk or memory."""

MAX_MAP_SIZE_BYTES = 1 << 40


class Store(Views):
    """A store open for reading and writing; at most one at a time, over all processes.

    Thread-safe. `view` never waits for writers; `update` waits until its change is durable.
    """

    def __init__(self, environment: Environment, registry: Registry, writer: Writer) -> None:
        super().__init__(environment, registry)
        self._writer = writer
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
            writer = Writer(
                environment,
                registry,
                clock_ns=clock_ns,
                max_map_size_bytes=max_map_size_bytes,
                keep_revisions=keep_revisions,
            )
            writer.start()
            stack.callback(writer.stop)
            store = cls(environment, registry, writer)
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

    def check(self) -> list[Problem]:
        """Verify the data file's structure and every invariant of the schema."""
        return checking.check_pages(self.path) or super().check()

    def close(self) -> None:
        """Finish the waiting updates and close; again does nothing."""
        with self._closing:
            self._resources.pop_all().close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


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
