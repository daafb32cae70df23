"""What the store keeps for syncs: tables 60 to 63.

    tag  table            scope         row name
    60   remote           snapfs        name
    61   synced state     set id        KIND/ID: versions of an item's fields, as of the last look
    62   last synced      REMOTE/SET    KIND/ID: the values that both sides had after the last sync
    63   sync conflict    set id        KIND/ID/FIELD/REMOTE, when decided /DIGEST of both values

Versions are made by looking: a field whose value is another than at the last look was changed here
meanwhile, and gets the next number of this store (sequence "sync"). So the rooms that change
volumes need not know of syncs. A row of table 62 is written when both sides have said that they
hold what is in it, and never before.
"""

from __future__ import annotations

import msgspec

from snapfs.store import Table
from snapfs.sync.items import Cell

SCOPE = "snapfs"
SEQUENCE = "sync"


class RemoteBody(msgspec.Struct, frozen=True, array_like=True):
    """Another store, by the way to it."""

    url: str
    store: str = ""
    """Its id, from the first time that it answered; another one there is refused."""


class StateBody(msgspec.Struct, frozen=True, array_like=True):
    """An item as it was seen last."""

    cells: dict[str, Cell]


class LastBody(msgspec.Struct, frozen=True, array_like=True):
    """What both sides had."""

    values: dict[str, str | None]


class ConflictBody(msgspec.Struct, frozen=True, array_like=True):
    """A field that was changed on both sides."""

    remote: str
    kind: str
    item: str
    field: str
    ours: Cell
    theirs: Cell
    last: str | None
    winner: str
    """ "ours", "theirs", or "" while nobody has won."""


REMOTES: Table[RemoteBody] = Table(tag=60, name="remote", body=RemoteBody)
STATES: Table[StateBody] = Table(tag=61, name="synced state", body=StateBody)
LASTS: Table[LastBody] = Table(tag=62, name="last synced", body=LastBody)
CONFLICTS: Table[ConflictBody] = Table(tag=63, name="sync conflict", body=ConflictBody)

TABLES = (REMOTES, STATES, LASTS, CONFLICTS)
