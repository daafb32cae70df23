"""A lane as its threads share it: its mount, its worker, and what each worker is told.

What several threads know of a lane is here and nowhere else: who starts and stops it (supervisor),
asks its worker (asking), begins one (replacing) and waits for its end (watching).

`changed` (a condition) guards all fields but `name`, `stopping` and `settings`, which changes only
while the lane starts; no call to a worker or the kernel is made under it.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Iterable

from snapfs.fuse.lanemount import LaneMount
from snapfs.fuse.process import WorkerProcess, WorkerSettings
from snapfs.model import DeadlineExceeded, FailedPrecondition, SnapshotId, Unavailable


class LaneState(enum.Enum):
    STOPPED = "stopped"
    STARTING = "starting"
    SERVING = "serving"
    RESTARTING = "restarting"
    UNMOUNTED = "unmounted"
    """Somebody else unmounted it; the lane must be stopped and started."""


class Seat:
    """Where one worker at a time serves a lane."""

    def __init__(self, name: str, settings: WorkerSettings) -> None:
        self.name = name
        self.settings = settings
        self.changed = threading.Condition()
        self.stopping = threading.Event()
        self.state = LaneState.STOPPED
        self.mount: LaneMount | None = None
        self.worker: WorkerProcess | None = None
        self.frozen: dict[SnapshotId, bool] = {}
        """What is frozen, and whether that lasts when the control process goes."""
        self.left_in_use = False
        """A worker that is not ours any more may show our snapshots."""
        self.restarts = 0
        self.answered_s = 0.0
        """When the worker was last known to answer."""

    def open(self) -> None:
        """Begin to start; FailedPrecondition unless the lane is stopped."""
        with self.changed:
            if self.state is not LaneState.STOPPED:
                raise FailedPrecondition(f"lane {self.name} is {self.state.value}; stop it first")
            self.state = LaneState.STARTING
            self.stopping.clear()

    def close(self) -> tuple[LaneMount | None, WorkerProcess | None]:
        """Be stopped; return what there is to end."""
        self.stopping.set()
        with self.changed:
            found = self.mount, self.worker
            self.mount = self.worker = None
            self.state = LaneState.STOPPED
            self.changed.notify_all()
        return found

    def put(self, mount: LaneMount | None) -> None:
        """Have a mount to serve, or none any more."""
        with self.changed:
            self.mount = mount

    def become(self, state: LaneState) -> None:
        """Be in another state."""
        with self.changed:
            self.state = state

    def note_answer(self) -> None:
        """The worker has just answered."""
        with self.changed:
            self.answered_s = time.monotonic()

    def take_on(self, worker: WorkerProcess, frozen: Iterable[SnapshotId]) -> set[SnapshotId]:
        """Make a ready worker the lane's; return what it froze and need not any more.

        Raises Unavailable when the lane is being stopped.
        """
        with self.changed:
            if self.stopping.is_set():
                raise Unavailable(f"lane {self.name} is being stopped")
            self.worker = worker
            self.answered_s = time.monotonic()
            self.left_in_use = False
            self.restarts += self.state is LaneState.RESTARTING
            self.state = LaneState.SERVING
            self.changed.notify_all()
            return set(frozen) - self.frozen.keys()

    def serving_worker(self, deadline_s: float) -> WorkerProcess | None:
        """Wait for a worker that serves; None when none does by intent; DeadlineExceeded."""
        with self.changed:
            while True:
                if self.state in (LaneState.STOPPED, LaneState.UNMOUNTED):
                    return None
                if self.worker is not None and self.worker.is_ready:
                    return self.worker
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    raise DeadlineExceeded(f"lane {self.name}: its worker is {self.state.value}")
                self.changed.wait(min(left_s, 0.1))
