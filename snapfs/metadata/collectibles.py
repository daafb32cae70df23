"""Resources of others that the collector takes with the rest: what they are, and which are alive.

A resource is alive when it is used, when a lease that is alive holds it, when its label
`containerd.io/gc.root` says so, when what one of its labels `containerd.io/gc.bref.*` names is
alive, and when what is alive, but for what is held flat, has the label
`containerd.io/gc.ref.WORD` with its key. What its own labels `containerd.io/gc.ref.*` name lives as
long as it does. Source: containerd core/metadata/gc.go, collectionContext.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from snapfs.metadata import references
from snapfs.metadata.graph import Mark, Walk, paced
from snapfs.metadata.references import Edge
from snapfs.metadata.schema import LEASES, NODES, TABLE_OF
from snapfs.model import Labels
from snapfs.store import ReadTx, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class External:
    """A resource that is not in the store."""

    namespace: str
    key: str
    labels: Labels = field(default_factory=dict)
    active: bool = False
    leases: Collection[str] = ()
    """Ids of the leases of its namespace that hold it."""


class Round(Protocol):
    """One collection as a collectible takes part in it."""

    def all(self) -> Iterable[External]:
        """Return every resource there is now; what comes later is not removed."""

    def remove(self, resource: External) -> None:
        """Remove one that nothing keeps; whatever it raises is reported, and stops nothing."""

    def finish(self) -> None:
        """Hear that the collection is done."""

    def cancel(self) -> None:
        """Hear that it failed, or was not meant."""


class Collectible(Protocol):
    """Who has resources of one kind. Called by one collection at a time."""

    word: str
    """How labels name the kind."""

    def begin(self) -> Round:
        """Begin to take part; one that raises is left out of this collection.

        What its resources kept when it last took part stays; a first collection waits for it.
        """


def keepers(resources: Iterable[External]) -> list[External]:
    """Return those that have other objects live as long as they do, as if they were in use."""
    return [
        replace(it, active=True)
        for it in resources
        if any(want.edge is Edge.KEEPS for want in references.wants(it.labels))
    ]


_RowsOf = Callable[[ReadTx, Mapping[int, Mark]], Iterator[Row[Any]]]


class Place(NamedTuple):
    word: str
    namespace: str
    key: str


class Externals:
    """The resources of a collection, and those of them that are known to be alive."""

    def __init__(self, found: Mapping[str, Iterable[External]]) -> None:
        """`found` is what there is, by word."""
        self._found = {
            Place(word, it.namespace, it.key): it for word, all_ in found.items() for it in all_
        }
        self._words = tuple(found)
        self.alive: set[Place] = set()

    @classmethod
    def of(cls, found: Iterable[tuple[str, External]], alive: Iterable[Place]) -> Externals:
        """Return what has `found` and is as far as one that has these alive."""
        by_word: dict[str, list[External]] = {}
        for word, it in found:
            by_word.setdefault(word, []).append(it)
        made = cls(by_word)
        made.alive.update(alive)
        return made

    @property
    def found(self) -> list[tuple[str, External]]:
        """All resources, each with its word."""
        return [(place.word, it) for place, it in self._found.items()]

    def mark(self, tx: ReadTx, walk: Walk) -> None:
        """Find what is alive with what a walk has marked, and let the walk mark what that keeps."""
        for place in self.alive:  # found so by an earlier walk
            self._keep(tx, walk, place)
        self._mark(tx, walk, _rows)

    def mark_more(self, tx: ReadTx, walk: Walk) -> None:
        """The same for a walk of what became alive since; its marks are few."""
        if walk.marks:
            self._mark(tx, walk, _rows_of)

    def _mark(self, tx: ReadTx, walk: Walk, rows: _RowsOf) -> None:
        marked = -1
        while self._found and len(walk.marks) > marked:
            marked = len(walk.marks)
            named = set(self._named(rows(tx, walk.marks)))
            for place, it in self._found.items():
                if place not in self.alive and self._is_alive(tx, walk.marks, named, place, it):
                    self.alive.add(place)
                    self._keep(tx, walk, place)

    def _keep(self, tx: ReadTx, walk: Walk, place: Place) -> None:
        walk.add((oid, Mark.FULL) for oid in _wanted(tx, self._found[place], Edge.KEEPS))

    def garbage(self) -> Iterator[tuple[str, External]]:
        """Yield what is not alive, with its word."""
        return ((place.word, it) for place, it in self._found.items() if place not in self.alive)

    def _named(self, rows: Iterable[Row[Any]]) -> Iterator[Place]:
        for row in rows:
            for label, value in row.body.labels.items():
                word = references.word_of(label)
                if word in self._words:
                    yield Place(word, row.scope, value)

    def _is_alive(
        self,
        tx: ReadTx,
        marks: Mapping[int, Mark],
        named: Collection[Place],
        place: Place,
        it: External,
    ) -> bool:
        if it.active or place in named or references.is_root(it.labels):
            return True
        leases = (tx.get(LEASES, it.namespace, lease) for lease in it.leases)
        if any(row is not None and row.oid in marks for row in leases):
            return True
        return any(oid in marks for oid in _wanted(tx, it, Edge.KEPT_BY))


def _rows(tx: ReadTx, marks: Mapping[int, Mark]) -> Iterator[Row[Any]]:
    for table in NODES:
        for scope in tx.scopes():
            for oid in paced(tx.oids(table, scope)):
                row = tx.by_oid(table, oid) if marks.get(oid) is Mark.FULL else None
                if row is not None:
                    yield row


def _rows_of(tx: ReadTx, marks: Mapping[int, Mark]) -> Iterator[Row[Any]]:
    """The same by way of the marks."""
    for oid, mark in marks.items():
        found = (tx.by_oid(table, oid) for table in NODES if mark is Mark.FULL)
        yield from (row for row in found if row is not None)


def _wanted(tx: ReadTx, it: External, edge: Edge) -> Iterator[int]:
    for want in references.wants(it.labels):
        if want.edge is edge:
            row = tx.get(TABLE_OF[want.name.type], it.namespace, want.name.key)
            if row is not None:
                yield row.oid
