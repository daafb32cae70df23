"""Who agrees to changes before they are committed: this machine alone, or several.

A proposer is asked on the writer's thread, inside the write transaction, once for each group of
updates. Nothing above the store knows which one there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from snapfs.store.changes import Change
from snapfs.store.views import Views


class Proposer(Protocol):
    """Decides on changes. Revisions are the versions on which all who take part agree."""

    @property
    def max_change_bytes(self) -> int | None:
        """Most bytes of one change, None when there is no limit; a larger update is TooLarge."""

    def propose(self, changes: Sequence[Change], commit: Callable[[], None]) -> None:
        """Have the changes agreed to, in order and all or none, and call `commit` at that moment.

        `commit` makes them durable here and may raise; let that through, and let the changes come
        again from `changes_between`. Raise a SnapfsError without calling it when they are refused:
        nothing took effect. What is raised after it has returned does not undo anything.
        """

    def version(self) -> int:
        """Return the revision of the last change that is agreed to."""

    def changes_between(self, after_rev: int, up_to_rev: int) -> Iterator[Change]:
        """Yield the changes after `after_rev` up to and with `up_to_rev`, in order.

        Raises Compacted when some are gone, InvalidArgument when some are still to come.
        """


class LocalProposer:
    """Agrees to everything at once; the log of the store is what was agreed to."""

    max_change_bytes: int | None = None

    def __init__(self, views: Views) -> None:
        self._views = views

    def propose(self, changes: Sequence[Change], commit: Callable[[], None]) -> None:
        commit()

    def version(self) -> int:
        return self._views.revision

    def changes_between(self, after_rev: int, up_to_rev: int) -> Iterator[Change]:
        with self._views.view() as tx:
            tx.check_position(up_to_rev)
            for change in tx.changes(after_rev):
                if change.revision > up_to_rev:
                    return
                yield change
