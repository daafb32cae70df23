"""Snapshots of any snapshotter, as namespaces know them: with names, labels, leases of their own.

What a namespace calls KEY, the snapshotter calls NAMESPACE/NUMBER/KEY. Making one takes 3 steps:

    a link is written that says so       the key is taken, the lease holds it
    ->  the snapshotter makes it         outside any transaction
    ->  the link says that it is there

A crash in between is settled by `recover`: a new snapshot goes, a commit that the snapshotter did
is finished. Removing marks the link; the collector asks the snapshotter, children first. Two
namespaces can have one snapshot (the label containerd.io/snapshot.ref), which stays as long as
either does. Source: containerd core/metadata/snapshot.go.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import msgspec
import structlog

from snapfs import filters
from snapfs.metadata import linking, masks, resources
from snapfs.metadata.manager import DEADLINE_S, Changed, Manager, take
from snapfs.metadata.objects import Context, Resource
from snapfs.metadata.references import Edge, Name, Type
from snapfs.metadata.schema import SNAPSHOT_LINKS, SnapshotLinkBody
from snapfs.metadata.words import check_namespace, shown
from snapfs.model import (
    AlreadyExists,
    Committed,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    Labels,
    Mount,
    NotFound,
    SnapfsError,
    Snapshot,
    Unavailable,
    Usage,
    check_labels,
    check_name,
)
from snapfs.snapshots import records
from snapfs.store import ReadTx, Row, Store, WriteTx

log = structlog.get_logger(__name__)

REF = "containerd.io/snapshot.ref"
_INHERITED = "containerd.io/snapshot/"
SEQUENCE = "snapshot links"

Link = Row[SnapshotLinkBody]


class Backend(Protocol):
    """A snapshotter. Thread-safe; raises SnapfsError."""

    def prepare(self, key: str, parent: str, labels: Labels) -> list[Mount]: ...

    def view(self, key: str, parent: str, labels: Labels) -> list[Mount]: ...

    def mounts(self, key: str) -> list[Mount]: ...

    def commit(self, key: str, name: str, labels: Labels, parent: str = "") -> object: ...

    def remove(self, key: str) -> object: ...

    def stat(self, key: str) -> Snapshot: ...

    def update(
        self, key: str, labels: Labels, fieldpaths: Sequence[str] | None = None
    ) -> Snapshot: ...

    def walk(self, filters: Sequence[str] = ()) -> Iterator[Snapshot]: ...

    def usage(self, key: str) -> Usage: ...

    def cleanup(self) -> object: ...


@dataclass(frozen=True, slots=True)
class _Taken:
    """A key that is another's already; its lease has been given the other."""

    name: str


class Snapshots(Manager):
    """The snapshots of one snapshotter, by namespace and key."""

    def __init__(
        self,
        store: Store,
        snapshotter: str,
        backend: Backend,
        *,
        deadline_s: float = DEADLINE_S,
        changed: Changed | None = None,
    ) -> None:
        super().__init__(store, deadline_s=deadline_s, changed=changed)
        self.snapshotter = snapshotter
        self._backend = backend

    # Making

    def prepare(
        self, context: Context, key: str, parent: str = "", labels: Labels | None = None
    ) -> list[Mount]:
        """Make an active snapshot; return its mounts.

        With the label containerd.io/snapshot.ref, AlreadyExists says that the committed snapshot
        of that name is there, perhaps since another namespace had it; the lease of the context
        then holds it. Raises NotFound for the parent, AlreadyExists, InvalidArgument.
        """
        return self._create(context, key, parent, labels, writable=True)

    def view(
        self, context: Context, key: str, parent: str = "", labels: Labels | None = None
    ) -> list[Mount]:
        """Make a read-only look at a committed snapshot; return its mounts."""
        return self._create(context, key, parent, labels, writable=False)

    def _create(
        self, context: Context, key: str, parent: str, labels: Labels | None, *, writable: bool
    ) -> list[Mount]:
        wanted = self._checked(context, key, labels)
        target = wanted.get(REF, "") if writable else ""

        def reserve(tx: WriteTx) -> Link | _Taken:
            for name in filter(None, (target, key)):
                found = self._find(tx, context.namespace, name)
                if found is not None:
                    self._lease(tx, context, name)
                    return _Taken(name)
            above = self._parent(tx, context.namespace, parent)
            return self._reserve(tx, context, key, wanted, parent=above.key if above else "")

        link = self._reserved(reserve, context.namespace)
        above = self._backend_parent(context.namespace, link.body.parent)
        make = self._backend.prepare if writable else self._backend.view
        try:
            mounts = make(link.body.backend, above, inherited(wanted))
            if self._backend.stat(link.body.backend).parent != above:
                raise InvalidArgument(
                    f"snapshotter {self.snapshotter!r} gave snapshot {shown(key)} another parent"
                )
        except AlreadyExists as error:
            self._forget(link, context)
            if not target:
                raise Internal(
                    f"snapshotter {self.snapshotter!r} has {link.body.backend!r} already: {error}"
                ) from None
            self._adopt(context, target, link.body.parent, above)
            raise AlreadyExists(f"snapshot {shown(target)} exists") from None
        except Exception:
            self._give_up(link, context)
            raise
        self._settle(link)
        return mounts

    def commit(
        self, context: Context, key: str, name: str, labels: Labels | None = None, parent: str = ""
    ) -> None:
        """Make the active `key` the committed `name`; the lease then holds that instead.

        `parent` is for one without (a rebase). Raises NotFound, AlreadyExists, InvalidArgument,
        and FailedPrecondition for what is not active.
        """
        wanted = self._checked(context, name, labels)

        def reserve(tx: WriteTx) -> Link | _Taken:
            source = self._found(tx, context.namespace, key)
            if self._find(tx, context.namespace, name) is not None:
                self._lease(tx, context, name)
                return _Taken(name)
            above = self._rebased(tx, context.namespace, source, parent)
            return self._reserve(tx, context, name, wanted, parent=above, source=source.oid)

        link = self._reserved(reserve, context.namespace)
        with self._store.view() as tx:
            source = tx.by_oid(SNAPSHOT_LINKS, link.body.source)
        backend_key = "" if source is None else source.body.backend
        above = self._backend_parent(context.namespace, link.body.parent)
        rebase = above if source is not None and not source.body.parent else ""
        try:
            self._backend.commit(backend_key, link.body.backend, inherited(wanted), rebase)
        except Exception:
            if not self._is_made(link):
                self._forget(link, context)
                raise
        self._settle(link, context)

    def _reserved(self, reserve: Any, namespace: str) -> Link:
        found: Link | _Taken = self._update(reserve)
        if isinstance(found, _Taken):
            raise AlreadyExists(f"snapshot {shown(found.name)} exists in namespace {namespace!r}")
        return found

    def _reserve(
        self,
        tx: WriteTx,
        context: Context,
        key: str,
        labels: dict[str, str],
        *,
        parent: str,
        source: int = 0,
    ) -> Link:
        """Write the link of a snapshot that is to be made; one that is going makes room."""
        row = tx.get(SNAPSHOT_LINKS, context.namespace, self._row_name(key))
        if row is not None:
            if row.body.making:
                raise Unavailable(f"snapshot {shown(key)} is being made; try again later")
            tx.update(row, row.body, spec=False, name=self._row_name(row.body.backend))
        number = tx.sequence(SEQUENCE)
        body = SnapshotLinkBody(
            snapshotter=self.snapshotter,
            key=key,
            backend=f"{context.namespace}/{number}/{key}",
            parent=parent,
            labels=labels,
            making=True,
            source=source,
        )
        made = linking.create(tx, SNAPSHOT_LINKS, context.namespace, self._row_name(key), body)
        self._lease(tx, context, key)
        return made

    def _settle(self, link: Link, context: Context | None = None) -> None:
        """Say that a snapshot is there; of a commit, that the active one is not any more."""

        def settle(tx: WriteTx) -> bool:
            row = tx.by_oid(SNAPSHOT_LINKS, link.oid)
            if row is None or row.body.removing:
                return False
            _finish(tx, row, context)
            return True

        if not self._update(settle):
            raise Unavailable(f"snapshot {shown(link.body.key)} was collected meanwhile; try again")

    def _give_up(self, link: Link, context: Context) -> None:
        """Remove what was made of a new snapshot; what cannot be is left to the collector."""
        try:
            self._backend.remove(link.body.backend)
        except NotFound:
            pass
        except (SnapfsError, OSError) as error:
            log.warning("snapshot.left_to_collector", key=link.body.key, error=str(error))
            self._update(partial(_condemn, oid=link.oid), deletion=True)
            return
        self._forget(link, context)

    def _forget(self, link: Link, context: Context) -> None:
        def forget(tx: WriteTx) -> None:
            row = tx.by_oid(SNAPSHOT_LINKS, link.oid)
            if row is not None:
                tx.delete(row)
                _unlease(tx, context, row)

        self._update(forget)

    def _adopt(self, context: Context, target: str, parent: str, above: str) -> None:
        """Let a namespace have a committed snapshot that the snapshotter has already."""
        wanted = f"labels.{filters.quoted(REF)}=={filters.quoted(target)}"
        for found in self._backend.walk([f"{wanted},parent=={filters.quoted(above)}"]):
            if isinstance(found, Committed):
                break
        else:
            raise NotFound(
                f"snapshotter {self.snapshotter!r} has no committed snapshot for {shown(target)}"
            )
        body = SnapshotLinkBody(
            snapshotter=self.snapshotter,
            key=target,
            backend=found.name,
            parent=parent,
            labels={REF: target},
        )

        def adopt(tx: WriteTx) -> None:
            if any(it.body.removing for it in linking.links_to(tx, self.snapshotter, found.name)):
                raise Unavailable(f"snapshot {shown(target)} is being removed; try again later")
            row_name = self._row_name(target)
            if self._find(tx, context.namespace, target) is None:
                going = tx.get(SNAPSHOT_LINKS, context.namespace, row_name)
                if going is not None:
                    tx.delete(going)  # the same snapshot, or one that cleanup finds
                linking.create(tx, SNAPSHOT_LINKS, context.namespace, row_name, body)
            self._lease(tx, context, target)

        self._update(adopt)

    # Looking

    def stat(self, namespace: str, key: str) -> Snapshot:
        """Return a snapshot: its kind as the snapshotter says, the rest as the namespace does."""
        link = self._visible(namespace, key)
        return _merged(link, self._backend.stat(link.body.backend))

    def mounts(self, namespace: str, key: str) -> list[Mount]:
        """Return how to mount an active snapshot or a view. Raises NotFound."""
        return self._backend.mounts(self._visible(namespace, key).body.backend)

    def usage(self, namespace: str, key: str) -> Usage:
        """Return a snapshot's own usage. Raises NotFound."""
        return self._backend.usage(self._visible(namespace, key).body.backend)

    def walk(self, namespace: str, wanted: Sequence[str] = ()) -> Iterator[Snapshot]:
        """Yield snapshots in order of key; what the snapshotter has lost is left out."""
        selects = filters.parse(wanted)
        check_namespace(namespace)
        return self._all(namespace, selects)

    def _all(self, namespace: str, selects: Any) -> Iterator[Snapshot]:
        for link in self._rows(SNAPSHOT_LINKS, namespace):
            if link.body.snapshotter != self.snapshotter or not link.body.is_there:
                continue
            try:
                found = _merged(link, self._backend.stat(link.body.backend))
            except NotFound:
                continue
            if selects.matches(records.fields(found)):
                yield found

    # Changing and removing

    def update(
        self, namespace: str, key: str, labels: Labels, paths: Sequence[str] = ()
    ) -> Snapshot:
        """Update labels by field mask; an empty one goes. Raises NotFound, InvalidArgument."""
        check_namespace(namespace)
        chosen = masks.check(paths, fields=(), maps=("labels",), what="a snapshot")
        wanted = check_labels({name: value for name, value in labels.items() if value})

        def change(tx: WriteTx) -> Link:
            row = self._found(tx, namespace, key)
            merged = masks.merge(row.body.labels, wanted, chosen, "labels")
            return linking.update(tx, row, msgspec.structs.replace(row.body, labels=merged))

        link = self._update(change)
        told = self._backend.update(link.body.backend, inherited(link.body.labels), ["labels"])
        return _merged(link, told)

    def remove(self, namespace: str, key: str) -> None:
        """Remove a snapshot from the namespace; the collector removes it from the snapshotter.

        Raises NotFound, FailedPrecondition while others stand on it.
        """
        check_namespace(namespace)

        def drop(tx: WriteTx) -> None:
            row = self._found(tx, namespace, key)
            for oid in tx.referrers(row.oid, Edge.KEEPS_ALWAYS):
                child = tx.by_oid(SNAPSHOT_LINKS, oid)
                if child is not None and not child.body.going:
                    raise FailedPrecondition(
                        f"snapshot {shown(key)} has children, such as {shown(child.body.key)}; "
                        "remove those first"
                    )
            _condemn(tx, oid=row.oid)

        self._update(drop, deletion=True)

    def recover(self) -> None:
        """Settle what a process that died had begun; for a start, before any other call."""
        for namespace in self._namespaces():
            for link in list(self._rows(SNAPSHOT_LINKS, namespace)):
                if link.body.making and link.body.snapshotter == self.snapshotter:
                    self._recover(link)

    def _is_made(self, link: Link) -> bool:
        try:
            self._backend.stat(link.body.backend)
        except NotFound:
            return False
        return True

    def _recover(self, link: Link) -> None:
        is_made = self._is_made(link)
        if is_made and link.body.source:
            self._settle(link)
        else:
            self._update(partial(_condemn, oid=link.oid), deletion=True)
        log.info("snapshot.settled", key=link.body.key, is_made=is_made)

    # Rows

    def _namespaces(self) -> list[str]:
        with self._store.view() as tx:
            return [scope for scope in tx.scopes() if scope]

    def _checked(self, context: Context, key: str, labels: Labels | None) -> dict[str, str]:
        check_namespace(context.namespace)
        check_name(key, "snapshot key")
        return check_labels(labels or {})

    def _row_name(self, key: str) -> str:
        return f"{self.snapshotter}/{key}"

    def _find(self, tx: ReadTx, namespace: str, key: str) -> Link | None:
        row = tx.get(SNAPSHOT_LINKS, namespace, self._row_name(key))
        return row if row is not None and row.body.is_there else None

    def _found(self, tx: ReadTx, namespace: str, key: str) -> Link:
        row = self._find(tx, namespace, key)
        if row is None:
            raise NotFound(f"snapshot {shown(key)} does not exist in namespace {namespace!r}")
        return row

    def _visible(self, namespace: str, key: str) -> Link:
        check_namespace(namespace)
        with self._store.view() as tx:
            return self._found(tx, namespace, key)

    def _parent(self, tx: ReadTx, namespace: str, parent: str) -> SnapshotLinkBody | None:
        return self._found(tx, namespace, parent).body if parent else None

    def _backend_parent(self, namespace: str, parent: str) -> str:
        return self._visible(namespace, parent).body.backend if parent else ""

    def _rebased(self, tx: ReadTx, namespace: str, source: Link, parent: str) -> str:
        if parent and source.body.parent and parent != source.body.parent:
            raise InvalidArgument(
                f"snapshot {shown(source.body.key)} stands on {shown(source.body.parent)} and "
                f"cannot be committed on {shown(parent)}"
            )
        above = self._parent(tx, namespace, parent or source.body.parent)
        return above.key if above else ""

    def _lease(self, tx: WriteTx, context: Context, key: str) -> None:
        name = Name(Type.SNAPSHOT, self._row_name(key))
        take(tx, context, f"snapshots/{self.snapshotter}", name)


def inherited(labels: Labels) -> dict[str, str]:
    """Return the labels that a snapshotter hears of."""
    return {key: value for key, value in labels.items() if key == REF or key.startswith(_INHERITED)}


def _merged(link: Link, told: Snapshot) -> Snapshot:
    return dataclasses.replace(
        told,
        name=link.body.key,
        parent=link.body.parent,
        labels={**told.labels, **link.body.labels},
        created_ns=link.created_ns,
        updated_ns=link.updated_ns,
    )


def _finish(tx: WriteTx, row: Link, context: Context | None) -> None:
    source = tx.by_oid(SNAPSHOT_LINKS, row.body.source) if row.body.source else None
    if source is not None:
        tx.delete(source)
        if context is not None:
            _unlease(tx, context, source)
    body = msgspec.structs.replace(row.body, making=False, going=False, source=0)
    linking.update(tx, row, body)


def _condemn(tx: WriteTx, *, oid: int) -> None:
    row = tx.by_oid(SNAPSHOT_LINKS, oid)
    if row is not None:
        body = msgspec.structs.replace(row.body, going=True, making=False, source=0)
        tx.update(row, body, spec=False)


def _unlease(tx: WriteTx, context: Context, row: Link) -> None:
    if context.lease:
        held = Resource(f"snapshots/{row.body.snapshotter}", row.body.key)
        resources.remove(tx, context.namespace, context.lease, held)
