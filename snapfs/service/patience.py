"""Ends a call in which the other side does nothing for a while: it holds one of few workers.

Pings go on for a peer that is stopped, or stuck on a disk of its own, so no connection ends of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import structlog

from snapfs.closing import Closing

_log = structlog.get_logger(__name__)

IDLE_S = 300.0
"""How long the other side may do nothing; what it has sent stays, so that it can go on later."""

T = TypeVar("T")


class Patience(Closing):
    """Time counts only while the other side is waited for: our own work takes what it takes."""

    def __init__(self, cancel: Callable[[], object], idle_s: float) -> None:
        self._cancel = cancel
        self._idle_s = idle_s
        self._since_s: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="patience", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the watch; twice is fine."""
        self._ended.set()
        self._thread.join()

    def taken(self, requests: Iterator[T]) -> Iterator[T]:
        """Yield what the other side sends."""
        while True:
            with self._waiting():
                try:
                    request = next(requests)
                except StopIteration:
                    return
            yield request

    def given(self, answers: Iterable[T]) -> Iterator[T]:
        """Yield what the other side is to take."""
        for answer in answers:
            with self._waiting():
                yield answer

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        self._since_s = time.monotonic()
        try:
            yield
        finally:
            self._since_s = None

    def _look(self) -> None:
        while not self._ended.wait(self._idle_s / 4):
            since_s = self._since_s
            if since_s is not None and time.monotonic() - since_s > self._idle_s:
                _log.warning("peer.idle", idle_s=self._idle_s)
                self._cancel()
                return
