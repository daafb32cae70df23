"""What the writer's store and a reader's have in common: views of one environment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from snapfs.store import checking
from snapfs.store.checking import Problem
from snapfs.store.environment import Environment
from snapfs.store.reading import ReadTx
from snapfs.store.tables import Registry


class Views:
    """Read transactions on an open environment."""

    def __init__(self, environment: Environment, registry: Registry) -> None:
        self._environment = environment
        self._registry = registry

    @property
    def path(self) -> Path:
        return self._environment.path

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

    def check(self) -> list[Problem]:
        """Verify every invariant of the schema in one read transaction; an empty list is good."""
        with self.view() as tx:
            return checking.check(tx)
