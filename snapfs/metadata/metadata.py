"""Everything about metadata of one root, built in one place.

with Store.open(path, (*snapshots.TABLES, *anchors.TABLES, *metadata.TABLES)) as store:
    with Metadata(store, root / "content", {"snapfs": snapshotter}) as metadata:
        metadata.images.create(Context("default"), image)
        metadata.gc.trigger().result(timeout=60)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from snapfs.closing import Closing
from snapfs.metadata.backends import Backend
from snapfs.metadata.collected import Collected
from snapfs.metadata.collectibles import Collectible
from snapfs.metadata.collector import Collector, Garbage
from snapfs.metadata.containers import Containers, Sandboxes
from snapfs.metadata.content import ContentStore, Policy
from snapfs.metadata.explain import OF_NO_NAMESPACE, Explanation, Step, explain
from snapfs.metadata.images import Images
from snapfs.metadata.leases import Leases
from snapfs.metadata.manager import Changed
from snapfs.metadata.namespaces import Namespaces
from snapfs.metadata.references import Name, Type
from snapfs.metadata.scheduler import Knobs, Scheduler
from snapfs.metadata.schema import SNAPSHOT_LINKS
from snapfs.metadata.snapshots import Snapshots
from snapfs.metadata.words import check_namespace, shown
from snapfs.model import InvalidArgument, NotFound
from snapfs.store import Store


class Metadata(Closing):
    """Namespaces, images, containers, sandboxes, leases, content and their collector."""

    def __init__(
        self,
        store: Store,
        content: Path,
        snapshotters: Mapping[str, Backend],
        *,
        policy: Policy = "shared",
        knobs: Knobs | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
        collectibles: Sequence[Collectible] = (),
        changed: Sequence[Changed] = (),
    ) -> None:
        """`content` is the directory of blobs, made when it is not there.

        `changed` are told of every change when it is durable; they must not block.
        """
        self._told = changed
        self._store = store
        self._snapshotters = snapshotters
        self._clock_ns = clock_ns
        self.namespaces = Namespaces(store, changed=self._changed)
        self.images = Images(store, changed=self._changed)
        self.containers = Containers(store, changed=self._changed)
        self.sandboxes = Sandboxes(store, changed=self._changed)
        self.leases = Leases(store, changed=self._changed)
        self.content = ContentStore(
            store, content, policy=policy, changed=self._changed, clock_ns=clock_ns
        )
        self._snapshots = {
            name: Snapshots(store, name, backend, changed=self._changed)
            for name, backend in snapshotters.items()
        }
        self.collector = Collector(
            store, self.content, snapshotters, clock_ns=clock_ns, collectibles=collectibles
        )
        self.gc = Scheduler(self._collect, self._next_expiry, knobs, clock_ns=clock_ns)

    def start(self) -> None:
        """Settle what an earlier process left half done, then begin to collect garbage."""
        for snapshots in self._snapshots.values():
            snapshots.recover()
        self.gc.start()

    def snapshots(self, snapshotter: str) -> Snapshots:
        """Return the snapshots of a registered snapshotter, as namespaces know them.

        Raises InvalidArgument when there is no such snapshotter.
        """
        found = self._snapshots.get(snapshotter)
        if found is None:
            known = ", ".join(sorted(self._snapshots)) or "none"
            raise InvalidArgument(
                f"there is no snapshotter {shown(snapshotter)}; there is: {known}"
            )
        return found

    def garbage(self) -> list[Garbage]:
        """Return what a collection would remove now."""
        return self.collector.garbage()

    def explain(self, namespace: str, name: Name) -> Explanation:
        """Return why an object is kept, or that it is not. Raises NotFound."""
        check_namespace(namespace)
        if name.type is Type.SNAPSHOT:
            self.snapshots(name.key.partition("/")[0])
        try:
            with self._store.view() as tx:
                return explain(tx, namespace, name, self._clock_ns())
        except NotFound:
            if not self._is_of_no_namespace(name):
                raise
        return Explanation((Step("snapshot", "", name.key),), OF_NO_NAMESPACE)

    def _is_of_no_namespace(self, name: Name) -> bool:
        """Say whether a snapshotter has what no image, lease or label here can name."""
        snapshotter, _, key = name.key.partition("/")
        if name.type is not Type.SNAPSHOT:
            return False
        try:
            self._snapshotters[snapshotter].stat(key)
        except NotFound:
            return False
        return True

    def has_snapshot(self, namespace: str, key: str, snapshotter: str = "snapfs") -> bool:
        """Say whether a namespace has a snapshot."""
        check_namespace(namespace)
        with self._store.view() as tx:
            row = tx.get(SNAPSHOT_LINKS, namespace, f"{snapshotter}/{key}")
        return row is not None and row.body.is_there

    def close(self) -> None:
        """End the collector; a run under way ends before its next step."""
        self.collector.stop()
        self.gc.close()

    def _collect(self) -> Collected:
        began_ns = time.monotonic_ns()
        for snapshots in self._snapshots.values():
            snapshots.settle()
        settled_ns = time.monotonic_ns() - began_ns
        done = self.collector.collect()
        done.waited_ns += settled_ns
        return done

    def _changed(self, *, deletion: bool) -> None:
        self.gc.note(deletion=deletion)
        for told in self._told:
            told(deletion=deletion)

    def _next_expiry(self, after_ns: int) -> int | None:
        """Return when to collect again though nothing changes: something expires, or was kept."""
        with self._store.view() as tx:
            expiry_ns = tx.next_expiry(after_ns)
        wanted = [it for it in (expiry_ns, self.content.kept_until_ns) if it is not None]
        return min(wanted, default=None)
