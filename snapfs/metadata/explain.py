"""Why is this kept? The shortest path from a root to an object, or that there is none."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from snapfs.metadata.graph import Mark, Walk, roots
from snapfs.metadata.linking import links_to
from snapfs.metadata.references import Name, Type
from snapfs.metadata.schema import NODES, TABLE_OF
from snapfs.metadata.words import shown
from snapfs.model import NotFound
from snapfs.store import ReadTx

OF_NO_NAMESPACE = "of no namespace: no collection removes it, only who made it does"


@dataclass(frozen=True, slots=True)
class Step:
    """One object on a path."""

    table: str
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """What keeps an object: `path` leads from the root to it; empty when it will go."""

    path: tuple[Step, ...]
    reason: str
    """Why the root is one, or why the object goes."""

    @property
    def kept(self) -> bool:
        return bool(self.path)


def explain(tx: ReadTx, namespace: str, name: Name, now_ns: int) -> Explanation:
    """Return why an object is kept, or that it is not. Raises NotFound."""
    wanted = _rows(tx, namespace, name)
    if not wanted:
        raise NotFound(_absence(tx, namespace, name))
    walk = Walk(tx, now_ns)
    came_from: dict[tuple[int, Mark], tuple[int, Mark] | None] = {}
    reasons: dict[tuple[int, Mark], str] = {}
    queue: deque[tuple[int, Mark]] = deque()
    for root in roots(tx, now_ns):
        at = (root.oid, root.mark)
        if at not in came_from:
            came_from[at] = None
            reasons[at] = root.reason
            queue.append(at)
    while queue:
        here = queue.popleft()
        if here[0] in wanted:
            return _path(tx, came_from, reasons, here)
        for following in walk.kept_by(*here):
            if following not in came_from:
                came_from[following] = here
                queue.append(following)
    return Explanation((), "nothing that is kept refers to it; the next collection removes it")


def _rows(tx: ReadTx, namespace: str, name: Name) -> set[int]:
    """Return what a name means: of a snapshot also the one that its snapshotter gives it."""
    row = tx.get(TABLE_OF[name.type], namespace, name.key)
    if row is not None:
        return {row.oid}
    if name.type is not Type.SNAPSHOT:
        return set()
    snapshotter, _, backend = name.key.partition("/")
    return {link.oid for link in links_to(tx, snapshotter, backend)}


_LISTS = {
    Type.CONTENT: "content list",
    Type.SNAPSHOT: "snapshot list",
    Type.CONTAINER: "container list",
    Type.IMAGE: "image list",
    Type.LEASE: "lease list",
    Type.INGEST: "content ingests",
}


def _absence(tx: ReadTx, namespace: str, name: Name) -> str:
    table = TABLE_OF[name.type]
    key = name.key.partition("/")[2] if name.type is Type.SNAPSHOT else name.key
    what = f"{name.type.name.lower()} {shown(key)} does not exist in namespace {namespace!r}"
    others = [scope for scope in tx.scopes() if tx.get(table, scope, name.key) is not None]
    if others:
        return f"{what}, but in {', '.join(others)}; name that with --namespace"
    return (
        f"{what}: it never did, or was collected; `snapfs {_LISTS[name.type]}` shows what there is"
    )


def _path(
    tx: ReadTx,
    came_from: dict[tuple[int, Mark], tuple[int, Mark] | None],
    reasons: dict[tuple[int, Mark], str],
    end: tuple[int, Mark],
) -> Explanation:
    steps = []
    here: tuple[int, Mark] | None = end
    first = end
    while here is not None:
        steps.append(_step(tx, here[0]))
        first, here = here, came_from[here]
    return Explanation(tuple(reversed(steps)), reasons[first])


def _step(tx: ReadTx, oid: int) -> Step:
    for table in NODES:
        row = tx.by_oid(table, oid)
        if row is not None:
            return Step(table.name, row.scope, row.name)
    return Step("row", "", str(oid))
