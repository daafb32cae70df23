"""Who grew from whom, among the snapshots that two stores know together. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from snapfs.model import DataLoss
from snapfs.sync.items import Item
from snapfs.sync.threeway import Last, Outcome, Value, three_way


class Lineage:
    """The snapshots of a set by id; they have the same parents wherever they are."""

    def __init__(self, *known: Mapping[str, Item]) -> None:
        self._items: dict[str, Item] = {}
        for each in known:
            self._items.update(each)

    def item(self, snapshot: str) -> Item:
        """Return a snapshot's item, or raise DataLoss when neither side described it."""
        found = self._items.get(snapshot)
        if found is None:
            raise DataLoss(f"volume snapshot {snapshot} is somebody's parent and was not described")
        return found

    def upward(self, snapshot: str) -> Iterator[Item]:
        """Yield a snapshot and its ancestors, the root last."""
        seen: set[str] = set()
        while snapshot:
            if snapshot in seen:
                raise DataLoss(f"volume snapshot {snapshot} is its own ancestor")
            seen.add(snapshot)
            item = self.item(snapshot)
            yield item
            snapshot = item.parent

    def contains(self, newer: str, older: str) -> bool:
        """Say whether `newer` is `older` or grew from it, however long ago."""
        return any(item.id == older for item in self.upward(newer))

    def down_to(self, snapshot: str) -> list[Item]:
        """Return what leads to a snapshot, the root first and itself last."""
        return list(self.upward(snapshot))[::-1]

    def tips(self, theirs: Value, ours: Value, last: Last) -> Outcome:
        """Say what becomes of a tip that was moved apart: what contains the other is newer.

        A conflict means that the two have diverged.
        """
        outcome = three_way(theirs, ours, last)
        if outcome is not Outcome.CONFLICT or not theirs or not ours:
            return outcome
        if self.contains(theirs, ours):
            return Outcome.TAKE
        if self.contains(ours, theirs):
            return Outcome.GIVE
        return Outcome.CONFLICT
