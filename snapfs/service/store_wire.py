"""Events of the store as messages, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import msgspec

from snapfs.model import InvalidArgument
from snapfs.service import snapfs_v1_pb2 as pb
from snapfs.service.convert import time_ns, timestamp
from snapfs.store import (
    Action,
    Event,
    Row,
    RowCreated,
    RowDeleted,
    RowUpdated,
    Table,
    UpdateCommitted,
)

_ACTIONS = {
    Action.CREATE: pb.ACTION_CREATE,
    Action.UPDATE: pb.ACTION_UPDATE,
    Action.DELETE: pb.ACTION_DELETE,
}
_FROM_WIRE = {wire: action for action, wire in _ACTIONS.items()}


@dataclass(frozen=True, slots=True)
class SeenRow:
    """A row as a client sees it, who knows no tables."""

    table: str
    oid: int
    scope: str
    name: str
    create_rev: int
    mod_rev: int
    spec_rev: int
    created_ns: int
    updated_ns: int
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class SeenEvent:
    revision: int
    action: Action
    row: SeenRow
    old: SeenRow | None


def action_to_wire(action: Action) -> pb.Action.ValueType:
    return _ACTIONS[action]


def action_from_wire(action: pb.Action.ValueType) -> Action:
    if action not in _FROM_WIRE:
        raise InvalidArgument(f"action {action} is unknown; name create, update or delete")
    return _FROM_WIRE[action]


def event_to_wire(
    event: Event, tables: Sequence[Table[Any]], *, include_old: bool
) -> pb.StoreEvent:
    names = {table.tag: table.name for table in tables}
    match event:
        case RowCreated(_, row):
            return pb.StoreEvent(action=pb.ACTION_CREATE, row=_row_to_wire(row, names))
        case RowUpdated(_, row, old):
            before = _row_to_wire(old, names) if include_old else None
            return pb.StoreEvent(action=pb.ACTION_UPDATE, row=_row_to_wire(row, names), old=before)
        case RowDeleted(_, row):
            return pb.StoreEvent(action=pb.ACTION_DELETE, row=_row_to_wire(row, names))
        case UpdateCommitted():
            raise AssertionError("a commit is the revision of its message")
        case _:
            assert_never(event)


def event_from_wire(revision: int, event: pb.StoreEvent) -> SeenEvent:
    return SeenEvent(
        revision=revision,
        action=action_from_wire(event.action),
        row=_row_from_wire(event.row),
        old=_row_from_wire(event.old) if event.HasField("old") else None,
    )


def _row_to_wire(row: Row[Any], names: dict[int, str]) -> pb.StoredRow:
    fields = {name: getattr(row.body, name) for name in row.body.__struct_fields__}
    return pb.StoredRow(
        table=names[row.table],
        oid=row.oid,
        scope=row.scope,
        name=row.name,
        create_revision=row.create_rev,
        modify_revision=row.mod_rev,
        spec_revision=row.spec_rev,
        created_at=timestamp(row.created_ns),
        updated_at=timestamp(row.updated_ns),
        body_json=msgspec.json.encode(fields).decode(),
    )


def _row_from_wire(row: pb.StoredRow) -> SeenRow:
    return SeenRow(
        table=row.table,
        oid=row.oid,
        scope=row.scope,
        name=row.name,
        create_rev=row.create_revision,
        mod_rev=row.modify_revision,
        spec_rev=row.spec_revision,
        created_ns=time_ns(row.created_at),
        updated_ns=time_ns(row.updated_at),
        body=msgspec.json.decode(row.body_json, type=dict[str, Any]),
    )
