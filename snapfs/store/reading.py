"""Read transactions: one consistent state of the store, and every way to look at it.

A transaction belongs to the thread that uses it and ends with its `with` block; iterators read on
in it, so they end with it too. They fetch in batches and hold no cursor while the caller works,
which lets a write transaction change what it walks over: rows gone meanwhile are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import lmdb

from snapfs.model import Compacted, DataLoss, Internal, InvalidArgument
from snapfs.store import changes, events, finding, schema, tables
from snapfs.store.changes import Change
from snapfs.store.edges import Edges
from snapfs.store.environment import Txn
from snapfs.store.events import Event
from snapfs.store.finding import By
from snapfs.store.schema import FORWARD, REVERSE, Sub
from snapfs.store.tables import Registry, Row, Shape, Table

B = TypeVar("B")

_BATCH = 64


class ReadTx:
    """A state of the store that nobody changes while it is looked at."""

    def __init__(self, txn: Txn, dbs: dict[Sub, lmdb._Database], registry: Registry) -> None:
        self._txn = txn
        self._dbs = dbs
        self.registry = registry

    @property
    def revision(self) -> int:
        """Revision of the last update that this transaction sees."""
        return self.counter(schema.REVISION_KEY)

    @property
    def compacted_revision(self) -> int:
        """Events up to and including this revision are gone."""
        return self.counter(schema.COMPACTED_KEY)

    @property
    def uuid(self) -> bytes:
        """What tells this store from every other."""
        return self._sys(schema.UUID_KEY) or b""

    def stored_shapes(self) -> list[Shape]:
        """Return the tables of the store, also those that this process does not know."""
        return tables.decode_shapes(self._sys(schema.TABLES_KEY) or b"\x90")

    def scopes(self) -> Iterator[str]:
        """Yield every scope that ever had a row, in order."""
        for key, _ in self._walk(Sub.SYS, schema.SCOPE_PREFIX):
            yield key[len(schema.SCOPE_PREFIX) :].decode()

    def sequences(self) -> Iterator[tuple[str, int]]:
        """Yield every scope that has a sequence, and the last number given in it."""
        for key, value in self._walk(Sub.SYS, schema.SEQUENCE_PREFIX):
            scope = key[len(schema.SEQUENCE_PREFIX) :].decode()
            yield scope, schema.number(schema.unseal(Sub.SYS, key, value))

    @property
    def format(self) -> int | None:
        """Version of the store's format; None when the file is not a store of ours."""
        return schema.parse_format(self._sys(schema.FORMAT_KEY))

    def get(self, table: Table[B], scope: str, name: str) -> Row[B] | None:
        """Return the row of that name, or None."""
        oid = self._oid_of(table, scope, name)
        if oid is None:
            return None
        row = self.by_oid(table, oid)
        if row is None:
            raise DataLoss(f"{table.name} {name[:64]!r} has no row {oid}; run `snapfs fsck`")
        if table.name_form(row.name) != table.name_form(name):
            raise DataLoss(
                f"{table.name} {name[:64]!r} leads to row {oid}, which is {row.name[:64]!r}; "
                "run `snapfs fsck`"
            )
        return row

    def by_oid(self, table: Table[B], oid: int) -> Row[B] | None:
        """Return the row `oid`, or None when there is none in this table."""
        if not 0 <= oid <= schema.MAX_U64:
            return None
        value = self._get(Sub.ROW, schema.U64.pack(oid))
        if value is None:
            return None
        tag, packed = tables.decode_tag(oid, value)
        return tables.decode_row(table, oid, packed) if tag == table.tag else None

    def rows(
        self, table: Table[B], scope: str, *, prefix: str = "", after: str | None = None
    ) -> Iterator[Row[B]]:
        """Yield the rows of a scope whose names begin with `prefix`, in order of name.

        `after` starts behind that name, whether or not it exists. The order is that of the UTF-8
        bytes, except among names over 400 bytes with the same first 400: theirs is fixed but
        not by name (schema.fit).
        """
        number = self.scope_number(scope)
        if number is None:
            return
        head = schema.name_prefix(table.tag, number)
        wanted = table.name_form(prefix)
        begin = schema.utf8(wanted, "prefix")[: schema.NAME_BYTES]
        start = schema.name_key(table.tag, number, table.name_bytes(after)) if after else None
        for key, value in self._walk(Sub.NAME, head + begin, after=start):
            row = self._named(table, key, value)
            if row is not None and table.name_form(row.name).startswith(wanted):
                yield row

    def oids(self, table: Table[Any], scope: str) -> Iterator[int]:
        """Yield the oids of the rows of a scope, in order of name; reads no row."""
        number = self.scope_number(scope)
        if number is not None:
            for _, value in self._walk(Sub.NAME, schema.name_prefix(table.tag, number)):
                yield schema.number(value)

    def edges(self) -> Edges:
        """Return a reader of edges that is quick at many rows, one after the other.

        For all rows of a large store, see `EdgeTable`.
        """
        return Edges(self._txn, self._dbs[Sub.EDGE])

    def find(self, table: Table[B], index: str, value: bytes, *, scope: str) -> Iterator[Row[B]]:
        """Yield the rows of a scope that the index has under exactly `value`, in order of oid.

        Raises InvalidFindBy at once when the table has no such index.
        """
        return self._find(table, table.index_number(index), value, scope)

    def find_prefix(
        self, table: Table[B], index: str, prefix: bytes, *, scope: str
    ) -> Iterator[Row[B]]:
        """Yield each row of a scope once that the index has under values beginning with `prefix`.

        They come in order of their least such value. Raises InvalidFindBy as `find` does.
        """
        return self._find_prefix(table, table.index_number(index), prefix, scope)

    def select(self, table: Table[B], by: By, *, scope: str) -> Iterator[Row[B]]:
        """Yield the rows of a scope that `by` describes, each once; see finding.py.

        Raises InvalidFindBy at once when it names an index that the table has not.
        """
        return finding.select(self, table, by, scope)

    def referrers(self, oid: int, kind: int) -> Iterator[int]:
        """Yield the oids of the rows with an edge of `kind` to `oid`, in order."""
        for key, _ in self._walk(Sub.EDGE, schema.edge_prefix(REVERSE, oid, kind)):
            yield schema.split_edge_key(key)[3]

    def has_referrers(self, oid: int, kind: int | None = None) -> bool:
        """Say whether any row has an edge to `oid`, of `kind` if one is given."""
        prefix = schema.edge_prefix(REVERSE, oid, kind)
        return next(self._walk(Sub.EDGE, prefix, batch=1), None) is not None

    def references(self, oid: int, kind: int) -> Iterator[int]:
        """Yield the oids to which the row `oid` has an edge of `kind`, in order."""
        for key, _ in self._walk(Sub.EDGE, schema.edge_prefix(FORWARD, oid, kind)):
            yield schema.split_edge_key(key)[3]

    def intents(self) -> Iterator[tuple[int, bytes]]:
        """Yield number and payload of every intent that is not cleared, oldest first."""
        for key, value in self._walk(Sub.INTENT):
            yield schema.number(key), schema.unseal(Sub.INTENT, key, value)

    def last_sequence(self, scope: str) -> int:
        """Return the last number that `WriteTx.sequence` gave in a scope, 0 before the first."""
        return self.counter(schema.sequence_key(scope))

    def expired(self, now_ns: int) -> Iterator[int]:
        """Yield the oids of the rows whose time is `now_ns` or earlier, soonest first."""
        for key, _ in self._walk(Sub.EXP):
            time_ns, oid = schema.split_expiry_key(key)
            if time_ns > now_ns:
                return
            yield oid

    def next_expiry(self, after_ns: int) -> int | None:
        """Return the soonest time after `after_ns` at which a row expires, or None."""
        behind = schema.expiry_key(after_ns, schema.MAX_U64)
        for key, _ in self._walk(Sub.EXP, after=behind, batch=1):
            return schema.split_expiry_key(key)[0]
        return None

    def events(self, after_rev: int) -> Iterator[Event]:
        """Yield what happened after revision `after_rev` and up to this transaction's.

        Raises Compacted when some of it is gone from the log: read the rows anew, then go on from
        `revision`. Raises InvalidArgument for a revision that is still to come.
        """
        self.check_position(after_rev)
        return self._events(after_rev)

    def changes(self, after_rev: int) -> Iterator[Change]:
        """Yield the same as `events`, by revision and not decoded; raises what that raises."""
        self.check_position(after_rev)
        return changes.from_log(self._walk(Sub.LOG, after=_behind(after_rev)))

    def check_position(self, after_rev: int) -> None:
        """Raise Compacted or InvalidArgument when the log cannot be read from this revision."""
        if after_rev > self.revision or after_rev < 0:
            raise InvalidArgument(
                f"revision {after_rev} is still to come; the store is at {self.revision}"
            )
        if after_rev < self.compacted_revision:
            raise Compacted(
                f"events after revision {after_rev} are gone up to {self.compacted_revision}; "
                "read the rows anew and go on from the revision of that read"
            )

    def items(self, sub: Sub) -> Iterator[tuple[bytes, bytes]]:
        """Yield the raw keys and values of a sub-database; for checks and repair only."""
        return self._walk(sub)

    def item(self, sub: Sub, key: bytes) -> bytes | None:
        """Return a raw value, or None; for checks and repair only."""
        return self._get(sub, key)

    def count(self, sub: Sub) -> int:
        """Return the number of keys in a sub-database."""
        try:
            return self._txn.stat(self._dbs[sub])["entries"]
        except lmdb.Error as error:
            raise _ended(error) from error

    def _find(self, table: Table[B], which: int, value: bytes, scope: str) -> Iterator[Row[B]]:
        number = self.scope_number(scope)
        if number is None:
            return
        head = schema.index_prefix(table.tag, which, number, value)
        key_of = table.indexes[which].key
        for key, _ in self._walk(Sub.IDX, head):
            if len(key) != len(head) + 8:
                continue  # a longer value that goes on with 00
            row = self.by_oid(table, schema.number(key[-8:]))
            if row is not None and value in key_of(row.body):
                yield row

    def _find_prefix(
        self, table: Table[B], which: int, prefix: bytes, scope: str
    ) -> Iterator[Row[B]]:
        number = self.scope_number(scope)
        if number is None:
            return
        head = schema.index_values_prefix(table.tag, which, number, prefix)
        key_of = table.indexes[which].key
        for key, _ in self._walk(Sub.IDX, head):
            row = self.by_oid(table, schema.number(key[-8:]))
            if row is None:
                continue
            wanted = [schema.fit(v) + b"\0" for v in key_of(row.body) if v.startswith(prefix)]
            if wanted and schema.split_index_key(key)[3] + b"\0" == min(wanted):
                yield row  # at its least value only, so once

    def _events(self, after_rev: int) -> Iterator[Event]:
        for key, value in self._walk(Sub.LOG, after=_behind(after_rev)):
            event = events.decode(self.registry, key, value)
            if event is not None:
                yield event

    def _named(self, table: Table[B], key: bytes, value: bytes) -> Row[B] | None:
        """Return the row that a name leads to, or None when it is gone since the name was read."""
        oid = schema.number(value)
        row = self.by_oid(table, oid)
        if row is not None and schema.fit(table.name_bytes(row.name)) == key[schema.NAME_AT :]:
            return row
        if self._get(Sub.NAME, key) != value:
            return None
        raise DataLoss(f"name {key.hex()} leads to row {oid}, which is another; run `snapfs fsck`")

    def _oid_of(self, table: Table[Any], scope: str, name: str) -> int | None:
        number = self.scope_number(scope)
        if number is None:
            return None
        value = self._get(Sub.NAME, schema.name_key(table.tag, number, table.name_bytes(name)))
        return None if value is None else schema.number(value)

    def scope_number(self, scope: str) -> int | None:
        """Return the number that stands for a scope in keys, or None when it has no rows yet."""
        payload = self._sys(schema.scope_key(scope))
        return None if payload is None else schema.unpack(schema.U32, payload)[0]

    def counter(self, key: bytes) -> int:
        """Return a counter of sys; 0 when nothing was counted yet."""
        payload = self._sys(key)
        return 0 if payload is None else schema.number(payload)

    def _sys(self, key: bytes) -> bytes | None:
        value = self._get(Sub.SYS, key)
        return None if value is None else schema.unseal(Sub.SYS, key, value)

    def _get(self, sub: Sub, key: bytes) -> bytes | None:
        try:
            return self._txn.get(key, db=self._dbs[sub])
        except lmdb.Error as error:
            raise _ended(error) from error

    def _walk(
        self, sub: Sub, prefix: bytes = b"", *, after: bytes | None = None, batch: int = _BATCH
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield the items whose keys begin with `prefix` and, if given, lie behind `after`."""
        last = after if after is not None and after > prefix else None
        while True:
            items = self._fetch(sub, prefix, last, batch)
            yield from items
            if len(items) < batch:
                return
            last = items[-1][0]

    def _fetch(
        self, sub: Sub, prefix: bytes, last: bytes | None, batch: int
    ) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = []
        try:
            with self._txn.cursor(db=self._dbs[sub]) as cursor:
                start = prefix if last is None else last
                there = cursor.set_range(start) if start else cursor.first()
                if there and cursor.key() == last:
                    there = cursor.next()
                while there and len(found) < batch:
                    key, value = cursor.item()
                    if not key.startswith(prefix):
                        break
                    found.append((key, value))
                    there = cursor.next()
        except lmdb.Error as error:
            raise _ended(error) from error
        return found


def _behind(revision: int) -> bytes:
    """Return a key behind the last event of `revision` in the log."""
    return schema.log_key(revision, (1 << 32) - 1)


def _ended(error: lmdb.Error) -> Internal | DataLoss:
    if isinstance(error, lmdb.CorruptedError | lmdb.PageNotFoundError):
        return DataLoss(f"the store's data file is damaged ({error}); run `snapfs fsck`")
    return Internal(f"a transaction was used after its end, or the store closed ({error})")
