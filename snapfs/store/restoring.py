"""Taking over what another store has: a saved stream, or single changes.

Neither is proposed to anyone: it is how a store follows what was agreed on elsewhere, and how an
operator puts back a backup.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from snapfs.model import AlreadyExists, Conflict, DataLoss, FailedPrecondition
from snapfs.store import events, schema, tables
from snapfs.store.changes import Change
from snapfs.store.events import Stored
from snapfs.store.keeping import Keeper
from snapfs.store.schema import Sub
from snapfs.store.stream import Stream
from snapfs.store.tables import Row, Table

_Pair: TypeAlias = tuple[Row[Any] | None, Row[Any] | None]


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did."""

    revision: int
    created: int
    updated: int
    deleted: int
    verbatim: bool
    """The store was new and is a copy now, revisions included."""


class Restorer(Keeper):
    """A write transaction that can become what another store is."""

    proposed = True
    """Whether what this update does is proposed; see proposer.py."""

    def restore(self, stream: Stream, tags: frozenset[int] | None) -> Restored:
        """Make the rows of the tables `tags`, or all, what they are in `stream`.

        In a store that never had an update, all becomes as it was saved, revisions included.
        Otherwise what differs is created, updated and deleted, in one revision of this store with
        its events; rows that are equal but for revisions stay as they are. Counters never go back.
        """
        self.proposed = False
        verbatim = self.revision == 0 and tags is None
        if verbatim:
            self._copy(stream)
        else:
            self._bring(stream, tags)
        self._raise_counters(stream)
        kinds = [stored.kind for stored in self._logged]
        return Restored(
            self._new_revision if self._wrote else self.revision,
            created=self.count(Sub.ROW) if verbatim else kinds.count(events.CREATE),
            updated=kinds.count(events.UPDATE),
            deleted=kinds.count(events.DELETE),
            verbatim=verbatim,
        )

    def apply(self, change: Change) -> None:
        """Do what `change` did elsewhere, as the same revision.

        Raises Conflict when it is not the next revision, or when a row is not what it was there:
        restore this store from the other then.
        """
        self.proposed = False
        if change.revision != self._new_revision or self._logged:
            raise Conflict(
                f"the change is of revision {change.revision} and the store is at {self.revision}; "
                "apply every change once and in order, or restore",
                expected=change.revision - 1,
                actual=self.revision,
            )
        self._wrote = True
        for stored in change.stored:
            self._apply_one(stored)

    def _apply_one(self, stored: Stored) -> None:
        if self._item(stored.oid) != stored.old:
            raise Conflict(
                f"row {stored.oid} is not what the change found elsewhere; restore this store",
                expected=0,
                actual=self.revision,
            )
        old, new = self._decoded(stored.oid, stored.old), self._decoded(stored.oid, stored.new)
        if old is not None:
            self._strip(self._known(old.table), old)
        if new is not None:
            self._dress(self._known(new.table), new, stored.new)
        elif old is not None:
            self._check_unreferred(self._known(old.table), old)
            self._remove(Sub.ROW, schema.U64.pack(stored.oid))
        else:
            raise DataLoss(f"the change of row {stored.oid} says nothing; fetch it again")
        self._log(stored)

    def _copy(self, stream: Stream) -> None:
        for saved, row in stream.rows():
            self._dress(self._known(row.table), row, saved.value)
        for _, row in stream.rows():
            self._check_targets(self._known(row.table), row)
        self._jump(stream.head.revision)

    def _bring(self, stream: Stream, tags: frozenset[int] | None) -> None:
        """Strip what changes of all that is kept for it, then write it: names may be exchanged."""
        for old, new in self._differences(stream, tags):
            if old is not None:
                self._strip(self._known(old.table), old)
            elif new is not None and self._has_row(new.oid):
                raise AlreadyExists(
                    f"row {new.oid} is of another table here; restore all tables together"
                )
        for old, new in self._differences(stream, tags):
            self._exchange(old, new)
        for stored in self._logged:
            self._check_restored(stored)

    def _exchange(self, old: Row[Any] | None, new: Row[Any] | None) -> None:
        if old is not None and new is not None and old.table != new.table:
            self._exchange(old, None)
            self._exchange(None, new)
            return
        before = b"" if old is None else self._item(old.oid)
        if new is None:
            if old is not None:
                self._remove(Sub.ROW, schema.U64.pack(old.oid))
                self._log(Stored(events.DELETE, old.oid, old=before))
            return
        row = msgspec.structs.replace(
            new,
            create_rev=self._new_revision if old is None else old.create_rev,
            mod_rev=self._new_revision,
            spec_rev=self._new_revision,
        )
        table = self._known(row.table)
        value = table.encode(row)
        self._dress(table, row, value)
        kind = events.CREATE if old is None else events.UPDATE
        self._log(Stored(kind, row.oid, new=value, old=before))

    def _check_restored(self, stored: Stored) -> None:
        old, new = self._decoded(stored.oid, stored.old), self._decoded(stored.oid, stored.new)
        if new is not None:
            self._check_targets(self._known(new.table), new)
        elif old is not None and not self._has_row(stored.oid):
            self._check_unreferred(self._known(old.table), old)

    def _differences(self, stream: Stream, tags: frozenset[int] | None) -> Iterator[_Pair]:
        """Yield (row here, row there) where they differ, in order of oid; None where there is none.

        Both sides are in order of oid, so none has to be held in memory.
        """
        wanted = frozenset(self.registry.by_tag) if tags is None else tags
        there = (row for _, row in stream.rows() if row.table in wanted)
        for old, new in _merge(self._rows_of(wanted), there):
            if old is None or new is None or not _equal(old, new):
                yield old, new

    def _rows_of(self, tags: frozenset[int]) -> Iterator[Row[Any]]:
        for key, value in self._walk(Sub.ROW):
            row = self._decoded(schema.number(key), value)
            if row is not None and row.table in tags:
                yield row

    def _raise_counters(self, stream: Stream) -> None:
        self._use_oid(stream.head.oid)
        for sequence in stream.sequences():
            key = schema.sequence_key(sequence.scope)
            if sequence.last > self.counter(key):
                self._put_sys(key, schema.U64.pack(sequence.last))

    def _item(self, oid: int) -> bytes:
        return self._get(Sub.ROW, schema.U64.pack(oid)) or b""

    def _decoded(self, oid: int, value: bytes) -> Row[Any] | None:
        if not value:
            return None
        tag, packed = tables.decode_tag(oid, value)
        return tables.decode_row(self._known(tag), oid, packed)

    def _known(self, tag: int) -> Table[Any]:
        table = self.registry.by_tag.get(tag)
        if table is None:
            raise FailedPrecondition(
                f"it has rows of table {tag}, which this program does not know; "
                "use the program that made them"
            )
        return table


def _merge(here: Iterable[Row[Any]], there: Iterable[Row[Any]]) -> Iterator[_Pair]:
    """Pair rows by oid; both sides are in order of it."""
    olds, news = iter(here), iter(there)
    old, new = next(olds, None), next(news, None)
    while old is not None or new is not None:
        if new is None or (old is not None and old.oid < new.oid):
            yield old, None
            old = next(olds, None)
        elif old is None or new.oid < old.oid:
            yield None, new
            new = next(news, None)
        else:
            yield old, new
            old, new = next(olds, None), next(news, None)


def _equal(old: Row[Any], new: Row[Any]) -> bool:
    """Say whether two rows differ in nothing but revisions."""
    return (
        msgspec.structs.replace(
            new, create_rev=old.create_rev, mod_rev=old.mod_rev, spec_rev=old.spec_rev
        )
        == old
    )
