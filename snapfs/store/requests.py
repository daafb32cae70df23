"""Updates waiting for the writer: a queue in which each waits, runs and is answered once.

`_changed` guards the queue and the state of every request in it.
"""

from __future__ import annotations

import enum
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from snapfs.model import DeadlineExceeded, Unavailable
from snapfs.store.writing import WriteTx

T = TypeVar("T")


class _State(enum.Enum):
    WAITING = enum.auto()
    TAKEN = enum.auto()
    DROPPED = enum.auto()


class Request(Generic[T]):
    """One update: its function, and its result once it is durable or its error."""

    def __init__(self, function: Callable[[WriteTx], T]) -> None:
        self.function = function
        self.state = _State.WAITING
        self._answered = threading.Event()
        self._result: T | None = None
        self._error: Exception | None = None

    def answer(self, result: T | None, error: Exception | None) -> None:
        """Give the result or the error; only the first answer counts."""
        if not self._answered.is_set():
            self._result, self._error = result, error
            self._answered.set()

    def wait(self, timeout_s: float | None) -> bool:
        return self._answered.wait(timeout_s)

    def outcome(self) -> T:
        """Return the result or raise the error; only after the answer."""
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]  # set by answer()


class Queue:
    """Requests in the order of their coming, until it is closed."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Request[object]] = deque()
        self._closed = False

    def put(self, request: Request[object]) -> None:
        """Add a request; raise Unavailable when the queue is closed."""
        with self._changed:
            if self._closed:
                raise Unavailable("the store is closed; open it again")
            self._waiting.append(request)
            self._changed.notify()

    def take(self, limit: int, timeout_s: float) -> list[Request[object]] | None:
        """Take up to `limit` requests, waiting for the first; None when closed and empty.

        An empty list means that nothing came in time.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed, timeout_s)
            if self._closed and not self._waiting:
                return None
            return self._take(limit)

    def await_answer(self, request: Request[T], timeout_s: float | None) -> T:
        """Wait for the answer; raise DeadlineExceeded when the writer did not begin in time.

        Once begun, the answer is waited for without limit: it says whether the update took effect.
        """
        if not request.wait(timeout_s):
            with self._changed:
                if request.state is _State.WAITING:
                    request.state = _State.DROPPED
                    raise DeadlineExceeded(
                        f"the store did not begin the update within {timeout_s} s and dropped it; "
                        "repeat it when the store is less busy"
                    )
            request.wait(None)
        return request.outcome()

    def close(self) -> None:
        """Refuse what comes from now on; what waits is still done."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """Refuse what comes and what waits: the writer is gone."""
        self.close()
        for request in self.take(len(self._waiting), 0) or []:
            request.answer(None, Unavailable("the store closed before the update began"))

    def _take(self, limit: int) -> list[Request[object]]:
        taken: list[Request[object]] = []
        while self._waiting and len(taken) < limit:
            request = self._waiting.popleft()
            if request.state is _State.WAITING:
                request.state = _State.TAKEN
                taken.append(request)
        return taken
