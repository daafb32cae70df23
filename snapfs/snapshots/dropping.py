"""Telling the trees that snapshots are gone, without making the remover of a snapshot wait.

A removal is done when its transaction is: garbage collection removes hundreds of snapshots in a
row, and a worker that does not answer must not cost each of them a deadline. One thread tells the
trees; the caller waits a moment, and not at all while answers are overdue.

Guard: `_changed` guards all attributes; it is not held while a tree is told.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from snapfs.model import SnapfsError, SnapshotId
from snapfs.snapshots.trees import Trees

PATIENCE_S = 0.5
"""How long a caller waits for its tree to be dropped."""

log = structlog.get_logger(__name__)


@dataclass(eq=False)
class _Order:
    trees: Trees
    id: SnapshotId
    then: Callable[[], None]
    is_done: bool = False


class Dropper:
    """Drops trees in the order of removal. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._orders: deque[_Order] = deque()
        self._overdue = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="snapfs-drop", daemon=True)
        self._thread.start()

    def drop(self, trees: Trees, snapshot_id: SnapshotId, then: Callable[[], None]) -> None:
        """Have a tree dropped and `then` called, also when that fails; return soon."""
        order = _Order(trees, snapshot_id, then)
        with self._changed:
            self._orders.append(order)
            self._changed.notify_all()
            if not self._overdue:
                self._overdue = not self._changed.wait_for(lambda: order.is_done, PATIENCE_S)

    def drain(self, timeout_s: float) -> None:
        """Return when what was ordered is done, or at the deadline."""
        with self._changed:
            self._changed.wait_for(lambda: not self._orders, timeout_s)

    def stop(self, timeout_s: float) -> None:
        """Stop after the order in hand; the others are forgotten."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (order := self._next()) is not None:
            self._tell(order)
            order.then()
            with self._changed:
                order.is_done = True
                self._orders.popleft()
                self._overdue = self._overdue and bool(self._orders)
                self._changed.notify_all()

    def _tell(self, order: _Order) -> None:
        try:
            order.trees.drop(order.id)
        except SnapfsError as error:
            log.warning("tree.drop_failed", id=order.id, error=str(error))
        except Exception:  # a fault of one tree must not end the removals of the others
            log.exception("tree.drop_broke", id=order.id)

    def _next(self) -> _Order | None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._orders)
            return None if self._stopping else self._orders[0]
