"""What the writer's store and a reader's have in common: views of one environment."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import lmdb

from snapfs.store import checking, faults, stream
from snapfs.store.checking import Problem
from snapfs.store.environment import Environment
from snapfs.store.reading import ReadTx
from snapfs.store.schema import Sub
from snapfs.store.tables import Registry, Table


@dataclass(frozen=True, slots=True)
class Stats:
    """Figures about a store, for people who watch over it."""

    revision: int
    compacted_revision: int
    rows: int
    intents: int
    events: int
    map_size_bytes: int
    """Address space; the file grows up to it before the map must grow."""
    file_size_bytes: int
    readers: int
    """Slots of the reader table that are or were in use, over all processes."""


_COPY_BYTES = 1 << 20


class Views:
    """Read transactions on an open environment."""

    def __init__(self, environment: Environment, registry: Registry) -> None:
        self._environment = environment
        self._registry = registry

    @property
    def path(self) -> Path:
        return self._environment.path

    @property
    def tables(self) -> tuple[Table[Any], ...]:
        """The tables that it was opened with."""
        return tuple(self._registry.by_tag.values())

    @property
    def revision(self) -> int:
        """Revision of the last durable update."""
        with self.view() as tx:
            return tx.revision

    @contextmanager
    def view(self) -> Iterator[ReadTx]:
        """Look at the store as it is now, until the block ends. Never waits for updates.

        Keep it short: pages that it sees are not reused, and the map cannot grow, until it ends.
        """
        txn = self._environment.begin_read()
        try:
            yield ReadTx(txn, self._environment.dbs, self._registry)
        finally:
            self._environment.end_read(txn)

    def stats(self) -> Stats:
        """Return figures about the store; costs as much as one read."""
        with self.view() as tx:
            return Stats(
                revision=tx.revision,
                compacted_revision=tx.compacted_revision,
                rows=tx.count(Sub.ROW),
                intents=tx.count(Sub.INTENT),
                events=tx.count(Sub.LOG),
                map_size_bytes=self._environment.map_size_bytes,
                file_size_bytes=self._environment.file_size_bytes,
                readers=self._environment.readers,
            )

    def save(self, out: BinaryIO, *, aside: bool = True) -> int:
        """Write the whole store to `out` as one portable stream; return the revision that it is.

        It is copied aside first, to a file without a name beside the data, so that a slow `out`
        does not hold a view; with `aside=False` straight to `out`, a file, so that the store's disk
        needs no room and may be read-only. The caller syncs `out`. Raises what writing raises
        (OSError).
        """
        if not aside:
            return self._write(out)
        with stream.spool(self.path) as kept:
            with faults.translated(self.path):
                revision = self._write(kept)
                kept.seek(0)
            shutil.copyfileobj(kept, out, _COPY_BYTES)
        return revision

    def _write(self, out: BinaryIO) -> int:
        try:
            with self.view() as tx:
                return stream.save(tx, out).revision
        except lmdb.Error as error:
            raise faults.from_lmdb(self.path, error) from error

    def check(self) -> list[Problem]:
        """Verify every invariant of the schema in one read transaction; an empty list is good."""
        with self.view() as tx:
            return checking.check(tx)
