"""What is alive: roots, and the walk from them.

Marks are of two strengths. What is marked *fully* keeps all that it names; what is marked *flat*,
because only a lease with the label gc.flat holds it, keeps a snapshot's parents and an image's
target, and nothing else. Back references count for either.

The walk reads one state of the store through edges alone; rows are read for the few conditions. A
walk of everything reads all edges beforehand and pauses often: it is work of the interpreter, and
writers of the same process would wait for it otherwise.
Source: containerd core/metadata/gc.go; ancestors.md section 2.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, TypeVar

from snapfs import anchors
from snapfs.metadata import references, resources
from snapfs.metadata.references import Edge
from snapfs.metadata.schema import (
    CONTAINERS,
    CONTENT,
    IMAGES,
    INGESTS,
    LEASES,
    ROOTS,
    SANDBOXES,
    SNAPSHOT_LINKS,
    Node,
)
from snapfs.store import EdgeSource, EdgeTable, ReadTx, Row, Table

T = TypeVar("T")

PACE = 500
"""Steps of a long walk from one pause to the next: about a millisecond."""

PAUSE_S = 0.0001

_alone = False

_LABELLED: tuple[Table[Any], ...] = (CONTENT, SNAPSHOT_LINKS)
"""Tables whose rows a label can keep."""


_KEEPS_ALWAYS, _KEEPS_IF, _KEPT_BY = int(Edge.KEEPS_ALWAYS), int(Edge.KEEPS_IF), int(Edge.KEPT_BY)

_FOLLOWED = frozenset(map(int, (Edge.KEEPS, Edge.LEASED, anchors.TARGET_EDGE)))
"""Edges from what is fully alive; the latter two matter for rows written during a collection."""

_WALKED = _FOLLOWED | {_KEEPS_ALWAYS, _KEEPS_IF}


class Mark(IntEnum):
    FLAT = 1
    FULL = 2


class Root(NamedTuple):
    """A row that is alive by itself, or by who stands for it, and why."""

    oid: int
    mark: Mark
    reason: str


def roots(tx: ReadTx, now_ns: int) -> Iterator[Root]:
    """Yield every root of every namespace; a row may come more than once."""
    expired = frozenset(tx.expired(now_ns))
    for scope in tx.scopes():
        yield from _of_leases(tx, scope, expired)
        for oid in tx.oids(IMAGES, scope):
            if oid not in expired:
                yield Root(oid, Mark.FULL, "it is an image")
        for oid in tx.oids(CONTAINERS, scope):
            yield Root(oid, Mark.FULL, "it is a container")
        for oid in tx.oids(SANDBOXES, scope):
            yield Root(oid, Mark.FULL, "it is a sandbox")
        for row in tx.rows(INGESTS, scope):
            if row.expires_ns is not None and row.expires_ns > now_ns:
                yield Root(row.oid, Mark.FULL, "it was written less than a day ago")
        for table in _LABELLED:
            for found in tx.find(table, ROOTS, b"", scope=scope):
                if getattr(found.body, "going", False):
                    continue  # it was removed, and so is what only it kept
                yield Root(found.oid, Mark.FULL, _kept_by_itself(found))
        for oid in tx.oids(anchors.FACTS, scope):
            for target in tx.references(oid, anchors.TARGET_EDGE):
                yield Root(target, Mark.FULL, "an anchor stands or stood for it")


def _kept_by_itself(row: Row[Any]) -> str:
    if getattr(row.body, "making", False):
        return "it is being made"
    return f"its label {references.ROOT} keeps it"


def _of_leases(tx: ReadTx, scope: str, expired: frozenset[int]) -> Iterator[Root]:
    for row in tx.rows(LEASES, scope):
        if row.oid in expired:
            continue
        flat = references.FLAT in row.body.labels
        yield Root(row.oid, Mark.FULL, "it is a lease that has not expired")
        for resource in resources.rows(tx, row):
            # An ingest has no flat form: what it is to become is what is wanted of it.
            mark = Mark.FLAT if flat and resource.body.type != "ingests" else Mark.FULL
            for target in tx.references(resource.oid, Edge.LEASED):
                yield Root(target, mark, f"lease {row.name!r} holds it")


class Walk:
    """The closure of roots in one state of the store."""

    def __init__(
        self,
        tx: ReadTx,
        now_ns: int,
        *,
        known: Mapping[int, Mark] | None = None,
        edges: EdgeSource | None = None,
    ) -> None:
        """What is `known` to be marked is not walked again.

        `edges` are those of the transaction, if somebody has read them already.
        """
        self._tx = tx
        self._edges = edges or tx.edges()
        self._now_ns = now_ns
        self._known: Mapping[int, Mark] = {} if known is None else known
        self.marks: dict[int, Mark] = {}
        """What this walk marked."""

    def add(self, begin: Iterable[tuple[int, Mark]]) -> None:
        """Mark rows and all that they keep alive."""
        stack = list(begin)
        marks, known = self.marks, self._known
        while stack:
            oid, mark = stack.pop()
            if marks.get(oid, 0) >= mark or known.get(oid, 0) >= mark:
                continue
            marks[oid] = mark
            stack.extend(self.kept_by(oid, mark))

    def kept_by(self, oid: int, mark: Mark) -> Sequence[tuple[int, Mark]]:
        """Return what a row with a mark keeps alive directly."""
        edges, backwards = self._edges.out(oid), self._edges.into(oid, _KEPT_BY)
        if not edges and not backwards:
            return ()
        kept = []
        for kind, target in edges:
            if kind == _KEEPS_ALWAYS:
                kept.append((target, mark))
            elif mark is Mark.FULL and (
                kind in _FOLLOWED or (kind == _KEEPS_IF and self._holds(oid, target))
            ):
                kept.append((target, Mark.FULL))
        kept += [(other, Mark.FULL) for other in backwards]
        return kept

    def _holds(self, oid: int, target: int) -> bool:
        """Say whether a condition that a row names for a snapshot holds."""
        source = node(self._tx, oid)
        kept = self._tx.by_oid(SNAPSHOT_LINKS, target)
        if source is None or kept is None:
            return False
        return any(
            want.edge is Edge.KEEPS_IF
            and want.name.key == kept.name
            and references.holds(want.condition, kept.body.labels, self._now_ns)
            for want in source.body.wants()
        )


def mark(tx: ReadTx, now_ns: int) -> Walk:
    """Return the walk of all that is alive in one state of the store."""
    edges = EdgeTable(paced(tx.edges().forward()), _WALKED, (_KEPT_BY,))
    walk = Walk(tx, now_ns, edges=edges)
    for root in paced(roots(tx, now_ns)):
        walk.add(((root.oid, root.mark),))
    return walk


def paced(items: Iterable[T]) -> Iterator[T]:
    """Yield `items`, letting other threads have the interpreter now and then."""
    for number, item in enumerate(items):
        if not number % PACE and not _alone:
            time.sleep(PAUSE_S)
        yield item


def be_alone() -> None:
    """Pause no more: no other thread of this process has anything to do."""
    global _alone
    _alone = True


_CONDITIONAL: tuple[Table[Any], ...] = (CONTENT, IMAGES, CONTAINERS, SANDBOXES, SNAPSHOT_LINKS)


def node(tx: ReadTx, oid: int) -> Row[Node] | None:
    """Return a row of any table of nodes, or None."""
    for table in _CONDITIONAL:
        row = tx.by_oid(table, oid)
        if row is not None:
            return row
    return None
