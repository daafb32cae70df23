"""What all managers of metadata share: transactions, listing, and what a lease takes in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol, TypeVar

from snapfs import filters
from snapfs.filters import Adaptor
from snapfs.metadata import resources
from snapfs.metadata.objects import Context
from snapfs.metadata.references import Name
from snapfs.metadata.words import check_namespace, shown
from snapfs.model import Conflict, Labels, NotFound
from snapfs.store import Row, Store, Table, WriteTx

B = TypeVar("B")
Shown = TypeVar("Shown")
T = TypeVar("T")

DEADLINE_S = 30.0

WALK_BATCH = 100
"""Rows that a list reads in one transaction, as containerd does."""


class Changed(Protocol):
    """Who hears of changes."""

    def __call__(self, *, deletion: bool) -> None: ...


class Manager:
    """Base of what offers one kind of object. Thread-safe; what a call changed is durable."""

    def __init__(
        self, store: Store, *, deadline_s: float = DEADLINE_S, changed: Changed | None = None
    ) -> None:
        """`deadline_s` bounds the wait for other writers; then DeadlineExceeded, nothing done.

        `changed` is told of every change, as the collector wants to know.
        """
        self._store = store
        self._deadline_s = deadline_s
        self._changed = changed

    def _update(self, function: Callable[[WriteTx], T], *, deletion: bool = False) -> T:
        result = self._store.update(function, timeout_s=self._deadline_s)
        if self._changed is not None:
            self._changed(deletion=deletion)
        return result

    def _get(self, table: Table[B], namespace: str, name: str) -> Row[B]:
        check_namespace(namespace)
        with self._store.view() as tx:
            return found(table, tx.get(table, namespace, name), namespace, name)

    def _walk(
        self,
        table: Table[B],
        namespace: str,
        wanted: Sequence[str],
        show: Callable[[Row[B]], Shown],
        adapt: Callable[[Shown], Adaptor],
    ) -> Iterator[Shown]:
        """Yield what `wanted` selects, in order of name; no transaction is held in between.

        Raises InvalidArgument for a bad filter at once.
        """
        selects = filters.parse(wanted)
        check_namespace(namespace)
        return (
            each
            for row in self._rows(table, namespace)
            if selects.matches(adapt(each := show(row)))
        )

    def _rows(self, table: Table[B], scope: str) -> Iterator[Row[B]]:
        after: str | None = None
        while True:
            with self._store.view() as tx:
                batch = list(islice(tx.rows(table, scope, after=after), WALK_BATCH))
            yield from batch
            if len(batch) < WALK_BATCH:
                return
            after = batch[-1].name


def found(table: Table[B], row: Row[B] | None, namespace: str, name: str) -> Row[B]:
    """Return the row, or raise NotFound."""
    if row is None:
        raise NotFound(f"{table.name} {shown(name)} does not exist in namespace {namespace!r}")
    return row


def take(tx: WriteTx, context: Context, type_: str, name: Name) -> None:
    """Let the lease of the context, if there is one, hold what is made or touched.

    Raises NotFound when there is no such lease.
    """
    if context.lease:
        resources.add(tx, context.namespace, context.lease, type_, name)


def check_revision(row: Row[Any], expected: int | None, what: str) -> None:
    """Raise Conflict when an update was made from another state than the row's."""
    if expected is not None and row.mod_rev != expected:
        raise Conflict(
            f"{what} {shown(row.name)} is at revision {row.mod_rev}, not at {expected}; "
            "read it again and repeat the change",
            expected=expected,
            actual=row.mod_rev,
        )


def label(labels: Labels, path: tuple[str, ...]) -> str | None:
    """Return a label that a filter asks for: the rest of the path, joined with dots."""
    return labels.get(".".join(path))


def adaptor(fields: dict[str, str], maps: dict[str, Labels]) -> Adaptor:
    """Return how a filter reads an object: plain fields by path, maps by their first word.

    An empty field counts as absent, as in containerd's adaptors.
    """

    def read(path: tuple[str, ...]) -> str | None:
        if path and path[0] in maps and len(path) > 1:
            return label(maps[path[0]], path[1:])
        return fields.get(".".join(path)) or None

    return read
