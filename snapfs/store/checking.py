"""Verifying every invariant that schema.py states; nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapfs.model import DataLoss
from snapfs.store import events, inspection, schema, tables
from snapfs.store.reading import ReadTx
from snapfs.store.schema import FORWARD, REVERSE, Sub
from snapfs.store.tables import Row, Table

MAX_PROBLEMS = 1000
"""A store with more is not listed further."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is not as schema.py says."""

    where: str
    """The sub-database, or "pages" for the data file itself."""
    key: str
    """Its key in hexadecimal; empty for the data file."""
    what: str


def check_pages(path: Path) -> list[Problem]:
    """Verify the pages of the data file in `path`, without LMDB."""
    try:
        return [Problem("pages", "", text) for text in inspection.structure_problems(path)]
    except DataLoss as error:
        return [Problem("pages", "", str(error))]


def check(tx: ReadTx) -> list[Problem]:
    """Verify every sub-database as `tx` sees it; at most MAX_PROBLEMS are listed."""
    return _Check(tx).run()


class _Check:
    def __init__(self, tx: ReadTx) -> None:
        self._tx = tx
        self._problems: list[Problem] = []
        self._scopes: set[int] = set()
        self._unique = b""
        """The last entry of a unique index, without its oid."""
        self._next_event = (0, 0)

    def run(self) -> list[Problem]:
        steps: dict[Sub, Callable[[bytes, bytes], None]] = {
            Sub.SYS: self._sys,
            Sub.ROW: self._row,
            Sub.NAME: self._name,
            Sub.IDX: self._index,
            Sub.EDGE: self._edge,
            Sub.LOG: self._event,
            Sub.EXP: self._expiry,
            Sub.INTENT: self._intent,
            Sub.HIST: self._history,
        }
        with self._saying(Sub.SYS, b""):
            self._counters()
            self._next_event = (self._tx.compacted_revision + 1, 0)
        for sub, step in steps.items():
            for key, value in self._tx.items(sub):
                with self._saying(sub, key):
                    step(key, value)
                if len(self._problems) >= MAX_PROBLEMS:
                    return self._problems
        with self._saying(Sub.LOG, b""):
            self._last_event()
        return self._problems

    @contextmanager
    def _saying(self, sub: Sub, key: bytes) -> Iterator[None]:
        try:
            yield
        except DataLoss as error:
            self._say(sub, key, str(error))

    def _say(self, sub: Sub, key: bytes, what: str) -> None:
        self._problems.append(Problem(sub.name.lower(), key.hex(), what))

    def _has(self, sub: Sub, key: bytes) -> bool:
        return self._tx.item(sub, key) is not None

    def _counters(self) -> None:
        if self._tx.format is None:
            self._say(Sub.SYS, schema.FORMAT_KEY, "the format is missing")
        if self._tx.compacted_revision > self._tx.revision:
            self._say(Sub.SYS, schema.COMPACTED_KEY, "is above the revision")

    def _sys(self, key: bytes, value: bytes) -> None:
        payload = schema.unseal(Sub.SYS, key, value)
        if not key.startswith(schema.SCOPE_PREFIX):
            return
        number = int.from_bytes(payload)
        if number in self._scopes or not 0 < number <= self._tx.counter(schema.SCOPES_KEY):
            self._say(Sub.SYS, key, f"scope number {number} is used twice or was never given")
        self._scopes.add(number)

    def _row(self, key: bytes, value: bytes) -> None:
        found = self._decode(schema.number(key), value)
        if found is None:
            return
        table, row = found
        if not 0 < row.create_rev <= row.spec_rev <= row.mod_rev <= self._tx.revision:
            self._say(Sub.ROW, key, "its revisions are out of order")
        if row.oid > self._tx.counter(schema.OID_KEY):
            self._say(Sub.ROW, key, "its oid was never given")
        self._row_edges(key, table, row)
        if row.expires_ns is not None and not self._has(
            Sub.EXP, schema.expiry_key(row.expires_ns, row.oid)
        ):
            self._say(Sub.ROW, key, "its expiry is missing")
        scope = self._tx.scope_number(row.scope)
        if scope is None:
            self._say(Sub.ROW, key, f"its scope {row.scope!r} has no number")
        else:
            self._row_in_scope(key, table, row, scope)

    def _row_in_scope(self, key: bytes, table: Table[Any], row: Row[Any], scope: int) -> None:
        if (
            self._tx.item(Sub.NAME, schema.name_key(table.tag, scope, table.name_bytes(row.name)))
            != key
        ):
            self._say(Sub.ROW, key, f"{table.name} {row.name[:64]!r} is not found by its name")
        for which, value in table.index_values(row.body):
            if not self._has(Sub.IDX, schema.index_key(table.tag, which, scope, value, row.oid)):
                self._say(Sub.ROW, key, f"is not in its index {table.indexes[which].name}")

    def _row_edges(self, key: bytes, table: Table[Any], row: Row[Any]) -> None:
        for (kind, target), strong in table.edges(row.body).items():
            edge = schema.edge_key(FORWARD, row.oid, kind, target)
            if self._tx.item(Sub.EDGE, edge) != (schema.STRONG if strong else schema.WEAK):
                self._say(Sub.ROW, key, f"its edge of kind {kind} to row {target} is missing")
            if strong and not self._has(Sub.ROW, schema.U64.pack(target)):
                self._say(Sub.ROW, key, f"refers to row {target}, which does not exist")

    def _decode(self, oid: int, value: bytes) -> tuple[Table[Any], Row[Any]] | None:
        """Return the row in `value` with its table; None when only another program knows it."""
        tag, packed = tables.decode_tag(oid, value)
        table = self._tx.registry.by_tag.get(tag)
        return (table, tables.decode_row(table, oid, packed)) if table else None

    def _owner(self, sub: Sub, key: bytes, oid: int) -> tuple[Table[Any], Row[Any]] | None:
        """Return the row that a derived row belongs to; None when there is nothing to compare.

        Says so when there is no such row. An unreadable one is reported at its own place.
        """
        value = self._tx.item(Sub.ROW, schema.U64.pack(oid))
        if value is None:
            self._say(sub, key, f"belongs to row {oid}, which does not exist")
            return None
        try:
            return self._decode(oid, value)
        except DataLoss:
            return None

    def _name(self, key: bytes, value: bytes) -> None:
        oid = schema.number(value)
        found = self._owner(Sub.NAME, key, oid)
        if found is None:
            return
        table, row = found
        expected = (
            table.tag,
            self._tx.scope_number(row.scope),
            schema.fit(table.name_bytes(row.name)),
        )
        if schema.split_name_key(key) != expected:
            self._say(Sub.NAME, key, f"leads to row {oid}, which has another name")

    def _index(self, key: bytes, _: bytes) -> None:
        tag, which, scope, fitted, oid = schema.split_index_key(key)
        found = self._owner(Sub.IDX, key, oid)
        if found is None:
            return
        table, row = found
        values = {(number, schema.fit(raw)) for number, raw in table.index_values(row.body)}
        here = (tag, scope) == (table.tag, self._tx.scope_number(row.scope))
        if not here or (which, fitted) not in values:
            self._say(Sub.IDX, key, f"row {oid} has no such value")
        elif table.indexes[which].unique:
            if self._unique == key[:-8]:
                self._say(Sub.IDX, key, "a unique value has two rows")
            self._unique = key[:-8]

    def _edge(self, key: bytes, strength: bytes) -> None:
        direction, near, kind, far = schema.split_edge_key(key)
        twin = schema.edge_key(FORWARD if direction == REVERSE else REVERSE, far, kind, near)
        if self._tx.item(Sub.EDGE, twin) != strength:
            self._say(Sub.EDGE, key, "its other direction is missing or differs")
        source, target = (near, far) if direction == FORWARD else (far, near)
        found = self._owner(Sub.EDGE, key, source)
        if found is None:
            return
        table, row = found
        if table.edges(row.body).get((kind, target)) is not (strength == schema.STRONG):
            self._say(Sub.EDGE, key, f"row {source} does not refer so to row {target}")

    def _event(self, key: bytes, value: bytes) -> None:
        found = schema.split_log_key(key)
        if found != self._next_event:
            self._say(Sub.LOG, key, f"event {found} where {self._next_event} should be")
        self._next_event = (found[0], found[1] + 1)
        stored = events.decode_stored(key, value)
        events.decode(self._tx.registry, key, value)
        if stored.kind == events.COMMIT:
            self._next_event = (found[0] + 1, 0)

    def _last_event(self) -> None:
        if self._next_event != (self._tx.revision + 1, 0):
            self._say(
                Sub.LOG,
                b"",
                f"ends before event {self._next_event}; the store is at {self._tx.revision}",
            )

    def _expiry(self, key: bytes, _: bytes) -> None:
        time_ns, oid = schema.split_expiry_key(key)
        found = self._owner(Sub.EXP, key, oid)
        if found is not None and found[1].expires_ns != time_ns:
            self._say(Sub.EXP, key, f"row {oid} expires at another time")

    def _intent(self, key: bytes, value: bytes) -> None:
        if schema.number(key) > self._tx.counter(schema.INTENT_KEY):
            self._say(Sub.INTENT, key, "its number was never given")
        schema.unseal(Sub.INTENT, key, value)

    def _history(self, key: bytes, _: bytes) -> None:
        self._say(Sub.HIST, key, "this format has no history")
