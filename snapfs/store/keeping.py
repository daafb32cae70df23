"""What write transactions are made of: single writes, and what the core keeps for a row.

Names, indexes, edges and events are written here, in the transaction of the row's own change, and
nowhere else. The `check_` methods refuse and write nothing; the others write and refuse nothing,
so that a refused operation leaves its transaction as it was.
"""

from __future__ import annotations

from typing import Any, TypeVar

import lmdb

from snapfs.model import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from snapfs.store import events, schema
from snapfs.store.environment import Txn
from snapfs.store.events import Stored
from snapfs.store.reading import ReadTx
from snapfs.store.schema import FORWARD, REVERSE, Sub
from snapfs.store.tables import Registry, Row, Table

B = TypeVar("B")

_SHOWN = 3


class Keeper(ReadTx):
    """A read transaction that can also write, one key or one derived row at a time."""

    def __init__(self, txn: Txn, dbs: dict[Sub, lmdb._Database], registry: Registry) -> None:
        super().__init__(txn, dbs, registry)
        self._new_revision = self.revision + 1
        self._logged: list[Stored] = []
        self.bytes_changed = 0
        """Bytes of all rows, new and old, that this update changed so far."""
        self._wrote = False
        self._jumped = False
        self.failure: lmdb.Error | None = None
        """First error of LMDB in a write; the update fails whatever its function made of it."""

    @property
    def changes_made(self) -> int:
        """How many rows this update created, changed or deleted so far."""
        return len(self._logged)

    def _check_body(self, table: Table[B], body: B) -> None:
        if not isinstance(body, table.body):
            raise InvalidArgument(
                f"a {table.name} has a {table.body.__name__}, not a {type(body).__name__}"
            )
        if table.validate is not None:
            table.validate(body)

    def _check_name_free(self, table: Table[Any], scope: str, name: str, own: int = 0) -> None:
        """Raise AlreadyExists when another row than `own` has the name."""
        if self._oid_of(table, scope, name) not in (None, own):
            raise AlreadyExists(f"{table.name} {name[:64]!r} already exists; choose another name")

    def _check_unique(self, table: Table[B], row: Row[B], new: set[tuple[int, bytes]]) -> None:
        for which, value in new:
            index = table.indexes[which]
            if not index.unique:
                continue
            for other in self.find(table, index.name, value, scope=row.scope):
                if other.oid != row.oid:
                    raise AlreadyExists(
                        f"{table.name} {row.name[:64]!r}: its {index.name} {value[:64]!r} is "
                        f"taken by {other.name[:64]!r}; choose another"
                    )

    def _check_targets(self, table: Table[Any], row: Row[Any]) -> None:
        for (_, target), strong in table.edges(row.body).items():
            if not 0 < target <= schema.MAX_U64:
                raise InvalidArgument(f"{table.name} {row.name[:64]!r} refers to row {target}")
            if strong and target != row.oid and not self._has_row(target):
                raise NotFound(
                    f"{table.name} {row.name[:64]!r} refers to row {target}, which does not exist"
                )

    def _check_unreferred(self, table: Table[Any], row: Row[Any]) -> None:
        """Raise FailedPrecondition naming the first rows that refer to `row` strongly."""
        found: list[str] = []
        for key, strength in self._walk(Sub.EDGE, schema.edge_prefix(REVERSE, row.oid)):
            referrer = schema.split_edge_key(key)[3]
            if strength == schema.STRONG and referrer != row.oid:
                found.append(self._describe(referrer))
            if len(found) == _SHOWN:
                break
        if found:
            raise FailedPrecondition(
                f"{table.name} {row.name[:64]!r} is in use by {', '.join(found)}; remove that first"
            )

    def _has_row(self, oid: int) -> bool:
        return self._get(Sub.ROW, schema.U64.pack(oid)) is not None

    def _describe(self, oid: int) -> str:
        table = self._table_at(oid)
        row = self.by_oid(table, oid) if table else None
        return f"{table.name} {row.name[:64]!r}" if table and row else f"row {oid}"

    def _table_at(self, oid: int) -> Table[Any] | None:
        """Return the table of the row `oid`, or None when there is no such row."""
        for table in self.registry.by_tag.values():
            if self.by_oid(table, oid) is not None:
                return table
        return None

    def _strip(self, table: Table[B], row: Row[B]) -> None:
        """Remove all that is kept for a row, but not the row."""
        self._change_name(table, row, None)
        self._change_indexes(table, row, table.index_values(row.body), set())
        self._change_edges(row.oid, table.edges(row.body), {})
        if row.expires_ns is not None:
            self._remove(Sub.EXP, schema.expiry_key(row.expires_ns, row.oid))

    def _dress(self, table: Table[B], row: Row[B], value: bytes) -> None:
        """Write a row, which has nothing yet, with all that is kept for it.

        Raises AlreadyExists when its name or a unique value is another row's.
        """
        self._check_body(table, row.body)
        self._check_name_free(table, row.scope, row.name)
        values = table.index_values(row.body)
        self._check_unique(table, row, values)
        self._use_oid(row.oid)
        self._put(Sub.ROW, schema.U64.pack(row.oid), value)
        self._change_name(table, None, row)
        self._change_indexes(table, row, set(), values)
        self._change_edges(row.oid, {}, table.edges(row.body))
        if row.expires_ns is not None:
            self._put(Sub.EXP, schema.expiry_key(row.expires_ns, row.oid), b"")

    def _use_oid(self, oid: int) -> None:
        if oid > self.counter(schema.OID_KEY):
            self._put_sys(schema.OID_KEY, schema.U64.pack(oid))

    def _jump(self, revision: int) -> None:
        """Have this update be `revision`, with no events, and nothing in the log before it."""
        self._wrote = True
        self._jumped = True
        self._new_revision = revision
        self._put_sys(schema.COMPACTED_KEY, schema.U64.pack(revision))

    def _change_name(self, table: Table[Any], old: Row[Any] | None, new: Row[Any] | None) -> None:
        if old is not None:
            self._remove(Sub.NAME, self._name_key(table, old))
        if new is not None:
            self._put(Sub.NAME, self._name_key(table, new), schema.U64.pack(new.oid))

    def _name_key(self, table: Table[Any], row: Row[Any]) -> bytes:
        scope = self._make_scope(row.scope)
        return schema.name_key(table.tag, scope, table.name_bytes(row.name))

    def _change_indexes(
        self,
        table: Table[B],
        row: Row[B],
        old: set[tuple[int, bytes]],
        new: set[tuple[int, bytes]],
    ) -> None:
        if old == new:
            return
        scope = self._make_scope(row.scope)
        for which, value in old - new:
            self._remove(Sub.IDX, schema.index_key(table.tag, which, scope, value, row.oid))
        for which, value in new - old:
            self._put(Sub.IDX, schema.index_key(table.tag, which, scope, value, row.oid), b"")

    def _change_edges(
        self, oid: int, old: dict[tuple[int, int], bool], new: dict[tuple[int, int], bool]
    ) -> None:
        for kind, target in old.keys() - new.keys():
            self._remove(Sub.EDGE, schema.edge_key(FORWARD, oid, kind, target))
            self._remove(Sub.EDGE, schema.edge_key(REVERSE, target, kind, oid))
        for (kind, target), strong in new.items():
            if old.get((kind, target)) == strong:
                continue
            strength = schema.STRONG if strong else schema.WEAK
            self._put(Sub.EDGE, schema.edge_key(FORWARD, oid, kind, target), strength)
            self._put(Sub.EDGE, schema.edge_key(REVERSE, target, kind, oid), strength)

    def _make_scope(self, scope: str) -> int:
        """Return the number of a scope, and give it the next one if it has none."""
        number = self.scope_number(scope)
        if number is None:
            number = self._count(schema.SCOPES_KEY)
            self._put_sys(schema.scope_key(scope), schema.U32.pack(number))
        return number

    def _count(self, key: bytes) -> int:
        number = self.counter(key) + 1
        self._put_sys(key, schema.U64.pack(number))
        return number

    def _log(self, event: Stored) -> None:
        key = schema.log_key(self._new_revision, len(self._logged))
        self._logged.append(event)
        self.bytes_changed += len(event.new) + len(event.old)
        self._put(Sub.LOG, key, events.encode(key, event))

    def _put_sys(self, key: bytes, payload: bytes) -> None:
        self._put(Sub.SYS, key, schema.seal(key, payload))

    def _put(self, sub: Sub, key: bytes, value: bytes) -> None:
        self._wrote = True
        try:
            self._txn.put(key, value, db=self._dbs[sub])
        except lmdb.Error as error:
            self.failure = self.failure or error
            raise

    def _remove(self, sub: Sub, key: bytes) -> bool:
        try:
            removed = self._txn.delete(key, db=self._dbs[sub])
        except lmdb.Error as error:
            self.failure = self.failure or error
            raise
        self._wrote = self._wrote or removed
        return removed
