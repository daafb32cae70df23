"""What a watch is for: which tables, actions and rows. Pure."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from snapfs.model import InvalidArgument
from snapfs.store.changes import Slab
from snapfs.store.events import Event, RowCreated, RowDeleted, RowUpdated
from snapfs.store.tables import Row, Table

B = TypeVar("B")

RowEvent: TypeAlias = RowCreated | RowUpdated | RowDeleted


class Action(enum.Flag):
    """What can happen to a row; the numbers are those of swarmkit's watch API."""

    CREATE = 1
    UPDATE = 2
    DELETE = 4


ANY = Action.CREATE | Action.UPDATE | Action.DELETE


@dataclass(frozen=True)
class Specifier(Generic[B]):
    """Events of one table's rows; all that is given must hold, of an update's row as it is after.

    `prototype` has the fields of the body that must be equal. `checks` run in the thread of the
    watch's consumer; what they raise comes to it. Raises InvalidArgument when no event can match.
    """

    table: Table[B]
    actions: Action = ANY
    scope: str | None = None
    name: str | None = None
    name_prefix: str = ""
    oid: int | None = None
    prototype: Mapping[str, object] = field(default_factory=dict)
    checks: tuple[Callable[[RowEvent], bool], ...] = ()

    def __post_init__(self) -> None:
        if not self.actions:
            raise InvalidArgument(
                f"a watch of {self.table.name} names no action; name create, update or delete"
            )
        if self.name is not None and not self.name.startswith(self.name_prefix):
            raise InvalidArgument(
                f"a watch of {self.table.name}: the name {self.name[:64]!r} does not begin with "
                f"{self.name_prefix[:64]!r}; give one of the two"
            )
        unknown = sorted(self.prototype.keys() - set(self.table.body.__struct_fields__))  # type: ignore[attr-defined]  # bodies are Structs
        if unknown:
            raise InvalidArgument(
                f"a watch of {self.table.name}: it has no field {', '.join(unknown)}"
            )

    def matches(self, event: RowEvent) -> bool:
        row = event.row
        return (
            row.table == self.table.tag
            and bool(_action(event) & self.actions)
            and self.oid in (None, row.oid)
            and self.scope in (None, row.scope)
            and self._matches_name(row)
            and all(getattr(row.body, name) == it for name, it in self.prototype.items())
            and all(check(event) for check in self.checks)
        )

    def _matches_name(self, row: Row[Any]) -> bool:
        form = self.table.name_form
        if self.name is not None and form(self.name) != form(row.name):
            return False
        return form(row.name).startswith(form(self.name_prefix))


class Selection:
    """The events that any of some specifiers is for; all events when there is none."""

    def __init__(self, specifiers: Sequence[Specifier[Any]], *, commits: bool) -> None:
        self._specifiers = tuple(specifiers)
        self._commits = commits

    def of(self, slab: Slab) -> Sequence[Event]:
        """Return what is selected of some changes, in order."""
        if not self._specifiers:
            return slab.all if self._commits else slab.rows
        wanted = {
            number
            for specifier in self._specifiers
            for number in _candidates(slab, specifier)
            if _is_for(specifier, slab.event(number))
        }
        if self._commits:
            wanted.update(slab.commits)
        return slab.pick(sorted(wanted))


def _candidates(slab: Slab, specifier: Specifier[Any]) -> Sequence[int]:
    if specifier.name is not None:
        return slab.of_name(specifier.table, specifier.name)
    return slab.of_table(specifier.table)


def _is_for(specifier: Specifier[Any], event: Event | None) -> bool:
    return isinstance(event, RowEvent) and specifier.matches(event)


def _action(event: RowEvent) -> Action:
    match event:
        case RowCreated():
            return Action.CREATE
        case RowUpdated():
            return Action.UPDATE
        case RowDeleted():
            return Action.DELETE
