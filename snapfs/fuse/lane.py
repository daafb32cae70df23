"""A lane: a directory of snapshots, each a merged tree that is opened when it is first looked at.

Which snapshots there are is read from the metadata at each lookup, so a new one is found at once
and its absence is never cached. Bind mounts hold on to a snapshot's root without ever looking it up
again, so a root is also found by its number alone: what a restarted worker needs. A deeper node
that is not known answers ESTALE, and the kernel walks down to it again.

The root also has one empty file that it does not list. Opening and closing it once makes the kernel
learn that a FLUSH is not wanted, before any close(2) could wait for a worker that has died.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Awaitable, Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, Protocol, cast

import structlog
import trio

from snapfs.fuse import orphans
from snapfs.fuse.backing import BackingIds
from snapfs.fuse.channel import INCARNATION
from snapfs.fuse.control import PROBE_NAME
from snapfs.fuse.counting import Counting
from snapfs.fuse.gate import Gate
from snapfs.fuse.knowing import kernel_knows
from snapfs.fuse.recovery import entries
from snapfs.fuse.trees import Forest, Shown
from snapfs.model import InvalidArgument, Labels, Quota, SnapshotId, Usage
from snapfs.overlay import (
    Attributes,
    Handed,
    Inodes,
    Listed,
    Node,
    Owners,
    Tree,
    TreeSpec,
    identity,
)
from snapfs.overlay.filecalls import syncfs
from snapfs.snapshots import claims, quota, stillness

log = structlog.get_logger(__name__)


class Layers(Protocol):
    """What a snapshot's tree is made of (snapshots.Layers)."""

    @property
    def id(self) -> SnapshotId: ...

    @property
    def upper(self) -> Path | None: ...

    @property
    def work(self) -> Path | None: ...

    @property
    def lowers(self) -> tuple[Path, ...]: ...

    @property
    def labels(self) -> Labels: ...

    @property
    def owners(self) -> Owners | None: ...


class Reader(Protocol):
    """Where a lane learns of snapshots (snapshots.LayerReader)."""

    def layers(self, snapshot_id: SnapshotId, /) -> Layers | None: ...

    def ids(self) -> Sequence[SnapshotId]: ...


Complete = Callable[[Shown, Tree], Awaitable[None]]
"""See copyup.CopyUps.complete, complete_ahead."""

_PROBE_INO = 2
_PLACES = 2
"""Of `.` and `..` in a listing, before the first snapshot."""
TURN_S = 0.002
"""How long settling a layer may keep requests waiting."""


class LaneRoot:
    """The lane's own directory as a tree; what it looks up are the roots of other trees."""

    lookups = 0
    main_numbers = (0, 0)  # of no file
    lists_without_nodes = True  # else each listing would open every tree

    def __init__(self, lane: LaneForest) -> None:
        self._lane = lane
        self.handed = Handed(0)
        self._born_ns = time.time_ns()

    def recall(self, ino: int) -> Node | None:
        return None

    def lookup(self, parent: Node, name: bytes) -> Node:
        if name == PROBE_NAME:
            return self._lane.probe
        snapshot_id = _parse_id(name)
        if snapshot_id is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return self._lane.open(snapshot_id).root

    def getattr(self, node: Node) -> Attributes:
        if node.ino not in (identity.LANE_ROOT, _PROBE_INO):
            return node.tree.getattr(node)
        now_ns = time.time_ns()
        return Attributes(
            ino=node.ino,
            mode=node.type | (0o700 if node.is_dir else 0o400),
            nlink=2 if node.is_dir else 1,
            uid=0,
            gid=0,
            rdev=0,
            size=0,
            blocks=0,
            blksize=4096,
            atime_ns=now_ns,
            mtime_ns=now_ns,
            ctime_ns=self._born_ns,
        )

    def page(self, node: Node, after: int, limit: int) -> list[Listed]:
        """Snapshots in the order of their numbers, which stand for their places."""
        first = max(after - _PLACES, 0)
        ids = sorted(n for n in self._lane.ids() if n > first)[:limit]
        return [Listed(n + _PLACES, str(n).encode(), identity.root(n), stat.S_IFDIR) for n in ids]

    def admit(self, node: Node) -> bool:
        return False

    def getxattr(self, node: Node, name: bytes) -> bytes:
        _refuse(errno.ENODATA)

    def listxattr(self, node: Node) -> list[bytes]:
        return []

    def readlink(self, node: Node) -> bytes:
        _refuse(errno.EINVAL)

    def open(self, node: Node, flags: int) -> int:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """There is nothing to close."""


class LaneForest(Forest):
    """The trees of a lane, opened at the first lookup and closed after the last forget.

    INVARIANT: a frozen snapshot has its gate in `_frozen`, shown or not; a tree that is opened
    takes it.
    """

    def __init__(
        self,
        reader: Reader,
        storage: Path,
        inodes: Inodes,
        backing: BackingIds | None = None,
        *,
        frozen: Iterable[SnapshotId] = (),
        maps_owners: bool = False,
        metacopy: bool = False,
        connection: bytes = b"",
    ) -> None:
        """`storage` lies on the file system whose free space is shown; `connection` is the name of
        the session's (orphans.py).

        With `metacopy` a change of attributes copies no data (TreeSpec.metacopy).

        With `maps_owners` trees show other owners than they store, where a snapshot's labels say
        so; else its mount does (idmapped.py).
        """
        super().__init__(inodes, backing)
        self._maps_owners = maps_owners
        self._metacopy = metacopy
        self._connection = connection
        self._reader = reader
        self._storage = storage
        self._frozen = {snapshot_id: Gate(frozen=True) for snapshot_id in frozen}
        self._ids: dict[int, SnapshotId] = {}
        self.counting = Counting(storage, self._is_written_unseen)
        self._quota = Quota()
        self._root = Node(cast(Tree, None), identity.LANE_ROOT, stat.S_IFDIR, None, b"")
        self.probe = Node(cast(Tree, None), _PROBE_INO, stat.S_IFREG, None, PROBE_NAME)
        root = Shown(LaneRoot(self), None, Gate())
        root.caches_absence = False
        self._shown[0] = root

    def ids(self) -> Sequence[SnapshotId]:
        return self._reader.ids()

    @property
    def shown_ids(self) -> tuple[SnapshotId, ...]:
        """Snapshots whose trees are open, dropped ones left out."""
        return tuple(id_ for key, id_ in self._ids.items() if not self._shown[key].dropped)

    @property
    def dropped_ids(self) -> tuple[SnapshotId, ...]:
        """Snapshots that were dropped and still have users."""
        return tuple(id_ for key, id_ in self._ids.items() if self._shown[key].dropped)

    @property
    def frozen_ids(self) -> tuple[SnapshotId, ...]:
        return tuple(self._frozen)

    def open(self, snapshot_id: SnapshotId) -> Tree:
        """Return a snapshot's tree, opening it if need be; FileNotFoundError when it has none."""
        layers = self._reader.layers(snapshot_id)
        if layers is None:
            _refuse(errno.ENOENT)
        key = identity.root(snapshot_id) >> identity.LOW_BITS
        shown = self._shown.get(key)
        if shown is None:
            return self._open(key, layers)
        if self._ids[key] != snapshot_id:
            log.error("lane.number_taken", snapshot=snapshot_id, by=self._ids[key])
            _refuse(errno.EBUSY)
        if shown.dropped:
            _refuse(errno.ENOENT)
        return cast(Tree, shown.tree)

    def shown(self, snapshot_id: SnapshotId) -> Shown | None:
        """Return what shows a snapshot, if it is shown."""
        key = identity.root(snapshot_id) >> identity.LOW_BITS
        return self._shown[key] if self._ids.get(key) == snapshot_id else None

    @property
    def gone_ids(self) -> tuple[SnapshotId, ...]:
        """Snapshots frozen or shown that the metadata has as committed, or no more."""
        known = dict.fromkeys((*self._frozen, *self.shown_ids))
        return tuple(id_ for id_ in known if self._reader.layers(id_) is None)

    async def freeze(self, snapshot_id: SnapshotId) -> None:
        """Return when no change is in flight; new ones wait from now on, also when cancelled."""
        shown = self.shown(snapshot_id)
        gate = self._frozen.get(snapshot_id) or (shown.gate if shown else Gate())
        self._frozen[snapshot_id] = gate
        await gate.freeze()

    async def orphans(
        self, snapshot_id: SnapshotId, known: Callable[[], Container[tuple[int, int]]]
    ) -> list[str]:
        """Name files of a frozen snapshot that are written past an ended connection, or past this
        one by an open that nothing says.

        `known` returns the files that are open for writing through us.
        """
        layers = self._reader.layers(snapshot_id)
        if self.backing is None or layers is None or layers.upper is None or layers.work is None:
            return []
        if not (self.notes_are_short or orphans.is_suspect(layers.work, self._connection)):
            return []
        self._release_files(identity.root(snapshot_id) >> identity.LOW_BITS)
        return await trio.to_thread.run_sync(
            orphans.writers,
            layers.upper,
            layers.work,
            self._connection,
            known(),
            abandon_on_cancel=True,
        )

    async def settle_ahead(self, snapshot_id: SnapshotId, complete: Complete) -> None:
        """Do most of what `settle` will, before the snapshot is frozen: everything goes on.

        Nothing for one that nobody looks at. Asks the store nothing, which may wait for its disk.
        """
        shown = self.shown(snapshot_id)
        if shown is not None:
            with self._in_use(snapshot_id, shown) as tree:
                await complete(shown, tree)

    async def settle(self, snapshot_id: SnapshotId, complete: Complete) -> None:
        """Make a frozen snapshot's layer self-contained, as it is to be committed (Tree.settle).

        `complete` copies the data that was left below. Other requests are served meanwhile. It may
        be cancelled, and begun again.
        """
        with self._kept_open(snapshot_id) as tree:
            shown = self.shown(snapshot_id)
            if tree is not None and shown is not None:
                await _step_by_step(tree.settling())
                await complete(shown, tree)

    async def all_files(self, snapshot_id: SnapshotId) -> set[int]:
        """Return the numbers by which the kernel may have files of a snapshot, whatever is noted.

        Other requests are served meanwhile: what they move is among what is noted.
        """
        found: set[int] = set()
        with self._kept_open(snapshot_id) as tree:
            if tree is not None:
                await _step_by_step(_collecting(tree, found))
        found.update(self.numbers(identity.root(snapshot_id)))
        return found if self.backing is None else found | {it | INCARNATION for it in found}

    @contextmanager
    def _kept_open(self, snapshot_id: SnapshotId) -> Iterator[Tree | None]:
        """Open the tree of a snapshot that takes changes; None when it was never shown."""
        layers = self._reader.layers(snapshot_id)
        if layers is None or layers.work is None:
            yield None
            return
        shown = self.shown(snapshot_id)
        if shown is None:
            if not layers.work.joinpath("snapfs").exists():
                yield None
                return
            self.open(snapshot_id)
            shown = self._shown[identity.root(snapshot_id) >> identity.LOW_BITS]
        with self._in_use(snapshot_id, shown) as tree:
            yield tree

    @contextmanager
    def _in_use(self, snapshot_id: SnapshotId, shown: Shown) -> Iterator[Tree]:
        """Keep the tree of a snapshot that takes changes open for a block."""
        shown.handles += 1
        try:
            yield cast(Tree, shown.tree)
        finally:
            self.released(shown, identity.root(snapshot_id))

    def thaw(self, snapshot_id: SnapshotId) -> int | None:
        """Let changes begin again; return for how many nanoseconds they were held, if they were."""
        gate = self._frozen.pop(snapshot_id, None)
        return None if gate is None else gate.thaw()

    def drop(self, snapshot_id: SnapshotId) -> bool:
        """Make a tree read-only for good; True when the kernel may know its name."""
        shown = self.shown(snapshot_id)
        if shown is not None:
            shown.drop()
            self._release_files(identity.root(snapshot_id) >> identity.LOW_BITS)
        self.thaw(snapshot_id)
        return shown is not None

    def remember(self, node: Node) -> None:
        if node is not self.probe:  # always there: not counted
            super().remember(node)

    def statfs(self) -> os.statvfs_result:
        return os.statvfs(self._storage)

    def syncfs(self) -> None:
        syncfs(self._storage)

    def set_default_quota(self, quota: Quota) -> None:
        """Set what holds for snapshots whose labels do not say it, for shown ones at once."""
        self._quota = quota
        for snapshot_id in self.shown_ids:
            self.rebind(snapshot_id)

    def rebind(self, snapshot_id: SnapshotId) -> None:
        """Read the quota of a shown snapshot again."""
        shown, layers = self.shown(snapshot_id), self._reader.layers(snapshot_id)
        if shown is not None and layers is not None:
            self._bind(shown, layers)

    def _bind(self, shown: Shown, layers: Layers) -> None:
        holds_still = stillness.holds_still(layers.labels) and not self.is_without_opens
        try:
            shown.bind(quota.of_labels(layers.labels, self._quota), holds_still=holds_still)
        except InvalidArgument as error:  # of an older release, which took any
            log.error("lane.quota_unreadable", snapshot=layers.id, error=str(error))
            shown.bind(self._quota, holds_still=holds_still)

    def _is_written_unseen(self, tree: Tree) -> bool:
        """Whether what an earlier worker opened for writing may be written by the kernel still."""
        if self.backing is None:
            return False
        return any(it.inherited for it in self.backing.writers(tree.root.ino))

    def usage(self, snapshot_id: SnapshotId) -> Usage | None:
        """Return what a shown snapshot takes; None when it is not shown, or not counted yet."""
        shown = self.shown(snapshot_id)
        return None if shown is None else self.counting.usage(cast(Tree, shown.tree))

    def close(self) -> None:
        for shown in self._shown.values():
            self.counting.closing(cast(Tree, shown.tree), lasting=not shown.dropped)
        super().close()

    def _open(self, key: int, layers: Layers) -> Tree:
        if layers.work is not None and not claims.show(layers.work):
            _refuse(errno.ENOENT)  # it is being committed, or was just now
        if layers.work is not None and self.backing is not None:
            orphans.claim(layers.work, self._connection)
        spec = TreeSpec(
            layers.id,
            layers.lowers,
            layers.upper,
            layers.work,
            metacopy=self._metacopy,
            resumed=True,
            owners=layers.owners if self._maps_owners else None,
        )
        tree = Tree(spec, self.inodes)
        gate = self._frozen.get(layers.id) or Gate()
        changing = None if layers.upper is None else tree
        for ino in tree.kept_numbers():
            if not kernel_knows(ino):
                tree.forgotten(ino)
        self._shown[key] = Shown(tree, changing, gate)
        self._ids[key] = layers.id
        if layers.upper is not None and layers.work is not None:
            self.counting.opened(tree, layers.upper, layers.work)
            self._shown[key].keeper = self.counting
            self._bind(self._shown[key], layers)
        log.debug("lane.tree_opened", snapshot=layers.id, layers=len(layers.lowers))
        return tree

    def _adopt(self, ino: int) -> tuple[Shown, Node]:
        """Find the lane's own nodes, or a snapshot's root that an earlier worker handed out."""
        if ino in (identity.LANE_ROOT, _PROBE_INO):
            return self._shown[0], self._root if ino == identity.LANE_ROOT else self.probe
        key, low = identity.split(ino)
        if low == 0 and (snapshot_id := self._id_of(key)) is not None:
            root = self.open(snapshot_id).root
            self.remember(root)
            return self._shown[key], root
        return super()._adopt(ino)

    def _release_files(self, key: int) -> None:
        """Let go of the files of a tree that nobody has open."""
        if self.backing is not None:
            self.backing.discard_all(key << identity.LOW_BITS)

    def _id_of(self, key: int) -> SnapshotId | None:
        return next((n for n in self.ids() if identity.root(n) >> identity.LOW_BITS == key), None)

    def _reconsider(self, key: int, shown: Shown) -> None:
        if shown.tree.lookups or shown.handles or shown.gate.entered or not key:
            return
        if any(map(kernel_knows, cast(Tree, shown.tree).kept_numbers())):
            return  # open since the time of another worker
        del self._shown[key]
        snapshot_id = self._ids.pop(key)
        self.counting.closing(cast(Tree, shown.tree), lasting=not shown.dropped)
        shown.close()
        self._release_files(key)
        log.debug("lane.tree_closed", snapshot=snapshot_id)


def _collecting(tree: Tree, found: set[int]) -> Iterator[None]:
    """Add the number of each file of a tree to `found`."""
    for _, entry in entries(tree):
        if entry is not None and entry.type == stat.S_IFREG:
            found.add(entry.ino)
        yield


async def _step_by_step(steps: Iterator[None]) -> None:
    """Take all steps, and let others run every few milliseconds."""
    began_s = time.monotonic()
    for _ in steps:
        if time.monotonic() - began_s > TURN_S:
            await trio.lowlevel.checkpoint()
            began_s = time.monotonic()


def _parse_id(name: bytes) -> SnapshotId | None:
    """Read a snapshot's directory name: a decimal number as we write it."""
    if not name.isdigit() or name.startswith(b"0") or len(name) > 19:
        return None
    return SnapshotId(int(name))


def _refuse(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number))
