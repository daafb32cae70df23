"""The feed: the changes of late, in memory, from the one writer to any number of watches.

All watches share one ring of changes; each has its own place in it. So a writer's cost does not
depend on how many watch, and the memory is bounded once, by RING_BYTES and the largest limit, also
when a watch is not read. What is not in the ring is in the log.

Waking threads is what watches cost, so news is announced by a thread of the feed's, at once after a
pause and then at a pace that keeps it to WAKEUPS_PER_S; what comes meanwhile is announced together,
and before it is so much that a watch which waits for the news would overflow. Those who wait are
woken one by the other: a hundred at once would have the writers wait for the interpreter's lock.

`_lock` guards all state. Invariants: the ring has every change after `_floor` up to `_head`, and
`_floor <= _announced <= _head`. Without a watch the ring is empty.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from snapfs.model import ResourceExhausted, Unavailable
from snapfs.store.changes import Change, Slab
from snapfs.store.tables import Registry

RING_BYTES = 64 << 20
"""Most bytes of rows, new and old, that are kept for watches."""

WAKEUPS_PER_S = 250
"""Most watches woken in a second, over all."""


class Overflow(ResourceExhausted):
    """A watch that was not read fast enough; go on from the log with `watch(last_rev)`."""

    def __init__(self, message: str, *, last_rev: int) -> None:
        super().__init__(message)
        self.last_rev = last_rev


class WatchClosed(Unavailable):
    """The watch was closed by its own consumer."""


class Place(Protocol):
    """A watch as the feed sees it; its consumer moves `revision`, the feed only reads it."""

    revision: int
    limit: int
    live: bool
    closed: bool


@dataclass(frozen=True, slots=True)
class _Entry:
    change: Change
    total: int
    """Events published up to and with this change."""
    size_bytes: int


class Feed:
    """Changes from `publish` to `take`; `close` ends every wait."""

    def __init__(self, registry: Registry, revision: int) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._published = threading.Condition(self._lock)
        self._news = threading.Condition(self._lock)
        self._stopping = threading.Event()
        self._ring: deque[_Entry] = deque()
        self._places: set[Place] = set()
        self._floor = self._announced = self._head = revision
        self._floor_total = self._total = 0
        self._bytes = 0
        self._fresh_events = self._fresh_bytes = 0
        """Of what is not announced."""
        self._most_fresh = 0
        """Events after which news is announced at once."""
        self._is_pausing = False
        """The announcer waits for its pace, not for news."""
        self._to_wake = 0
        """Who waits and has not been woken since the last announcement."""
        self._waiting = 0
        self._last: tuple[tuple[int, int], Slab] | None = None
        self._herald: threading.Thread | None = None

    def publish(self, changes: Sequence[Change]) -> None:
        """Add durable changes, in order; only the writer calls."""
        with self._lock:
            if not self._places:
                self._clear(changes[-1].revision)
                return
            for change in changes:
                if change.revision == self._head + 1:
                    self._add(change)
                else:  # a restored store went on from elsewhere: whoever is live finds a gap
                    self._clear(change.revision)
            self._bound()
            if not self._ring:
                self._news.notify_all()
            if not self._is_pausing or self._is_urgent():
                self._published.notify()

    def attach(self, place: Place) -> None:
        with self._lock:
            self._refuse_closed(place)
            self._places.add(place)
            self._bound_haste()
            self._is_here(place)  # from here on it may overflow
            if self._herald is None:
                self._herald = threading.Thread(target=self._announce, name="snapfs-store feed")
                self._herald.daemon = True
                self._herald.start()

    def detach(self, place: Place) -> None:
        with self._lock:
            place.closed = True
            self._places.discard(place)
            self._bound_haste()
            if not self._places:
                self._clear(self._head)
            self._news.notify_all()

    def take(self, place: Place, timeout_s: float | None) -> Slab | None:
        """Return the changes behind `place`, waiting for the first; none when none came in time.

        None means that they are in the log only, for a place that is not live yet. Raises Overflow
        for a live one that is too far behind, WatchClosed or Unavailable when all is over.
        """
        with self._lock:
            if not self._is_here(place):
                return None
            self._await_news(place, timeout_s)
            self._refuse_closed(place)
            self._is_here(place)
            return self._slab(place.revision - self._floor, self._announced - self._floor)

    def close(self) -> None:
        """End every wait with Unavailable."""
        self._stopping.set()
        with self._lock:
            self._published.notify_all()
            self._news.notify_all()
        if self._herald is not None:
            self._herald.join()

    def _await_news(self, place: Place, timeout_s: float | None) -> None:
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        left_s = timeout_s
        while not self._has_news(place) and (left_s is None or left_s > 0):
            self._waiting += 1
            self._news.wait(left_s)
            self._waiting -= 1
            self._wake_next()
            left_s = None if end_s is None else end_s - time.monotonic()

    def _wake_next(self) -> None:
        if self._to_wake:
            self._to_wake -= 1
            self._news.notify()

    def _slab(self, begin: int, end: int) -> Slab:
        """Return a part of the ring, the last one again if it is the same: watches go in step."""
        key = (self._floor + begin, self._floor + end)
        if self._last is None or self._last[0] != key:
            part = [entry.change for entry in islice(self._ring, max(begin, 0), max(end, 0))]
            self._last = (key, Slab(part, self._registry))
        return self._last[1]

    def _has_news(self, place: Place) -> bool:
        return (
            self._announced > place.revision
            or place.revision < self._floor
            or place.closed
            or self._stopping.is_set()
        )

    def _is_here(self, place: Place) -> bool:
        """Say whether the ring has all that is behind `place`; raise when it had and has not."""
        self._refuse_closed(place)
        behind = self._behind(place)
        if behind is None or behind > place.limit:
            if place.live:
                raise Overflow(
                    f"the watch fell more than {place.limit} events behind and ended; "
                    f"watch again from revision {place.revision}",
                    last_rev=place.revision,
                )
            return False
        place.live = True
        return True

    def _behind(self, place: Place) -> int | None:
        """Return how many events are behind `place`, None when the ring has not all of them."""
        index = place.revision - self._floor
        if index < 0:
            return None
        if index >= len(self._ring):
            return 0
        seen = self._ring[index - 1].total if index else self._floor_total
        return self._total - seen

    def _refuse_closed(self, place: Place) -> None:
        if place.closed:
            raise WatchClosed("the watch is closed; watch again from its revision")
        if self._stopping.is_set():
            raise Unavailable(
                f"the store is closed; open it and watch from revision {place.revision}"
            )

    def _add(self, change: Change) -> None:
        self._total += len(change.stored) + 1
        entry = _Entry(change, self._total, change.size_bytes)
        self._bytes += entry.size_bytes
        self._fresh_bytes += entry.size_bytes
        self._fresh_events += len(change.stored) + 1
        self._ring.append(entry)
        self._head = change.revision

    def _bound_haste(self) -> None:
        self._most_fresh = min((place.limit for place in self._places), default=0) // 4

    def _bound(self) -> None:
        """Drop what is beyond the bounds; whose place was there finds it out at its next take."""
        limit = max(place.limit for place in self._places)
        while self._ring and (self._bytes > RING_BYTES or self._total - self._floor_total > limit):
            self._drop()

    def _drop(self) -> None:
        entry = self._ring.popleft()
        self._bytes -= entry.size_bytes
        self._floor_total = entry.total
        self._floor = entry.change.revision
        self._announced = max(self._announced, self._floor)

    def _clear(self, revision: int) -> None:
        self._ring.clear()
        self._bytes = 0
        self._fresh_events = self._fresh_bytes = 0
        self._floor = self._announced = self._head = revision
        self._floor_total = self._total
        self._last = None

    def _is_urgent(self) -> bool:
        """Say whether a watch that waits for news would soon be too far behind."""
        return self._fresh_events > self._most_fresh or self._fresh_bytes > RING_BYTES // 4

    def _announce(self) -> None:
        while not self._stopping.is_set():
            with self._lock:
                self._published.wait_for(
                    lambda: self._announced < self._head or self._stopping.is_set()
                )
                self._announced = self._head
                self._fresh_events = self._fresh_bytes = 0
                self._forget_seen()
                self._to_wake = self._waiting
                self._wake_next()
                self._is_pausing = True
                self._published.wait_for(
                    lambda: self._is_urgent() or self._stopping.is_set(),
                    len(self._places) / WAKEUPS_PER_S,
                )
                self._is_pausing = False

    def _forget_seen(self) -> None:
        """Drop the changes that every watch has taken."""
        least = min((place.revision for place in self._places), default=self._head)
        while self._ring and self._ring[0].change.revision <= least:
            self._drop()
        if not self._ring:
            self._last = None
