"""A clock that stands, and short ways to say and to compare what anchors hold."""

from __future__ import annotations

import msgspec

from snapfs import anchors as room
from snapfs.anchors import Anchors, Entry, History, Ref
from snapfs.store import Table

SECOND = 1_000_000_000
NOW = 1_000 * SECOND


class Thing(msgspec.Struct, frozen=True):
    """Something that a reference can mean."""


THINGS: Table[Thing] = Table(1000, "thing", Thing)
TABLES = (*room.TABLES, THINGS)


class Clock:
    def __init__(self, now_ns: int) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns


def ref(value: str) -> Ref:
    return Ref("test", value)


def at(second: float) -> int:
    return int(second * SECOND)


def told(entries: list[Entry]) -> list[tuple[str | None, float]]:
    """Return what and since which second, of each entry."""
    return [(each.ref.value if each.ref else None, each.at_ns / SECOND) for each in entries]


def oldest_first(anchors: Anchors, name: str) -> list[tuple[str | None, float]]:
    return told(anchors.history(name))[::-1]


def everything(anchors: Anchors) -> dict[str, History]:
    """Return all that a store knows."""
    return {each.name: anchors.export(each.name) for each in anchors.walk(deleted=True)}


def sync(source: Anchors, target: Anchors) -> None:
    """Tell `target` all that `source` knows."""
    for history in everything(source).values():
        target.merge(history)
