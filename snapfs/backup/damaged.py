"""Snapshots that were damaged in the root before they were backed up, and what stands on them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from snapfs.backup.contents import Contents
from snapfs.backup.layout import Record
from snapfs.snapshots.records import shown

MOST_NAMED = 10


@dataclass(frozen=True, slots=True)
class Damaged:
    """A damaged snapshot of a backup."""

    name: str
    layer: int
    what: str
    """What was found, for people."""
    is_copied: bool
    """Whether the backup has its layer, as it is."""
    above: tuple[str, ...]
    """Snapshots that stand on it."""

    def __str__(self) -> str:
        above = f"; on it stands {listed(map(shown, self.above))}" if self.above else ""
        return f"snapshot {shown(self.name)} is damaged ({self.what}){above}"


def damaged(contents: Contents, record: Record) -> tuple[Damaged, ...]:
    """Return the damaged snapshots of a backup, in order of their layers."""
    names = {layer.id: layer.name for layer in contents.layers}
    copied = {layer.id for layer in record.layers}
    return tuple(
        Damaged(
            name=names[it.id],
            layer=it.id,
            what=it.what,
            is_copied=it.id in copied,
            above=tuple(name for name, chain in contents.chains.items() if it.id in chain),
        )
        for it in record.damaged
        if it.id in names
    )


def listed(words: Iterable[object], between: str = ", ") -> str:
    """Return the first words of a list, and how many more there are."""
    told = [str(it) for it in words]
    more = [f"{len(told) - MOST_NAMED} more"] if len(told) > MOST_NAMED else []
    return between.join((*told[:MOST_NAMED], *more))
