"""Verifying every invariant that schema.py states; nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
        self._scopes: dict[int, str] = {}

    def run(self) -> list[Problem]:
        steps: tuple[Callable[[], None], ...] = (
            self._sys,
            self._rows,
            self._names,
            self._indexes,
            self._edges,
            self._log,
            self._expiries,
            self._intents,
            self._history,
        )
        for step in steps:
            step()
        return self._problems[:MAX_PROBLEMS]

    def _say(self, sub: Sub, key: bytes, what: str) -> None:
        self._problems.append(Problem(sub.name.lower(), key.hex(), what))

    def _items(self, sub: Sub) -> Iterator[tuple[bytes, bytes]]:
        for item in self._tx.items(sub):
            if len(self._problems) >= MAX_PROBLEMS:
                return
            yield item

    def _has(self, sub: Sub, key: bytes) -> bool:
        return self._tx.item(sub, key) is not None

    def _sys(self) -> None:
        for key, value in self._items(Sub.SYS):
            try:
                payload = schema.unseal(Sub.SYS, key, value)
            except DataLoss as error:
                self._say(Sub.SYS, key, str(error))
                continue
            if key.startswith(schema.SCOPE_PREFIX):
                self._scope(key, payload)
        if self._tx.format is None:
            self._say(Sub.SYS, schema.FORMAT_KEY, "the format is missing")
        if self._tx.compacted_revision > self._tx.revision:
            self._say(Sub.SYS, schema.COMPACTED_KEY, "is above the revision")

    def _scope(self, key: bytes, payload: bytes) -> None:
        number = int.from_bytes(payload)
        if number in self._scopes or not 0 < number <= self._tx.counter(schema.SCOPES_KEY):
            self._say(Sub.SYS, key, f"scope number {number} is used twice or was never given")
        self._scopes[number] = key[len(schema.SCOPE_PREFIX) :].decode("utf-8", "replace")

    def _rows(self) -> None:
        for key, value in self._items(Sub.ROW):
            found = self._decode(Sub.ROW, key, value)
            if found is not None:
                self._row(key, *found)

    def _decode(self, sub: Sub, key: bytes, value: bytes) -> tuple[Table[Any], Row[Any]] | None:
        """Return the row in `value` with its table, or None after saying why not."""
        try:
            oid = schema.U64.unpack(key)[0]
            tag, packed = tables.decode_tag(oid, value)
            table = self._tx.registry.by_tag.get(tag)
            if table is None:
                return None  # of a program that knows more tables: only it can judge
            return table, tables.decode_row(table, oid, packed)
        except DataLoss as error:
            self._say(sub, key, str(error))
            return None

    def _row(self, key: bytes, table: Table[Any], row: Row[Any]) -> None:
        if not 0 < row.create_rev <= row.spec_rev <= row.mod_rev <= self._tx.revision:
            self._say(Sub.ROW, key, "its revisions are out of order")
        if row.oid > self._tx.counter(schema.OID_KEY):
            self._say(Sub.ROW, key, "its oid was never given")
        scope = self._tx.scope_number(row.scope)
        if scope is None:
            self._say(Sub.ROW, key, f"its scope {row.scope!r} has no number")
            return
        name = schema.name_key(table.tag, scope, row.name.encode())
        if self._tx.item(Sub.NAME, name) != key:
            self._say(Sub.ROW, key, f"{table.name} {row.name[:64]!r} is not found by its name")
        for which, value in table.index_values(row.body):
            entry = schema.index_key(table.tag, which, scope, value, row.oid)
            if not self._has(Sub.IDX, entry):
                self._say(Sub.ROW, key, f"is not in its index {table.indexes[which].name}")
        self._row_edges(key, table, row)
        if row.expires_ns is not None and not self._has(
            Sub.EXP, schema.expiry_key(row.expires_ns, row.oid)
        ):
            self._say(Sub.ROW, key, "its expiry is missing")

    def _row_edges(self, key: bytes, table: Table[Any], row: Row[Any]) -> None:
        for (kind, target), strong in table.edges(row.body).items():
            edge = schema.edge_key(FORWARD, row.oid, kind, target)
            strength = schema.STRONG if strong else schema.WEAK
            if self._tx.item(Sub.EDGE, edge) != strength:
                self._say(Sub.ROW, key, f"its edge of kind {kind} to row {target} is missing")
            if strong and not self._has(Sub.ROW, schema.U64.pack(target)):
                self._say(Sub.ROW, key, f"refers to row {target}, which does not exist")

    def _read_row(self, oid: int) -> tuple[Table[Any], Row[Any]] | None:
        """Return a row that derived rows speak of; None when it is unreadable or not ours."""
        value = self._tx.item(Sub.ROW, schema.U64.pack(oid))
        if value is None:
            return None
        try:
            tag, packed = tables.decode_tag(oid, value)
            table = self._tx.registry.by_tag.get(tag)
            return (table, tables.decode_row(table, oid, packed)) if table else None
        except DataLoss:
            return None

    def _orphan(self, sub: Sub, key: bytes, oid: int) -> bool:
        """Say, and return True, when a derived row belongs to no row."""
        if self._has(Sub.ROW, schema.U64.pack(oid)):
            return False
        self._say(sub, key, f"belongs to row {oid}, which does not exist")
        return True

    def _names(self) -> None:
        for key, value in self._items(Sub.NAME):
            oid = int.from_bytes(value)
            if self._orphan(Sub.NAME, key, oid):
                continue
            tag, scope, fitted = schema.split_name_key(key)
            found = self._read_row(oid)
            if found is None:
                continue
            table, row = found
            if (table.tag, self._tx.scope_number(row.scope), schema.fit(row.name.encode())) != (
                tag,
                scope,
                fitted,
            ):
                self._say(Sub.NAME, key, f"leads to row {oid}, which has another name")

    def _indexes(self) -> None:
        unique: tuple[bytes, bool] = (b"", False)
        for key, _ in self._items(Sub.IDX):
            _, which, _, fitted, oid = schema.split_index_key(key)
            if self._orphan(Sub.IDX, key, oid):
                continue
            found = self._read_row(oid)
            if found is None:
                continue
            table, row = found
            if (which, fitted) not in {
                (number, schema.fit(value)) for number, value in table.index_values(row.body)
            }:
                self._say(Sub.IDX, key, f"row {oid} has no such value")
                continue
            if table.indexes[which].unique and unique[0] == key[:-8]:
                self._say(Sub.IDX, key, "a unique value has two rows")
            unique = (key[:-8], True)

    def _edges(self) -> None:
        for key, strength in self._items(Sub.EDGE):
            direction, near, kind, far = schema.split_edge_key(key)
            twin = schema.edge_key(FORWARD if direction == REVERSE else REVERSE, far, kind, near)
            if self._tx.item(Sub.EDGE, twin) != strength:
                self._say(Sub.EDGE, key, "its other direction is missing or differs")
            source, target = (near, far) if direction == FORWARD else (far, near)
            if self._orphan(Sub.EDGE, key, source):
                continue
            found = self._read_row(source)
            if found is None:
                continue
            table, row = found
            if table.edges(row.body).get((kind, target)) is not (strength == schema.STRONG):
                self._say(Sub.EDGE, key, f"row {source} does not refer so to row {target}")

    def _log(self) -> None:
        expected = (self._tx.compacted_revision + 1, 0)
        for key, value in self._items(Sub.LOG):
            found = schema.split_log_key(key)
            if found != expected:
                self._say(Sub.LOG, key, f"event {found} where {expected} should be")
            try:
                stored = events.decode_stored(key, value)
                events.decode(self._tx.registry, key, value)
            except DataLoss as error:
                self._say(Sub.LOG, key, str(error))
                return
            ends = stored.kind == events.COMMIT
            expected = (found[0] + 1, 0) if ends else (found[0], found[1] + 1)
        if expected != (self._tx.revision + 1, 0):
            self._say(Sub.LOG, b"", f"ends before {expected}; the store is at {self._tx.revision}")

    def _expiries(self) -> None:
        for key, _ in self._items(Sub.EXP):
            time_ns, oid = schema.split_expiry_key(key)
            if self._orphan(Sub.EXP, key, oid):
                continue
            found = self._read_row(oid)
            if found is not None and found[1].expires_ns != time_ns:
                self._say(Sub.EXP, key, f"row {oid} expires at another time")

    def _intents(self) -> None:
        for key, value in self._items(Sub.INTENT):
            if int.from_bytes(key) > self._tx.counter(schema.INTENT_KEY):
                self._say(Sub.INTENT, key, "its number was never given")
            try:
                schema.unseal(Sub.INTENT, key, value)
            except DataLoss as error:
                self._say(Sub.INTENT, key, str(error))

    def _history(self) -> None:
        for key, _ in self._items(Sub.HIST):
            self._say(Sub.HIST, key, "this format has no history")
