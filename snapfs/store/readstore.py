"""The store as other processes read it, beside its writer or without one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from snapfs.closing import Closing
from snapfs.model import SnapfsError, Unavailable
from snapfs.store import inspection, lock
from snapfs.store.environment import Environment, opening
from snapfs.store.tables import Registry, Table
from snapfs.store.views import Views


class ReadStore(Closing, Views):
    """A store open for reading only. It never waits for the writer and follows its growth."""

    def __init__(self, environment: Environment, registry: Registry) -> None:
        super().__init__(environment, registry)
        self._open = True

    @classmethod
    def open(cls, path: Path, tables: Sequence[Table[Any]]) -> ReadStore:
        """Open the store in the directory `path`; in the writer's own process it shares its map.

        Raises Unavailable when there is no store yet, FailedPrecondition when it is not ours or
        of a newer format, DataLoss when its data file is damaged. A writer has verified the data
        file when it opened it; without one, the file is verified here.
        """
        registry = Registry(tables)
        with opening:
            environment = Environment.share(path)
            if environment is None:
                _inspect(path)
                environment = Environment.acquire(path, readonly=True)
        store = cls(environment, registry)
        try:
            with store.view() as tx:
                inspection.check_format(path, tx.format)
        except SnapfsError:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Close it; again does nothing."""
        if self._open:
            self._open = False
            self._environment.release()


def _inspect(path: Path) -> None:
    if not inspection.holds_store(path):
        raise Unavailable(f"there is no store in {path} yet; start `snapfs serve` first")
    if lock.is_held(path):
        inspection.read_meta(path)
    else:
        inspection.inspect(path)
