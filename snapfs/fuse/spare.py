"""A worker at hand: a process that has loaded its code and touches nothing before it is told to.

Loading takes a worker longer than all else, and requests wait meanwhile. A process at hand costs
some memory. Thread-safe; `_lock` guards the one process that is kept.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from snapfs.fuse.process import WorkerProcess
from snapfs.model import SnapfsError

SPARE_AFTER_S = 5.0
"""Age of a first worker at which another is worth its memory; after a death it is at once."""
CLOSE_TIMEOUT_S = 1.0

log = structlog.get_logger(__name__)


class Spare:
    """At most one process that waits for its turn."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: WorkerProcess | None = None

    def renew(self, start: Callable[[], WorkerProcess]) -> None:
        """Have a process, unless there is one that lives."""
        with self._lock:
            if self._process is not None and not self._process.gone.is_set():
                return
        self.end()
        try:
            made = start()
        except SnapfsError as error:  # the next worker starts without
            log.warning("lane.no_spare", error=str(error))
            return
        with self._lock:
            kept, self._process = self._process, made
        if kept is not None:
            _end(kept)

    def take(self) -> WorkerProcess | None:
        """Give the process away; None when there is none that lives."""
        with self._lock:
            found, self._process = self._process, None
        if found is not None and found.gone.is_set():
            _end(found)
            return None
        return found

    def end(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            found, self._process = self._process, None
        if found is not None:
            _end(found)


def _end(process: WorkerProcess) -> None:
    process.kill()
    process.close(CLOSE_TIMEOUT_S)
