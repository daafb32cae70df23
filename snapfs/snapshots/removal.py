"""Deleting the layer directories of removed snapshots, behind the callers' backs.

One thread takes the promised removals in turn, a slice of time each, so that neither a huge
directory nor one that cannot be deleted holds up the others. A failure is kept for status(),
logged when it is new, and tried again with back-off. While somebody copies layers nothing is
deleted (holding.py). An intent is cleared only after its directory is gone for good (fsync of the
directory above).

Guard: `_changed` guards all but `_erase`'s files. Lock order: `_changed` is never held while the
store or a file system is called.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from snapfs.model import SnapfsError, SnapshotId
from snapfs.snapshots.erase import erase
from snapfs.snapshots.holding import Holds
from snapfs.snapshots.layers import LayerDirectories, sync_directory

SLICE_S = 1.0
GATHER_S = 0.1
"""How long a removal waits for others, to share an fsync and a transaction with them: who removes
a row of snapshots waits for the disk at each, and need not wait for ours as well."""
FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 300.0
_HELD = "kept while a backup copies layers"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PendingRemoval:
    """A layer directory that is to go and is still there."""

    id: SnapshotId
    path: Path
    attempts: int = 0
    """Failed ones."""
    error: str = ""
    """Of the last attempt."""


@dataclass
class _Job:
    intent: int
    id: SnapshotId
    due_s: float = 0.0
    attempts: int = 0
    error: str = ""
    tries: int = 0
    """Those that were put off."""

    def failed(self, why: str, now_s: float) -> None:
        self.error = why
        self.due_s = now_s + min(FIRST_RETRY_S * 2**self.attempts, LONGEST_RETRY_S)
        self.attempts += 1

    def put_off(self, now_s: float) -> None:
        self.error = _HELD
        self.due_s = now_s + FIRST_RETRY_S
        self.tries += 1


class Remover:
    """The removals of one root. Thread-safe."""

    def __init__(
        self,
        layers: LayerDirectories,
        clear: Callable[[Iterable[int]], None],
        *,
        steps: Callable[[str], None],
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clear` forgets intents in one transaction."""
        self._layers = layers
        self._holds = Holds(layers.root)
        self._clear = clear
        self._steps = steps
        self._clock_s = clock_s
        self._changed = threading.Condition()
        self._jobs: dict[int, _Job] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="snapfs-removal", daemon=True)

    def start(self, promised: Mapping[int, SnapshotId]) -> None:
        """Begin with the removals that earlier runs left: intent number -> id."""
        for intent, snapshot_id in promised.items():
            self.add(intent, snapshot_id)
        self._thread.start()

    def add(self, intent: int, snapshot_id: SnapshotId) -> None:
        """Delete the directory of `snapshot_id` soon; its intent is durable already."""
        with self._changed:
            self._jobs[intent] = _Job(intent, snapshot_id, self._clock_s() + GATHER_S)
            self._changed.notify_all()

    def pending(self) -> tuple[PendingRemoval, ...]:
        """Return what is still to be deleted."""
        with self._changed:
            return tuple(
                PendingRemoval(job.id, self._layers.directory(job.id), job.attempts, job.error)
                for job in self._jobs.values()
            )

    def drain(self, timeout_s: float) -> tuple[PendingRemoval, ...]:
        """Try everything now, also what waits for its next try; return what is left.

        Returns when each removal promised before has succeeded or failed once more, or at the
        deadline.
        """
        until_s = self._clock_s() + timeout_s
        with self._changed:
            asked = {job.intent: job.attempts + job.tries for job in self._jobs.values()}
            for job in self._jobs.values():
                job.due_s = 0.0
            self._changed.notify_all()
            while self._untried(asked) and not self._stopping:
                left_s = until_s - self._clock_s()
                if left_s <= 0 or not self._changed.wait(left_s):
                    break
        return self.pending()

    def _untried(self, asked: Mapping[int, int]) -> bool:
        return any(
            intent in self._jobs and self._jobs[intent].attempts + self._jobs[intent].tries == tries
            for intent, tries in asked.items()
        )

    def stop(self, timeout_s: float) -> None:
        """Try what is new, for a slice of time, and stop; what is left is for the next start."""
        if self._thread.ident is not None:
            self.drain(min(SLICE_S, timeout_s))
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while (jobs := self._wait_for_work()) is not None:
            if self._put_off(jobs):
                continue
            gone = [job for job in jobs if self._attempt(job)]
            if gone:
                self._settle(gone)

    def _put_off(self, jobs: Iterable[_Job]) -> bool:
        """Put jobs off while somebody copies layers; asked after the rows of all were removed."""
        try:
            if not self._holds.any():
                return False
        except OSError as error:  # who holds must know before anything goes
            for job in jobs:
                self._fail(job, str(error))
            return True
        with self._changed:
            for job in jobs:
                job.put_off(self._clock_s())
            self._changed.notify_all()
        return True

    def _wait_for_work(self) -> list[_Job] | None:
        """Return the jobs that are due, with all new ones, or None when it is time to stop."""
        with self._changed:
            while not self._stopping:
                now_s = self._clock_s()
                soonest_s = min((job.due_s for job in self._jobs.values()), default=None)
                if soonest_s is not None and soonest_s <= now_s:
                    jobs = self._jobs.values()
                    return [job for job in jobs if job.due_s <= now_s or not job.attempts]
                self._changed.wait(None if soonest_s is None else soonest_s - now_s)
            return None

    def _attempt(self, job: _Job) -> bool:
        """Delete a slice; say whether the directory is gone."""
        if self._stopping:
            return False
        path = self._layers.directory(job.id)
        self._steps("remove.erasing")
        try:
            return erase(path, budget_s=SLICE_S)
        except OSError as error:
            self._fail(job, f"{path}: {error}")
        except Exception as error:  # a fault of ours must not end the others' removals
            log.exception("snapshot.removal_broke", id=job.id)
            self._fail(job, f"{path}: {error!r}")
        return False

    def _settle(self, gone: list[_Job]) -> None:
        try:
            sync_directory(self._layers.path)
            self._steps("remove.erased")
            self._clear([job.intent for job in gone])
            self._steps("remove.cleared")
        except (OSError, SnapfsError) as error:
            for job in gone:
                self._fail(job, str(error))
            return
        with self._changed:
            for job in gone:
                del self._jobs[job.intent]
            self._changed.notify_all()

    def _fail(self, job: _Job, why: str) -> None:
        if why != job.error:
            log.warning("snapshot.removal_failed", id=job.id, error=why, attempts=job.attempts + 1)
        with self._changed:
            job.failed(why, self._clock_s())
            self._changed.notify_all()
