"""The watchdog: it sees a writer that is held too long, and says what holds it.

An update that computes for ever, or a disk that does not answer, stops all updates while everything
else looks healthy. The watchdog cannot end either; it logs `store.wedged` once for each, with the
function and where its thread is, and `Store.wedged` tells health checks.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

WEDGED_AFTER_S = 30.0

_LOOKS = 6
"""How often it looks within the time after which a writer is wedged."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Holding:
    """Something has the write transaction since a time of the monotonic clock."""

    since_s: float
    function: Callable[..., Any] | None
    """The update that runs; None while the group begins or is being committed."""


@dataclass(frozen=True, slots=True)
class Wedge:
    """A writer that is held too long."""

    held_s: float
    by: str
    """The module and name of the update's function, or "commit"."""
    stack: str
    """Where the writer's thread is."""


class Watchdog:
    """Looks at a writer until `stop`."""

    def __init__(
        self,
        path: Path,
        holding: Callable[[], Holding | None],
        thread_id: Callable[[], int | None],
        *,
        after_s: float = WEDGED_AFTER_S,
    ) -> None:
        self._path = path
        self._holding = holding
        self._thread_id = thread_id
        self._after_s = after_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="snapfs-store watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def wedged(self) -> Wedge | None:
        """Return what holds the writer for too long now, or None."""
        holding = self._holding()
        if holding is None:
            return None
        held_s = time.monotonic() - holding.since_s
        if held_s < self._after_s:
            return None
        return Wedge(held_s, _describe(holding.function), self._stack())

    def _run(self) -> None:
        reported: float | None = None
        while not self._stopping.wait(self._after_s / _LOOKS):
            holding, wedge = self._holding(), self.wedged()
            if holding is not None and wedge is not None and reported != holding.since_s:
                reported = holding.since_s
                _log.error(
                    "store.wedged",
                    path=str(self._path),
                    by=wedge.by,
                    held_s=round(wedge.held_s, 1),
                    stack=wedge.stack,
                )
            elif reported is not None and wedge is None:
                reported = None
                _log.info("store.unwedged", path=str(self._path))

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._thread_id() or 0)
        return "".join(traceback.format_stack(frame)) if frame else ""


def _describe(function: Callable[..., Any] | None) -> str:
    if function is None:
        return "commit"
    name = getattr(function, "__qualname__", None) or repr(function)
    return f"{getattr(function, '__module__', '?')}.{name}"
