"""What this store has of a set, with versions: looked at, compared with the last look, remembered.

Functions of a write transaction, because what was found changed since the last look gets its
version now. A look that finds nothing new writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from snapfs.store import ReadTx, Row, WriteTx
from snapfs.sync import versions
from snapfs.sync.items import (
    BRANCH,
    GONE,
    IS_GONE,
    NAME,
    NO_CELL,
    SET,
    SNAPSHOT,
    TIP,
    Cell,
    Item,
    Tree,
    attributes,
)
from snapfs.sync.merging import Dot
from snapfs.sync.schema import SEQUENCE, STATES, StateBody
from snapfs.volumes import ancestry, branches, tombstones
from snapfs.volumes.ids import VolumeSetId
from snapfs.volumes.schema import SCOPE as SETS_SCOPE
from snapfs.volumes.schema import SETS, SNAPSHOTS, SetBody, SnapshotBody


def store_id(tx: ReadTx) -> str:
    """Return what tells this store from every other."""
    return tx.uuid.hex()


def next_dot(tx: WriteTx) -> Dot:
    """Return a change of this store that no other has the number of."""
    return Dot(store_id(tx), tx.sequence(SEQUENCE))


def look(tx: WriteTx, set_id: VolumeSetId) -> Tree:
    """Return what this store has of a set, giving versions to what changed since the last look."""
    return _Look(tx, set_id).run()


def remember(tx: WriteTx, set_id: VolumeSetId, key: str, cells: Mapping[str, Cell]) -> None:
    """Record the cells of an item as they were made just now."""
    row = tx.get(STATES, set_id, key)
    body = StateBody(dict(cells))
    if row is None:
        tx.create(STATES, set_id, key, body)
    elif row.body != body:
        tx.update(row, body)


def remembered(tx: ReadTx, set_id: VolumeSetId, key: str) -> dict[str, Cell]:
    """Return the cells of an item as of the last look; none for one that never was seen."""
    row = tx.get(STATES, set_id, key)
    return {} if row is None else row.body.cells


@dataclass
class _Found:
    """An item's row, as the rest of an item."""

    values: dict[str, str]
    item: Item = field(default_factory=lambda: Item("", "", {}))


class _Look:
    def __init__(self, tx: WriteTx, set_id: VolumeSetId) -> None:
        self._tx, self._set_id = tx, set_id
        self._me = store_id(tx)
        self._number = 0
        self._states = {row.name: row for row in tx.rows(STATES, set_id)}

    def run(self) -> Tree:
        row = self._tx.get(SETS, SETS_SCOPE, self._set_id)
        found = {} if row is None else dict(self._present(row))
        items = [self._seen(key, each) for key, each in found.items()]
        for key in sorted(self._states.keys() - found.keys()):
            if (item := self._missing(key, is_set_here=row is not None)) is not None:
                items.append(item)
        own = f"{SET}/{self._set_id}"
        if row is None and own not in self._states and self._tombstone(SET, self._set_id):
            items.append(self._gone(own, {}))
        return Tree(self._me, self._set_id, tuple(items))

    # What is there

    def _present(self, row: Row[SetBody]) -> Iterator[tuple[str, _Found]]:
        yield f"{SET}/{self._set_id}", _set(row)
        reached: dict[str, Row[SnapshotBody]] = {}
        for branch in branches.rows(self._tx, self._set_id):
            if branches.is_tracking(branch):
                continue
            values = {NAME: branch.body.name, TIP: branch.body.tip_id}
            item = Item(BRANCH, branch.name, {}, modified_ns=branch.body.modified_ns)
            yield item.key, _Found(values, item)
            for each in ancestry.upward(self._tx, ancestry.by_oid(self._tx, branch.body.tip)):
                if each.name in reached:
                    break
                reached[each.name] = each
        for each in reached.values():
            yield f"{SNAPSHOT}/{each.name}", _snapshot(each)

    def _seen(self, key: str, found: _Found) -> Item:
        state = self._states.get(key)
        before = state.body.cells if state else {}
        cells = dict(before)
        for name in found.values.keys() | before.keys():
            value = found.values.get(name)
            old = before.get(name, NO_CELL)
            if value != old.value or name not in before:
                cells[name] = Cell(value, self._changed(old))
        if cells != before:
            remember(self._tx, self._set_id, key, cells)
        return msgspec.structs.replace(found.item, cells=cells)

    # What is not there any more

    def _missing(self, key: str, *, is_set_here: bool) -> Item | None:
        """Return the item of a deleted thing; forget one that is just not here any more.

        Of a deleted set the branches stay as they were seen last: who grew them meanwhile must
        find that they were not seen.
        """
        kind, _, identity = key.partition("/")
        cells = self._states[key].body.cells
        if kind == BRANCH and not is_set_here and self._tombstone(SET, self._set_id):
            return Item(kind, identity, cells)
        if kind == SNAPSHOT:
            if self._tx.get(SNAPSHOTS, self._set_id, identity) is None:
                self._tx.delete(self._states[key])
            return None
        if self._tombstone(kind, identity):
            return self._gone(key, cells)
        self._tx.delete(self._states[key])
        return None

    def _gone(self, key: str, before: dict[str, Cell]) -> Item:
        kind, _, identity = key.partition("/")
        old = before.get(GONE, NO_CELL)
        cells = before
        if old.value != IS_GONE:
            cells = {**before, GONE: Cell(IS_GONE, self._changed(old))}
            remember(self._tx, self._set_id, key, cells)
        return Item(kind, identity, cells)

    def _tombstone(self, kind: str, identity: str) -> bool:
        return tombstones.find(self._tx, kind, identity, self._set_id) is not None

    def _changed(self, old: Cell) -> versions.Version:
        if not self._number:
            self._number = self._tx.sequence(SEQUENCE)
        return versions.change(old.version, self._me, self._number)


def _set(row: Row[SetBody]) -> _Found:
    body = row.body
    values = {
        NAME: body.name,
        "prefix": body.prefix,
        "description": body.description,
        "owner": body.owner,
        **attributes(body.attributes),
    }
    item = Item(
        SET,
        row.name,
        {},
        creator=body.creator,
        created_ns=row.created_ns,
        modified_ns=body.modified_ns,
    )
    return _Found(values, item)


def _snapshot(row: Row[SnapshotBody]) -> _Found:
    body = row.body
    values = {
        NAME: body.name,
        "description": body.description,
        "owner": body.owner,
        **attributes(body.attributes),
    }
    item = Item(
        SNAPSHOT,
        row.name,
        {},
        parent=body.parent_id,
        creator=body.creator,
        created_ns=row.created_ns,
        modified_ns=body.modified_ns,
        has_data=bool(body.blob),
    )
    return _Found(values, item)
