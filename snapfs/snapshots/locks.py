"""One lock a snapshot, made when it is wanted and gone when it is not."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from snapfs.model import DeadlineExceeded


@dataclass
class _Held:
    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0


class KeyedLocks:
    """Locks by key; `_guard` guards the table, never while a lock of it is waited for."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held: dict[Hashable, _Held] = {}

    @contextmanager
    def hold(self, key: Hashable, what: str, timeout_s: float) -> Iterator[None]:
        """Hold the lock of `key` for the block; DeadlineExceeded names `what` after `timeout_s`."""
        with self._guard:
            held = self._held.setdefault(key, _Held())
            held.users += 1
        try:
            if not held.lock.acquire(timeout=timeout_s):
                raise DeadlineExceeded(
                    f"{what} is still busy with another call after {timeout_s:g} s; try again"
                )
            try:
                yield
            finally:
                held.lock.release()
        finally:
            self._release(key, held)

    def _release(self, key: Hashable, held: _Held) -> None:
        with self._guard:
            held.users -= 1
            if not held.users:
                del self._held[key]
