"""Asking snapshotters to remove what was collected: children before their parents, one by one.

A namespace has a link to the parent before it has one to the child, so of two snapshots the
parent's oldest link is older, whatever the namespaces. A snapshot is removed with its oldest link,
in the order of those from the youngest, and all links to it go with it.

One that its snapshotter does not have is gone, unless it may come to be yet: a call that makes it
was not answered. Its link then stays until it expires (snapshotlinks.LATE_NS), and it is asked for
again in each run.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Protocol

import msgspec
import structlog

from snapfs.metadata import linking
from snapfs.metadata.collected import Collected
from snapfs.metadata.graph import paced
from snapfs.metadata.schema import GOING, SNAPSHOT_LINKS
from snapfs.metadata.snapshotlinks import Link
from snapfs.model import DeadlineExceeded, NotFound, SnapfsError, Unavailable
from snapfs.store import Store, WriteTx

log = structlog.get_logger(__name__)


class Snapshotter(Protocol):
    """What removes the snapshots that only metadata knew."""

    def remove(self, key: str) -> object: ...

    def cleanup(self) -> object: ...


class Removal:
    """Removes snapshots of all snapshotters. One run at a time."""

    def __init__(
        self, store: Store, snapshotters: Mapping[str, Snapshotter], *, deadline_s: float
    ) -> None:
        self._store = store
        self._snapshotters = snapshotters
        self._deadline_s = deadline_s
        self._silent: set[str] = set()
        """Snapshotters that did not answer in the last run; they are asked last."""

    def run(self, done: Collected) -> None:
        """Remove what goes; what fails is counted."""
        with self._store.view() as tx:
            going = array("Q")
            for scope in tx.scopes():
                found = tx.find(SNAPSHOT_LINKS, GOING, b"", scope=scope)
                going.extend(row.oid for row in paced(found))
        going = array("Q", sorted(going, reverse=True))
        used: set[str] = set()
        silent: set[str] = set()
        for is_last in (False, True):
            for row in self._rows(going):
                name = row.body.snapshotter
                if (name in self._silent) is not is_last:
                    continue
                if name in silent:
                    done.fail(row.name)
                elif self._store.update(partial(_claim, oid=row.oid), timeout_s=self._deadline_s):
                    used.add(name)
                    if not self._remove(row, done):
                        silent.add(name)
        for name in sorted((used - silent) & self._snapshotters.keys()):
            self._clean_up(name, done)
        self._silent = silent

    def _rows(self, oids: array[int]) -> Iterator[Link]:
        for oid in paced(oids):
            with self._store.view() as tx:
                row = tx.by_oid(SNAPSHOT_LINKS, oid)
            if row is not None and row.body.going:
                yield row

    def _remove(self, row: Link, done: Collected) -> bool:
        """Have a snapshot removed; return whether its snapshotter is worth asking again."""
        snapshotter = self._snapshotters.get(row.body.snapshotter)
        was_there = True
        try:
            if snapshotter is None:
                raise Unavailable(f"there is no snapshotter {row.body.snapshotter!r}")
            with done.waiting():
                snapshotter.remove(row.body.backend)
        except NotFound:  # removed by a run that ended in between, or by hand, or not made yet
            was_there = False
        except (SnapfsError, OSError) as error:
            log.warning("gc.snapshot_kept", snapshot=row.name, error=str(error))
            done.fail(row.name)
            self._store.update(partial(_unclaim, oid=row.oid), timeout_s=self._deadline_s)
            return not isinstance(error, Unavailable | DeadlineExceeded)
        forget = partial(_forget, oid=row.oid, was_there=was_there)
        self._store.update(forget, timeout_s=self._deadline_s)
        return True

    def _clean_up(self, snapshotter: str, done: Collected) -> None:
        try:
            with done.waiting():
                self._snapshotters[snapshotter].cleanup()
        except (SnapfsError, OSError) as error:
            log.warning("gc.not_cleaned_up", snapshotter=snapshotter, error=str(error))
            done.fail(f"snapshotter {snapshotter}")


def _claim(tx: WriteTx, *, oid: int) -> bool:
    """Begin to remove a snapshot, unless somebody wants it again.

    One that another namespace has, too, stays: only this one's link goes.
    """
    row = tx.by_oid(SNAPSHOT_LINKS, oid)
    if row is None or not row.body.going:
        return False
    links = list(linking.links_to(tx, row.body.snapshotter, row.body.backend))
    if not all(other.body.going for other in links):
        tx.delete(row)
        return False
    if any(other.oid < oid for other in links):
        return False  # it is the older's turn to have it removed
    tx.update(row, msgspec.structs.replace(row.body, removing=True), spec=False)
    return True


def _unclaim(tx: WriteTx, *, oid: int) -> None:
    row = tx.by_oid(SNAPSHOT_LINKS, oid)
    if row is not None:
        tx.update(row, msgspec.structs.replace(row.body, removing=False), spec=False)


def _forget(tx: WriteTx, *, oid: int, was_there: bool) -> None:
    """Delete the links to a snapshot that is gone; keep them when it may come to be yet."""
    row = tx.by_oid(SNAPSHOT_LINKS, oid)
    if row is None:
        return
    if not was_there and row.expires_ns is not None and row.expires_ns > tx.now_ns:
        _unclaim(tx, oid=oid)
        return
    for link in list(linking.links_to(tx, row.body.snapshotter, row.body.backend)):
        tx.delete(link)
