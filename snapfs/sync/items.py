"""What travels of a volume set between stores. Pure.

A set, its snapshots and its branches are *items*. An item has fields that never change and *cells*:
fields that may, each with the version of its value. A deleted item has the cell `gone` and keeps
the others, so that a change made elsewhere in ignorance of the deletion is seen to be one.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from snapfs.sync.threeway import Value
from snapfs.sync.versions import NOTHING, Version, join_all

SET = "set"
SNAPSHOT = "snapshot"
BRANCH = "branch"

GONE = "gone"
SETTLED = "settled"
"""Has no value, only a version: of what a person had in sight who settled for a deletion."""
TIP = "tip"
NAME = "name"
ATTRIBUTE = "attributes."
IS_GONE = "1"


class Cell(msgspec.Struct, frozen=True, array_like=True):
    """A field's value, None for absent, and the version of it."""

    value: Value
    version: Version


NO_CELL = Cell(None, NOTHING)


class Item(msgspec.Struct, frozen=True, array_like=True):
    """A set, a snapshot or a branch as one store has it."""

    kind: str
    id: str
    cells: dict[str, Cell]
    parent: str = ""
    """Of a snapshot: id of its parent; empty for a root."""
    creator: str = ""
    created_ns: int = 0
    modified_ns: int = 0
    has_data: bool = False
    """Of a snapshot: the data is in that store."""

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.id}"

    @property
    def is_gone(self) -> bool:
        return self.cell(GONE).value is not None

    def cell(self, name: str) -> Cell:
        """Return a cell; one that the item has not is absent and never was otherwise."""
        return self.cells.get(name, NO_CELL)

    @property
    def past(self) -> Version:
        """A version that has all the changes of its cells in it."""
        return join_all(cell.version for cell in self.cells.values())

    def value(self, name: str) -> str:
        """Return the value of a field, empty for absent."""
        return self.cell(name).value or ""


class Tree(msgspec.Struct, frozen=True, array_like=True):
    """What a store has of a set: the set, its branches, and the snapshots that branches reach."""

    store: str
    """Id of the store."""
    set_id: str
    items: tuple[Item, ...]

    @property
    def by_key(self) -> dict[str, Item]:
        return {item.key: item for item in self.items}

    @property
    def set_item(self) -> Item | None:
        return next((it for it in self.items if it.kind == SET), None)

    def of_kind(self, kind: str) -> dict[str, Item]:
        """Return the items of a kind that are not deleted, by id."""
        return {it.id: it for it in self.items if it.kind == kind and not it.is_gone}


def attributes(values: Mapping[str, str]) -> dict[str, str]:
    """Return the fields that attributes are."""
    return {f"{ATTRIBUTE}{key}": value for key, value in values.items()}


def attributes_of(cells: Mapping[str, Cell]) -> dict[str, str]:
    """Return the attributes that cells hold."""
    return {
        name.removeprefix(ATTRIBUTE): cell.value
        for name, cell in cells.items()
        if name.startswith(ATTRIBUTE) and cell.value is not None
    }
