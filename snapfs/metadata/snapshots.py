"""Snapshots of any snapshotter, as namespaces know them: with names, labels, leases of their own.

What a namespace calls KEY, the snapshotter calls NAMESPACE/NUMBER/KEY. Making one takes 3 steps:

    a link is written that says so       the key is taken, the lease holds it
    ->  the snapshotter makes it         outside any transaction
    ->  the link says that it is there

What became of a snapshot is not known after a crash in between, or when the snapshotter did not
answer: `settle` asks it, then and later. A new snapshot goes, a commit that was done is finished;
one that may come to be yet is not given up: asked for again, it goes on under the same name.
Removing marks the link; the collector asks the snapshotter, children first. Two namespaces can have
one snapshot (the label containerd.io/snapshot.ref), which stays as long as either does.
Source: containerd core/metadata/snapshot.go.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import structlog

from snapfs import filters
from snapfs.metadata import linking, masks, snapshotlinks
from snapfs.metadata.backends import REF, Backend, inherited, merged
from snapfs.metadata.manager import DEADLINE_S, Changed, Manager
from snapfs.metadata.objects import Context
from snapfs.metadata.references import Edge
from snapfs.metadata.schema import SNAPSHOT_LINKS, SnapshotLinkBody
from snapfs.metadata.snapshotlinks import Link, Links
from snapfs.metadata.words import check_namespace, shown
from snapfs.model import (
    AlreadyExists,
    Committed,
    DeadlineExceeded,
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
from snapfs.store import Store, WriteTx

log = structlog.get_logger(__name__)

ATTEMPTS = 10
"""Of a change of labels that others changed meanwhile."""


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
        self._links = Links(snapshotter)
        self._unsettled: dict[int, Link] = {}
        """Links by oid of which nobody knows whether the snapshotter made them."""
        self._settling = threading.Lock()

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
        wanted = _checked(context, key, labels)
        target = wanted.get(REF, "") if writable else ""

        def reserve(tx: WriteTx) -> Link | _Taken:
            for name in filter(None, (target, key)):
                if self._links.find(tx, context.namespace, name) is not None:
                    self._links.lease(tx, context, name)
                    return _Taken(name)
            above = self._links.parent(tx, context.namespace, parent)
            return self._links.reserve(tx, context, key, wanted, parent=above)

        link = self._reserved(reserve, context.namespace)
        above = self._backend_parent(context.namespace, link.body.parent)
        try:
            mounts = self._make(link, above, inherited(wanted), writable=writable)
        except AlreadyExists as error:
            self._forget(link, context)
            if not target:
                raise Internal(
                    f"snapshotter {self.snapshotter!r} has {link.body.backend!r} already: {error}"
                ) from None
            self._adopt(context, target, link.body.parent, above)
            raise AlreadyExists(f"snapshot {shown(target)} exists") from None
        except (Unavailable, DeadlineExceeded):
            self._condemn(link, is_late=True)  # it may come to be yet
            raise
        except Exception:
            self._give_up(link, context)
            raise
        self._settle(link)
        return mounts

    def _make(self, link: Link, above: str, labels: Labels, *, writable: bool) -> list[Mount]:
        make = self._backend.prepare if writable else self._backend.view
        mounts = make(link.body.backend, above, labels)
        if self._backend.stat(link.body.backend).parent != above:
            key = shown(link.body.key)
            raise InvalidArgument(f"snapshotter {self.snapshotter!r} gave {key} another parent")
        return mounts

    def commit(
        self, context: Context, key: str, name: str, labels: Labels | None = None, parent: str = ""
    ) -> None:
        """Make the active `key` the committed `name`; the lease then holds that instead.

        `parent` is for one without (a rebase). Raises NotFound, AlreadyExists, InvalidArgument,
        and FailedPrecondition for what is not active.
        """
        wanted = _checked(context, name, labels)

        def reserve(tx: WriteTx) -> Link | _Taken:
            if self._links.find(tx, context.namespace, name) is not None:
                self._links.lease(tx, context, name)
                return _Taken(name)
            source = self._links.found(tx, context.namespace, key)
            above = self._links.rebased(tx, context.namespace, source, parent)
            begun = self._links.begun(tx, context.namespace, name, source)
            if begun is not None and begun.oid in self._unsettled:
                self._links.lease(tx, context, name)
                body = msgspec.structs.replace(begun.body, labels=wanted, parent=above)
                return linking.update(tx, begun, body)
            return self._links.reserve(tx, context, name, wanted, parent=above, source=source.oid)

        link = self._reserved(reserve, context.namespace)
        self._unsettled.pop(link.oid, None)
        with self._store.view() as tx:
            source = tx.by_oid(SNAPSHOT_LINKS, link.body.source)
        backend_key = "" if source is None else source.body.backend
        above = self._backend_parent(context.namespace, link.body.parent)
        rebase = above if source is not None and not source.body.parent else ""
        try:
            self._backend.commit(backend_key, link.body.backend, inherited(wanted), rebase)
        except Exception as error:
            if not self._came_to_be(link, context, error):
                raise
        self._settle(link, context)

    def _came_to_be(self, link: Link, context: Context, error: Exception) -> bool:
        """Say whether a commit that failed was done all the same; what was not is forgotten."""
        try:
            is_made = self._is_there(link.body.backend)
        except SnapfsError:
            self._unsettled[link.oid] = link
            return False
        if not is_made:
            if isinstance(error, Unavailable | DeadlineExceeded):  # it may come to be yet
                self._unsettled[link.oid] = link
            else:
                self._forget(link, context)
        return is_made

    def _reserved(self, reserve: Callable[[WriteTx], Link | _Taken], namespace: str) -> Link:
        self.settle()
        found = self._update(reserve)
        if isinstance(found, _Taken):
            raise AlreadyExists(f"snapshot {shown(found.name)} exists in namespace {namespace!r}")
        return found

    def _settle(self, link: Link, context: Context | None = None) -> None:
        if not self._update(partial(snapshotlinks.settle, oid=link.oid, context=context)):
            raise Unavailable(f"snapshot {shown(link.body.key)} was collected meanwhile; try again")

    def _give_up(self, link: Link, context: Context) -> None:
        """Remove what was made of a new snapshot; what cannot be is left to the collector."""
        try:
            self._backend.remove(link.body.backend)
        except NotFound:
            pass
        except (SnapfsError, OSError) as error:
            log.warning("snapshot.left_to_collector", key=link.body.key, error=str(error))
            self._condemn(link)
            return
        self._forget(link, context)

    def _condemn(self, link: Link, *, is_late: bool = False) -> None:
        condemn = partial(snapshotlinks.condemn, oid=link.oid, is_late=is_late)
        self._update(condemn, deletion=True)

    def _forget(self, link: Link, context: Context) -> None:
        self._update(partial(snapshotlinks.forget, oid=link.oid, context=context))

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
        self._update(lambda tx: self._links.adopt(tx, context, body))

    # Looking

    def stat(self, namespace: str, key: str) -> Snapshot:
        """Return a snapshot: its kind as the snapshotter says, the rest as the namespace does."""
        link = self._visible(namespace, key)
        return merged(link, self._backend.stat(link.body.backend))

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
                found = merged(link, self._backend.stat(link.body.backend))
            except NotFound:
                continue
            if selects.matches(records.fields(found)):
                yield found

    def _visible(self, namespace: str, key: str) -> Link:
        check_namespace(namespace)
        with self._store.view() as tx:
            return self._links.found(tx, namespace, key)

    def _backend_parent(self, namespace: str, parent: str) -> str:
        return self._visible(namespace, parent).body.backend if parent else ""

    # Changing and removing

    def update(
        self, namespace: str, key: str, labels: Labels, paths: Sequence[str] = ()
    ) -> Snapshot:
        """Update labels by field mask; an empty one goes. Raises NotFound, InvalidArgument.

        The snapshotter hears of them first: when it refuses or does not answer, nothing is changed
        here, and the call can be repeated. Raises Unavailable when others change them all the time.
        """
        check_namespace(namespace)
        chosen = masks.check(paths, fields=(), maps=("labels",), what="a snapshot")
        wanted = check_labels({name: value for name, value in labels.items() if value})
        for _ in range(ATTEMPTS):
            seen = self._visible(namespace, key)
            changed = masks.merge(seen.body.labels, wanted, chosen, "labels")
            told = self._backend.update(seen.body.backend, inherited(changed), ["labels"])
            link = self._update(partial(_relabel, seen=seen, labels=changed))
            if link is not None:
                return merged(link, told)
        raise Unavailable(f"snapshot {shown(key)} is changed by others all the time; try again")

    def remove(self, namespace: str, key: str) -> None:
        """Remove a snapshot from the namespace; the collector removes it from the snapshotter.

        Raises NotFound, FailedPrecondition while others stand on it.
        """
        check_namespace(namespace)

        def drop(tx: WriteTx) -> None:
            row = self._links.found(tx, namespace, key)
            for oid in tx.referrers(row.oid, Edge.KEEPS_ALWAYS):
                child = tx.by_oid(SNAPSHOT_LINKS, oid)
                if child is not None and not child.body.going:
                    raise FailedPrecondition(
                        f"snapshot {shown(key)} has children, such as {shown(child.body.key)}; "
                        "remove those first"
                    )
            snapshotlinks.condemn(tx, oid=row.oid)

        self._update(drop, deletion=True)

    def cleanup(self) -> None:
        """Let the snapshotter delete what it left for later."""
        self._backend.cleanup()

    # What died in between

    def recover(self) -> None:
        """Settle what a process that died had begun; for a start, before any other call.

        What a snapshotter that does not answer was asked for is settled later.
        """
        with self._store.view() as tx:
            namespaces = [scope for scope in tx.scopes() if scope]
        for namespace in namespaces:
            for link in self._rows(SNAPSHOT_LINKS, namespace):
                if link.body.making and link.body.snapshotter == self.snapshotter:
                    self._unsettled[link.oid] = link
        self.settle()

    def settle(self) -> None:
        """Ask what became of snapshots of which it is not known, unless another thread does."""
        if not self._unsettled or not self._settling.acquire(blocking=False):
            return
        try:
            for link in list(self._unsettled.values()):
                if self._find_out(link):
                    self._unsettled.pop(link.oid, None)
        except (SnapfsError, OSError) as error:
            log.warning("snapshot.not_settled", snapshotter=self.snapshotter, error=str(error))
        finally:
            self._settling.release()

    def _find_out(self, link: Link) -> bool:
        """Settle a snapshot if it is known what became of it, and say so."""
        with self._store.view() as tx:
            source = tx.by_oid(SNAPSHOT_LINKS, link.body.source) if link.body.source else None
        if source is not None and self._is_there(source.body.backend):
            return False
        is_made = self._is_there(link.body.backend)
        if is_made and link.body.source:
            self._update(partial(snapshotlinks.settle, oid=link.oid))
        else:
            self._condemn(link)
        log.info("snapshot.settled", key=link.body.key, is_made=is_made)
        return True

    def _is_there(self, backend_key: str) -> bool:
        try:
            self._backend.stat(backend_key)
        except NotFound:
            return False
        return True


def _relabel(tx: WriteTx, *, seen: Link, labels: dict[str, str]) -> Link | None:
    """Give a link its labels unless it was changed since it was seen."""
    row = tx.by_oid(SNAPSHOT_LINKS, seen.oid)
    if row is None or row.mod_rev != seen.mod_rev:
        return None
    return linking.update(tx, row, msgspec.structs.replace(row.body, labels=labels))


def _checked(context: Context, key: str, labels: Labels | None) -> dict[str, str]:
    check_namespace(context.namespace)
    check_name(key, "snapshot key")
    return check_labels(labels or {})
