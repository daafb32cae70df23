"""Write transactions: the operations on rows, intents and sequences.

A write transaction exists only inside a function given to `Store.update`. That function must be
pure: it may run more than once before it takes effect, and what it must do outside the store goes
through an intent. An operation that raises has written nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import lmdb
import msgspec

from snapfs.model import (
    AlreadyExists,
    Conflict,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    TooLarge,
    check_name,
)
from snapfs.store import events, schema
from snapfs.store.changes import Change
from snapfs.store.environment import Txn
from snapfs.store.events import Stored
from snapfs.store.restoring import Restorer
from snapfs.store.schema import Sub
from snapfs.store.tables import MAX_ROW_BYTES, Registry, Row, Table

B = TypeVar("B")
T = TypeVar("T")


class WriteTx(Restorer):
    """A state of the store that this update changes; it sees its own changes."""

    def __init__(
        self,
        txn: Txn,
        dbs: dict[Sub, lmdb._Database],
        registry: Registry,
        *,
        now_ns: int,
        has_room: bool = True,
        nest: Callable[[Txn], Txn],
    ) -> None:
        super().__init__(txn, dbs, registry)
        self._nest = nest
        self._has_room = has_room
        self.now_ns = now_ns
        """The time of this update; it stamps every row that it writes."""

    def create(
        self,
        table: Table[B],
        scope: str,
        name: str,
        body: B,
        *,
        oid: int | None = None,
        created_ns: int | None = None,
    ) -> Row[B]:
        """Create a row and return it; its oid is the next free one unless given.

        Raises AlreadyExists when the name, the oid or a unique index's value is taken, NotFound
        for a strong reference to nothing, InvalidArgument for a bad name, scope or body,
        ResourceExhausted when the disk has room for removals only.
        """
        _check_name(table, name)
        self._check_body(table, body)
        self._check_name_free(table, scope, name)
        self._check_room(table, name)
        row = Row(
            table=table.tag,
            oid=self._free_oid(oid),
            scope=scope,
            name=name,
            create_rev=self._new_revision,
            mod_rev=self._new_revision,
            spec_rev=self._new_revision,
            created_ns=self.now_ns if created_ns is None else created_ns,
            updated_ns=self.now_ns,
            expires_ns=None,
            body=body,
        )
        values, edges = table.index_values(body), table.edges(body)
        self._check_unique(table, row, values)
        self._check_targets(table, row)
        value = table.encode(row)
        self._use_oid(row.oid)
        self._put(Sub.ROW, schema.U64.pack(row.oid), value)
        self._change_name(table, None, row)
        self._change_indexes(table, row, set(), values)
        self._change_edges(row.oid, {}, edges)
        self._log(Stored(events.CREATE, row.oid, new=value))
        return row

    def update(
        self,
        row: Row[B],
        body: B,
        *,
        name: str | None = None,
        spec: bool = True,
        created_ns: int | None = None,
        expect_mod_rev: int | None = None,
        expect_spec_rev: int | None = None,
    ) -> Row[B]:
        """Give the row another body, and another name if one is given; return it as it is now.

        Only `row.oid` is taken from `row`: what is stored counts. `spec=False` leaves spec_rev, for
        a change of status; so who changes the spec and gives `expect_spec_rev` is not disturbed by
        those. Raises NotFound when the row is gone, Conflict when one of the expected revisions is
        not the row's any more, and what `create` raises.
        """
        table: Table[B] = self._table_of(row)
        old, old_value = self._current(table, row.oid, row.name)
        _check_revision(table, old, old.mod_rev, expect_mod_rev)
        _check_revision(table, old, old.spec_rev, expect_spec_rev)
        self._check_body(table, body)
        changed = msgspec.structs.replace(
            old,
            name=old.name if name is None else name,
            mod_rev=self._new_revision,
            spec_rev=self._new_revision if spec else old.spec_rev,
            created_ns=old.created_ns if created_ns is None else created_ns,
            updated_ns=self.now_ns,
            body=body,
        )
        renamed = changed.name != old.name
        if renamed:
            _check_name(table, changed.name)
            self._check_name_free(table, old.scope, changed.name, own=old.oid)
        old_values, new_values = table.index_values(old.body), table.index_values(body)
        self._check_unique(table, changed, new_values - old_values)
        self._check_targets(table, changed)
        self._replace(table, old_value, changed)
        if renamed:
            self._change_name(table, old, changed)
        self._change_indexes(table, changed, old_values, new_values)
        self._change_edges(old.oid, table.edges(old.body), table.edges(body))
        return changed

    def delete(self, row: Row[Any]) -> None:
        """Delete the row and all that the core keeps for it.

        Raises NotFound when it is gone, FailedPrecondition when other rows refer to it strongly.
        """
        table = self._table_of(row)
        old, old_value = self._current(table, row.oid, row.name)
        self._check_unreferred(table, old)
        self._strip(table, old)
        self._remove(Sub.ROW, schema.U64.pack(old.oid))
        self._log(Stored(events.DELETE, old.oid, old=old_value))

    def expire_at(self, oid: int, time_ns: int | None) -> None:
        """Set or clear (None) the time from which `expired` yields the row; nobody deletes it yet.

        A change of status: it gives the row a new mod_rev. Raises NotFound when there is no row.
        """
        if time_ns is not None and not 0 <= time_ns <= schema.MAX_U64:
            raise InvalidArgument(f"expiry {time_ns} is not a time in nanoseconds since 1970")
        table = self._table_at(oid)
        if table is None:
            raise NotFound(f"row {oid} does not exist")
        old, old_value = self._current(table, oid, "")
        changed = msgspec.structs.replace(
            old, expires_ns=time_ns, mod_rev=self._new_revision, updated_ns=self.now_ns
        )
        self._replace(table, old_value, changed)
        if old.expires_ns is not None:
            self._remove(Sub.EXP, schema.expiry_key(old.expires_ns, oid))
        if time_ns is not None:
            self._put(Sub.EXP, schema.expiry_key(time_ns, oid), b"")

    def put_intent(self, payload: bytes) -> int:
        """Record a side effect that is to be done after this update; return its number."""
        if len(payload) > MAX_ROW_BYTES:
            raise TooLarge(f"an intent of {len(payload)} bytes; at most {MAX_ROW_BYTES} fit")
        number = self._count(schema.INTENT_KEY)
        key = schema.U64.pack(number)
        self._put(Sub.INTENT, key, schema.seal(key, payload))
        return number

    def clear_intent(self, number: int) -> None:
        """Forget an intent whose side effect is done. Raises NotFound when it is not there."""
        if not self._remove(Sub.INTENT, schema.U64.pack(number)):
            raise NotFound(f"intent {number} does not exist; it may have been cleared before")

    def sequence(self, scope: str) -> int:
        """Return the scope's next number, from 1; one whose update took effect never recurs."""
        return self._count(schema.sequence_key(scope))

    def atomic(self, function: Callable[[WriteTx], T]) -> T:
        """Run `function` on this transaction; when it raises, nothing that it did remains."""
        outer = (self._txn, self._wrote, len(self._logged), self.bytes_changed)
        done = False
        self._txn = self._begin_nested()
        try:
            result = function(self)
            self._commit_nested()
            done = True
            return result
        finally:
            self._txn.abort()
            self._txn = outer[0]
            if not done:
                _, self._wrote, count, self.bytes_changed = outer
                del self._logged[count:]

    def finish(self) -> Change | None:
        """Write the end of this update; return what it changed, None when it wrote nothing.

        Only the writer calls.
        """
        if not self._wrote:
            return None
        change = Change(self._new_revision, tuple(self._logged))
        if not self._jumped:
            self._log(Stored(events.COMMIT))
        self._put_sys(schema.REVISION_KEY, schema.U64.pack(self._new_revision))
        return change

    def _begin_nested(self) -> Txn:
        try:
            return self._nest(self._txn)
        except lmdb.Error as error:
            self.failure = self.failure or error
            raise

    def _commit_nested(self) -> None:
        try:
            self._txn.commit()
        except lmdb.Error as error:
            self.failure = self.failure or error
            raise

    def _table_of(self, row: Row[Any]) -> Table[Any]:
        table = self.registry.by_tag.get(row.table)
        if table is None:
            raise InvalidArgument(
                f"row {row.oid} is of table {row.table}, which was not given to Store.open"
            )
        return table

    def _current(self, table: Table[B], oid: int, name: str) -> tuple[Row[B], bytes]:
        """Return the row as it is stored now, and its value."""
        current = self.by_oid(table, oid)
        value = self._get(Sub.ROW, schema.U64.pack(oid))
        if current is None or value is None:
            raise NotFound(f"{table.name} {name[:64]!r} does not exist any more")
        return current, value

    def _replace(self, table: Table[B], old_value: bytes, row: Row[B]) -> None:
        value = table.encode(row)
        self._put(Sub.ROW, schema.U64.pack(row.oid), value)
        self._log(Stored(events.UPDATE, row.oid, new=value, old=old_value))

    def _check_room(self, table: Table[Any], name: str) -> None:
        if not self._has_room:
            raise ResourceExhausted(
                f"no space for the store to take {table.name} {name[:64]!r}: the disk is full, and "
                "what is left is for removals; free some and repeat"
            )

    def _free_oid(self, oid: int | None) -> int:
        if oid is None:
            return self.counter(schema.OID_KEY) + 1
        if not 0 < oid < schema.MAX_U64:
            raise InvalidArgument(f"oid {oid} is not in 1..2^64-2")
        if self._has_row(oid):
            raise AlreadyExists(f"row {oid} already exists; let the store choose the oid")
        return oid


def _check_name(table: Table[Any], name: str) -> None:
    schema.utf8(check_name(name, f"{table.name} name"), f"{table.name} name")


def _check_revision(table: Table[Any], row: Row[Any], actual: int, expected: int | None) -> None:
    if expected is not None and actual != expected:
        raise Conflict(
            f"{table.name} {row.name[:64]!r} is at revision {actual}, not at {expected}; "
            "read it again and repeat the change",
            expected=expected,
            actual=actual,
        )
