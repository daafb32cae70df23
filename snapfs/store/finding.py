"""What to look for in a table: by oid, by name, by a declared index, by any of several.

A finder is a value; `select` turns it into lookups, never into a walk over the whole table unless
it is `All`. What a table calls an id or a state is an index of it, found with `ByValue` and
`ByValuePrefix`; pairs of key and value that users give to objects are an index made by `custom`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar, assert_never

from snapfs.model import InvalidArgument
from snapfs.store.tables import Index, Row, Table

if TYPE_CHECKING:
    from snapfs.store.reading import ReadTx

B = TypeVar("B")

CUSTOM = "custom"
"""Name of the index that `custom` makes."""


@dataclass(frozen=True, slots=True)
class All:
    """Every row of the scope, in order of name."""


@dataclass(frozen=True, slots=True)
class ByOid:
    oid: int


@dataclass(frozen=True, slots=True)
class ByName:
    """The row of that name; in any case where the table folds it."""

    name: str


@dataclass(frozen=True, slots=True)
class ByNamePrefix:
    prefix: str


@dataclass(frozen=True, slots=True)
class ByValue:
    """The rows that an index has under exactly `value`."""

    index: str
    value: bytes


@dataclass(frozen=True, slots=True)
class ByValuePrefix:
    index: str
    prefix: bytes


@dataclass(frozen=True, slots=True)
class ByCustom:
    """The rows with this pair among their custom ones."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class ByCustomPrefix:
    """The rows with a custom pair of this key whose value begins with `prefix`."""

    key: str
    prefix: str


@dataclass(frozen=True, slots=True)
class Or:
    """The rows that any of `any_of` describes, each once, in the order of the first that does."""

    any_of: tuple[By, ...]


By: TypeAlias = (
    All | ByOid | ByName | ByNamePrefix | ByValue | ByValuePrefix | ByCustom | ByCustomPrefix | Or
)


def custom(pairs: Callable[[B], Iterable[tuple[str, str]]]) -> Index[B]:
    """Return the index over pairs of key and value of a body, none or many, also of one key."""
    return Index(CUSTOM, lambda body: [_pair(key, value) for key, value in pairs(body)])


def select(tx: ReadTx, table: Table[B], by: By, scope: str) -> Iterator[Row[B]]:
    """Yield the rows of `scope` in `table` that `by` describes, each once.

    Raises InvalidFindBy at once, before the first row, when `by` names an index not declared.
    """
    match by:
        case All():
            return tx.rows(table, scope)
        case ByOid(oid):
            return _one(tx.by_oid(table, oid), scope)
        case ByName(name):
            return _one(tx.get(table, scope, name), scope)
        case ByNamePrefix(prefix):
            return tx.rows(table, scope, prefix=prefix)
        case ByValue(index, value):
            return tx.find(table, index, value, scope=scope)
        case ByValuePrefix(index, begin):
            return tx.find_prefix(table, index, begin, scope=scope)
        case ByCustom(key, text):
            return tx.find(table, CUSTOM, _pair(key, text), scope=scope)
        case ByCustomPrefix(key, text):
            return tx.find_prefix(table, CUSTOM, _pair(key, text), scope=scope)
        case Or(any_of):
            return _union([select(tx, table, each, scope) for each in any_of])
        case _:
            assert_never(by)


def _one(row: Row[B] | None, scope: str) -> Iterator[Row[B]]:
    if row is not None and row.scope == scope:
        yield row


def _union(parts: Iterable[Iterator[Row[B]]]) -> Iterator[Row[B]]:
    seen: set[int] = set()
    for part in parts:
        for row in part:
            if row.oid not in seen:
                seen.add(row.oid)
                yield row


def _pair(key: str, value: str) -> bytes:
    if "\0" in key:
        raise InvalidArgument(f"custom key {key!r} has a zero byte in it; leave it out")
    return f"{key}\0{value}".encode()
