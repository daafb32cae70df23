"""Anchors as a program uses them: each call one transaction, or a few where there is much to do.

    with Store.open(path, anchors.TABLES) as store:
        names = Anchors(store)
        names.put("image/web", Ref("snapshot", "web-2"), author="ann", reason="release")
        names.get("image/web", at_ns=this_morning)

Thread-safe. What a call changed is durable when it returns. The cost of put, get and delete does
not depend on the number of names or on the length of a history. Walks hold no transaction while
the caller works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TypeVar

from snapfs.anchors import checking, merging, reading, writing
from snapfs.anchors.entries import Deleted, Entry, Put
from snapfs.anchors.facts import History, Key, Ref, check_time
from snapfs.anchors.merging import Merged, Resolver
from snapfs.anchors.writing import TOLERANCE_NS, Statement
from snapfs.model import InvalidArgument
from snapfs.store import Store, WriteTx

T = TypeVar("T")

DEADLINE_S = 30.0

WALK_BATCH = 100
"""Names that a walk reads in one transaction."""

CHANGE_BATCH = 500
"""Facts that one transaction of a merge or a sweep writes."""


@dataclass(frozen=True, slots=True)
class Expired:
    """What an expiry took away."""

    anchors: int = 0
    """Names that lost entries."""
    entries: int = 0
    """Facts deleted, repeats included."""


class Anchors:
    """The anchors of a store that was opened with `TABLES` among its tables."""

    def __init__(
        self, store: Store, *, tolerance_ns: int = TOLERANCE_NS, deadline_s: float = DEADLINE_S
    ) -> None:
        """`tolerance_ns`: how far ahead of the store's clock a time may be.

        `deadline_s` bounds the wait for other writers; then DeadlineExceeded, nothing done.
        """
        self._store = store
        self._tolerance_ns = tolerance_ns
        self._deadline_s = deadline_s

    def put(
        self,
        name: str,
        ref: Ref,
        *,
        at_ns: int | None = None,
        author: str = "",
        reason: str = "",
        expect_rev: int | None = None,
        target: int = 0,
    ) -> Put:
        """Let `name` stand for `ref` from `at_ns` on, or from now on; see `writing.put`."""
        statement = self._statement(at_ns, author, reason, expect_rev, target)
        return self._update(lambda tx: writing.put(tx, name, ref, statement))

    def delete(
        self,
        name: str,
        *,
        at_ns: int | None = None,
        author: str = "",
        reason: str = "",
        expect_rev: int | None = None,
    ) -> Deleted:
        """Let `name` stand for nothing from `at_ns` on, or from now on; see `writing.delete`."""
        statement = self._statement(at_ns, author, reason, expect_rev)
        return self._update(lambda tx: writing.delete(tx, name, statement))

    def get(self, name: str, *, at_ns: int | None = None) -> Put:
        """Return what `name` stood for at a time, or stands for last; or raise NotFound."""
        with self._store.view() as tx:
            return reading.get(tx, name, at_ns=at_ns)

    def walk(
        self, prefix: str = "", *, at_ns: int | None = None, deleted: bool = False
    ) -> Iterator[Entry]:
        """Yield what each name that begins with `prefix` stood for at a time, or stands for last.

        In the byte order of names. Names that stood for nothing are left out unless `deleted`.
        """
        after: str | None = None
        while True:
            with self._store.view() as tx:
                found, after = reading.batch(tx, prefix, after, WALK_BATCH, at_ns=at_ns)
            yield from (each for each in found if deleted or isinstance(each, Put))
            if after is None:
                return

    def history(
        self,
        name: str,
        *,
        at_ns: int | None = None,
        count: int | None = None,
        repeats: bool = False,
    ) -> list[Entry]:
        """Return the entries of a name, newest first: from a time on downwards, at most `count`.

        What only repeats the entry before it is left out unless `repeats`. Raises NotFound.
        """
        with self._store.view() as tx:
            return list(islice(reading.history(tx, name, at_ns=at_ns, repeats=repeats), count))

    def each(self, prefix: str = "") -> Iterator[Entry]:
        """Yield every entry of every name that begins with `prefix`, of a name the oldest first."""
        for head in self.walk(prefix, deleted=True):
            yield from reversed(self.history(head.name))

    def expire(self, before_ns: int, *, at_least: int = 1, prefix: str = "") -> Expired:
        """Take away the entries before a time, for the names that begin with `prefix`.

        Of each name stays what was in force at that time, so that no answer about that time or
        later changes, and so do its newest `at_least` entries. An expiry travels with merges. Cut
        short, it has expired some names whole; again, it does the rest.
        """
        check_time(before_ns)
        if at_least < 0:
            raise InvalidArgument(f"cannot keep {at_least} entries; give 0 or more")
        total = Expired()
        for head in self.walk(prefix, deleted=True):
            with self._store.view() as tx:
                row = reading.anchor(tx, head.name)
                horizon = writing.find_cut(tx, row, before_ns, at_least) if row else None
            swept = self._expire(head.name, horizon)
            total = Expired(total.anchors + (swept > 0), total.entries + swept)
        return total

    def export(self, name: str) -> History:
        """Return all that is known of a name, deleted or not, for a merge elsewhere."""
        with self._store.view() as tx:
            return reading.export(tx, name)

    def merge(self, history: History, *, resolve: Resolver | None = None) -> Merged:
        """Add what another store knows of a name; in any order, any number of times.

        Cut short, a part of it is there; again, it does the rest. Raises InvalidArgument for what
        is no exported history.
        """
        total = Merged()
        for part in merging.split(history, CHANGE_BATCH):
            merge = partial(
                merging.merge, theirs=part, tolerance_ns=self._tolerance_ns, resolve=resolve
            )
            total += self._update(merge)
        self._sweep(history.name)
        return total

    def bind(self, ref: Ref, target: int) -> int:
        """Let all facts that name `ref` keep the row `target` alive; return how many are new."""
        return self._update(lambda tx: writing.bind(tx, ref, target))

    def check(self) -> list[str]:
        """Verify what schema.py says of anchors; the store checks its own part."""
        with self._store.view() as tx:
            return list(checking.check(tx))

    def _expire(self, name: str, horizon: Key | None) -> int:
        """Set the horizon if there is one to set, then sweep, also what was left by another."""
        if horizon is not None:
            self._update(lambda tx: writing.set_horizon(tx, name, horizon))
        return self._sweep(name)

    def _sweep(self, name: str) -> int:
        """Delete the facts before the horizon of `name` and return how many there were."""
        total = 0
        with self._store.view() as tx:
            row = reading.anchor(tx, name)
            if row is None or next(reading.expired_facts(tx, row), None) is None:
                return 0
        while swept := self._update(lambda tx: writing.sweep(tx, name, CHANGE_BATCH)):
            total += swept
        return total

    def _statement(
        self, at_ns: int | None, author: str, reason: str, expect_rev: int | None, target: int = 0
    ) -> Statement:
        return Statement(
            at_ns=at_ns,
            author=author,
            reason=reason,
            expect_rev=expect_rev,
            target=target,
            tolerance_ns=self._tolerance_ns,
        )

    def _update(self, change: Callable[[WriteTx], T]) -> T:
        return self._store.update(change, timeout_s=self._deadline_s)
