"""Histories are kept for a configured time; what is older goes at each start and then daily.

Of branches, volumes and names of images; anchors that people put are theirs to expire. What an
expired entry alone has kept goes too: snapshots of volumes here, images by the next collection.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

from snapfs.anchors import Anchors
from snapfs.closing import Closing
from snapfs.config import History
from snapfs.model import SnapfsError
from snapfs.volumes import Volumes

log = structlog.get_logger(__name__)

DAY_NS = 24 * 3600 * 1_000_000_000
IMAGES = "image/"


class Forgetting(Closing):
    """Forgets on a thread of its own; nothing where histories are kept for ever."""

    def __init__(
        self,
        history: History,
        anchors: Anchors,
        volumes: Volumes,
        *,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._history = history
        self._anchors = anchors
        self._volumes = volumes
        self._clock_ns = clock_ns
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if history.keep_days:
            self._thread = threading.Thread(target=self._run, name="forgetting", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop after the snapshot that is being deleted."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.forget()
            except (SnapfsError, OSError) as error:
                log.error("history.not_forgotten", error=str(error))
            self._stop.wait(self._history.every_s)

    def forget(self) -> None:
        """Let go what is older than histories are kept."""
        before_ns = self._clock_ns() - round(self._history.keep_days * DAY_NS)
        expired = self._anchors.expire(before_ns, prefix=IMAGES)
        count = self._volumes.history.prune(before_ns, go_on=lambda: not self._stop.is_set())
        log.info("history.forgotten", snapshots=count, image_entries=expired.entries)
