"""Listings of directories with an upper part, in the same stable order as all others.

INVARIANT: a listing that is read from its beginning shows the directory as it is; one that is read
on, after a change, may be of the time of any later beginning. What was there all the time is in
both, at the same place.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from ._names import Index
from .lower import read_index

if TYPE_CHECKING:
    from .node import Dir

KEPT = 32
"""Listings kept for those that read on; another one is made when it is wanted."""


class Listings:
    """The merged listings of one tree that were read last."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: OrderedDict[Dir, tuple[int, Index]] = OrderedDict()

    def get(self, here: Dir, *, fresh: bool) -> Index:
        """The names of an upper directory and what it is merged with; `fresh`: as they are now."""
        changes, index = self._kept.get(here, (-1, None))
        if index is None or (fresh and changes != here.changes):
            changes, index = here.changes, _read(here)
        self._kept[here] = changes, index
        self._kept.move_to_end(here)
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return index

    def is_current(self, here: Dir) -> bool:
        """Whether nothing has changed since the listing was made."""
        return self._kept.get(here, (-1, None))[0] == here.changes

    def drop(self, here: Dir) -> None:
        """Let go of a directory that is not wanted any more."""
        self._kept.pop(here, None)

    def clear(self) -> None:
        self._kept.clear()


def _read(here: Dir) -> Index:
    tree = here.tree
    sources = [(tree.real_path(here), tree.upper_layer.device, False, False)]
    sources += (place.source() for place in here.stack)
    return read_index(sources, tree.numbers)
