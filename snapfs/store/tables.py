"""Tables as their owners declare them, rows as they are read, and the codec between.

A table is a tag, a name for messages, the type of its bodies, and what the core keeps for it:
indexes and references. Everything here is pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

import msgspec

from snapfs.model import DataLoss, InvalidArgument, TooLarge
from snapfs.store import schema
from snapfs.store.schema import Sub

B = TypeVar("B")

MAX_ROW_BYTES = 16 * 1024 * 1024
"""Longest stored row; what is larger belongs in a file."""

_encoder = msgspec.msgpack.Encoder()


class InvalidFindBy(InvalidArgument):
    """A search over an index that the table does not declare."""


class Row(msgspec.Struct, Generic[B], frozen=True, array_like=True):
    """One object as a transaction saw it; the order of fields is the order on disk."""

    table: int
    oid: int
    scope: str
    name: str
    create_rev: int
    """Revision that created it."""
    mod_rev: int
    """Revision that last changed anything of it."""
    spec_rev: int
    """Revision that last changed what its owner wants, as opposed to status."""
    created_ns: int
    updated_ns: int
    expires_ns: int | None
    body: B


@dataclass(frozen=True)
class Index(Generic[B]):
    """Rows by a value: `key` says under which values a body is found, exact bytes, none or many.

    `key` must be pure and keep its meaning; a change of the list of indexes is noticed at open
    and the rows are indexed anew, a change inside a function is not. Unique is within a scope.
    """

    name: str
    key: Callable[[B], Iterable[bytes]]
    unique: bool = False


@dataclass(frozen=True)
class Reference(Generic[B]):
    """Edges of a `kind` from a row to the oids that `target` finds in its body.

    The target of a strong reference must exist and cannot be deleted before the referrer. A weak
    one may be left dangling. Kinds are numbers of the whole store, not of one table.
    """

    kind: int
    target: Callable[[B], Iterable[int]]
    strong: bool = True


@dataclass(frozen=True, eq=False)
class Table(Generic[B]):
    """A kind of object. The tag is for ever; `validate` raises InvalidArgument for a bad body.

    `fold_case`: names that differ only in case are one name, found in any case, kept as given.
    """

    tag: int
    name: str
    body: type[B]
    indexes: tuple[Index[B], ...] = ()
    references: tuple[Reference[B], ...] = ()
    validate: Callable[[B], None] | None = None
    fold_case: bool = False
    _tag_bytes: bytes = field(init=False, repr=False, default=b"")

    def __post_init__(self) -> None:
        if not 0 < self.tag <= schema.MAX_TABLE:
            raise InvalidArgument(f"table {self.name}: tag {self.tag} is not in 1..65535")
        if len({index.name for index in self.indexes}) != len(self.indexes):
            raise InvalidArgument(f"table {self.name}: two indexes have one name")
        if len(self.indexes) > schema.MAX_INDEXES:
            raise InvalidArgument(f"table {self.name}: more than 255 indexes")
        object.__setattr__(self, "_tag_bytes", schema.U16.pack(self.tag))

    @cached_property
    def decoder(self) -> msgspec.msgpack.Decoder[Row[B]]:
        return msgspec.msgpack.Decoder(Row[self.body])  # type: ignore[name-defined]

    def encode(self, row: Row[B]) -> bytes:
        """Return the value of `row` in the row sub-database, or raise TooLarge."""
        payload = self._tag_bytes + _encoder.encode(row)
        if len(payload) > MAX_ROW_BYTES:
            raise TooLarge(
                f"{self.name} {row.name[:64]!r} takes {len(payload)} bytes; "
                f"at most {MAX_ROW_BYTES} are allowed"
            )
        return schema.seal(schema.U64.pack(row.oid), payload)

    def name_form(self, name: str) -> str:
        """Return `name` as it is compared: folded where the table's names have no case."""
        return name.casefold() if self.fold_case else name

    def name_bytes(self, name: str) -> bytes:
        """Return `name` as it is compared, in UTF-8; raise InvalidArgument when it has none."""
        return schema.utf8(self.name_form(name), f"{self.name} name")

    def index_number(self, name: str) -> int:
        for number, index in enumerate(self.indexes):
            if index.name == name:
                return number
        known = ", ".join(index.name for index in self.indexes) or "none"
        raise InvalidFindBy(f"table {self.name} has no index {name!r}; it has: {known}")

    def index_values(self, body: B) -> set[tuple[int, bytes]]:
        """Return every (index number, value) under which a row with `body` is found."""
        return {
            (number, value)
            for number, index in enumerate(self.indexes)
            for value in index.key(body)
        }

    def edges(self, body: B) -> dict[tuple[int, int], bool]:
        """Return (kind, target oid) -> strong for a row with `body`; strong wins over weak."""
        found: dict[tuple[int, int], bool] = {}
        for reference in self.references:
            for target in reference.target(body):
                edge = (reference.kind, target)
                found[edge] = reference.strong or found.get(edge, False)
        return found


def decode_tag(oid: int, value: bytes) -> tuple[int, bytes]:
    """Return the table's tag and the msgpack of a stored row, or raise DataLoss."""
    payload = schema.unseal(Sub.ROW, schema.U64.pack(oid), value)
    return schema.unpack(schema.U16, payload[:2])[0], payload[2:]


class _Named(msgspec.Struct, frozen=True, array_like=True):
    """The first fields of a row; decoding ends there."""

    table: int
    oid: int
    scope: str
    name: str


_named = msgspec.msgpack.Decoder(_Named)


def peek(value: bytes) -> tuple[int, bytes]:
    """Return what `decode_tag` does, of a row whose checksum need not be verified."""
    return schema.U16.unpack_from(value, 4)[0], value[6:]


def peek_name(value: bytes) -> str:
    """Return the name of a stored row whose checksum need not be verified."""
    return _named.decode(value[6:]).name


def decode_row(table: Table[B], oid: int, packed: bytes) -> Row[B]:
    """Return the row in `packed`, or raise DataLoss when it is not a row of `table` at `oid`."""
    try:
        row = table.decoder.decode(packed)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataLoss(
            f"row {oid} of table {table.name} does not decode ({error}); run `snapfs fsck`, "
            "or use the version of snapfs that wrote it"
        ) from error
    if row.oid != oid or row.table != table.tag:
        raise DataLoss(
            f"row {oid} of table {table.name} says it is row {row.oid} of table {row.table}; "
            "run `snapfs fsck`"
        )
    return row


class Shape(msgspec.Struct, frozen=True, array_like=True):
    """What the store remembers of a table, to notice that its derived rows must be made anew."""

    tag: int
    name: str
    indexes: list[tuple[str, bool]]
    references: list[tuple[int, bool]]
    fold_case: bool = False
    """Absent in what was written before there were such tables."""


class Registry:
    """The tables that this process knows, by tag."""

    def __init__(self, tables: Sequence[Table[Any]]) -> None:
        self.by_tag: dict[int, Table[Any]] = {}
        for table in tables:
            if table.tag in self.by_tag:
                raise InvalidArgument(
                    f"tables {self.by_tag[table.tag].name} and {table.name} "
                    f"have the same tag {table.tag}"
                )
            self.by_tag[table.tag] = table

    def shapes(self) -> list[Shape]:
        return [
            Shape(
                table.tag,
                table.name,
                [(index.name, index.unique) for index in table.indexes],
                [(reference.kind, reference.strong) for reference in table.references],
                table.fold_case,
            )
            for _, table in sorted(self.by_tag.items())
        ]

    def name_of(self, tag: int) -> str:
        table = self.by_tag.get(tag)
        return table.name if table else f"object of table {tag}"


def encode_shapes(shapes: Sequence[Shape]) -> bytes:
    return _encoder.encode(list(shapes))


def decode_shapes(raw: bytes) -> list[Shape]:
    try:
        return msgspec.msgpack.decode(raw, type=list[Shape])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataLoss(
            f"the list of tables does not decode ({error}); run `snapfs fsck`"
        ) from error
