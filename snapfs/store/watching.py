"""Watches: what happens in a store from a revision on, out of the log and then live.

A watch has a place, the revision up to which its consumer has everything. What lies behind it
comes from the log until the feed has it, then from the feed. Both are read by revision, so nothing
is left out and nothing comes twice, also when the watch is taken up again after a restart.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from snapfs.closing import Closing
from snapfs.model import InvalidArgument
from snapfs.store.changes import Change, Slab
from snapfs.store.events import Event
from snapfs.store.feed import Feed, Overflow, WatchClosed
from snapfs.store.specifiers import Selection, Specifier
from snapfs.store.views import Views

LIMIT = 10_000
"""Events that a live watch may be behind before it gets Overflow."""

_REPLAY_CHANGES = 256
_REPLAY_BYTES = 8 << 20
"""Most that is read from the log in one view."""


@dataclass(frozen=True, slots=True)
class News:
    """What a watch selected of the changes up to and including `revision`, whole revisions."""

    revision: int
    events: Sequence[Event]


class Watch(Closing):
    """A look at what happens, by one consumer; `close` may come from any thread.

    Iterate over it for single events, or `take` all there is. An iteration ends when the watch is
    closed; it raises Unavailable when the store closes, else what `take` raises.
    """

    def __init__(
        self,
        views: Views,
        feed: Feed,
        after_rev: int | None,
        specifiers: Sequence[Specifier[Any]],
        *,
        limit: int,
        commits: bool,
    ) -> None:
        if limit < 1:
            raise InvalidArgument(f"a watch with a limit of {limit} events; give one or more")
        self._views = views
        self._feed = feed
        self._selection = Selection(specifiers, commits=commits)
        self.limit = limit
        self.live = False
        self.closed = False
        self.revision = views.revision if after_rev is None else after_rev
        """Everything up to and including this revision was handed out."""
        with views.view() as tx:
            tx.changes(self.revision)  # raises what is wrong with it
        feed.attach(self)

    def take(self, timeout_s: float | None = None) -> News:
        """Return what is new, waiting for it; without events when none came within `timeout_s`.

        Raises Overflow when the consumer was too slow, which ends the watch: watch again from
        its `last_rev`. Raises Compacted when the log does not reach back to the watch's revision:
        read the rows anew. Raises WatchClosed or Unavailable when the watch or the store closed.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left = None if end is None else max(0.0, end - time.monotonic())
            slab = self._next(left)
            found = self._selection.of(slab)
            self.revision = max(self.revision, slab.revision)
            if found or (end is not None and time.monotonic() >= end):
                return News(self.revision, found)

    def close(self) -> None:
        """End the watch and every wait in it; again does nothing."""
        self._feed.detach(self)

    def __iter__(self) -> Iterator[Event]:
        while True:
            try:
                news = self.take()
            except WatchClosed:
                return
            yield from news.events

    def _next(self, timeout_s: float | None) -> Slab:
        try:
            live = self._feed.take(self, timeout_s)
        except Overflow:
            self.close()
            raise
        return self._replay() if live is None else live

    def _replay(self) -> Slab:
        """Read some whole revisions from the log."""
        found: list[Change] = []
        size_bytes = 0
        with self._views.view() as tx:
            for change in islice(tx.changes(self.revision), _REPLAY_CHANGES):
                found.append(change)
                size_bytes += change.size_bytes
                if size_bytes > _REPLAY_BYTES:
                    break
            return Slab(found, tx.registry)
