"""The trees that a session shows, found by node number, and how long each is kept.

A node's number says which tree it belongs to (overlay/identity.py), so one table of nodes serves
all trees. A `Forest` is a single tree (standalone.py) or a lane of snapshots (lane.py).

INVARIANT: a tree's `lookups` are all references of the kernel to its nodes, and to files of it
that were handed out without one. A tree that can be opened again is closed when it is zero and no
handle is open.
Everything runs on trio's thread.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Sequence
from typing import NoReturn, Protocol, cast

import structlog
import trio

from snapfs.fuse._desk import Desk
from snapfs.fuse.backing import BackingIds, Kind
from snapfs.fuse.channel import INCARNATION
from snapfs.fuse.gate import Gate
from snapfs.fuse.incarnations import Incarnations, number_of
from snapfs.fuse.knowing import kernel_has
from snapfs.model import Quota
from snapfs.overlay import Attributes, Handed, Inodes, Listed, Node, Tree, identity
from snapfs.overlay.filecalls import syncfs
from snapfs.overlay.freeing import LET_GO_S
from snapfs.overlay.usage import Before

FREED_S = 10.0
"""For a file system to free what big removed files hold."""
LOOK_AGAIN_S = 0.002
DOUBT_S = 1.0
"""For the kernel to have what it was answered, before it is asked whether it has a file."""

log = structlog.get_logger(__name__)


class Readable(Protocol):
    """What can be asked of any tree; see overlay.Tree."""

    handed: Handed
    lists_without_nodes: bool
    """Listings give names only, also where attributes are asked for."""

    @property
    def lookups(self) -> int: ...

    @property
    def main_numbers(self) -> tuple[int, int]: ...

    def recall(self, ino: int) -> Node | None: ...

    def lookup(self, parent: Node, name: bytes) -> Node: ...

    def getattr(self, node: Node) -> Attributes: ...

    def page(self, node: Node, after: int, limit: int) -> Sequence[Listed]: ...

    def admit(self, node: Node) -> bool: ...

    def readlink(self, node: Node) -> bytes: ...

    def getxattr(self, node: Node, name: bytes) -> bytes: ...

    def listxattr(self, node: Node) -> Sequence[bytes]: ...

    def open(self, node: Node, flags: int) -> int: ...

    def close(self) -> None: ...


class Keeper(Protocol):
    """Who knows the usage of trees; see counting.Counting."""

    async def until_counted(self, tree: Tree, /) -> None: ...

    async def relieve(self) -> None: ...


class Shown:
    """One tree being shown: its gate, its users, its copies under way."""

    __slots__ = (
        "_changing",
        "_desk",
        "caches_absence",
        "copying",
        "dropped",
        "gate",
        "handles",
        "keeper",
        "native_writes",
        "tree",
    )

    def __init__(self, tree: Readable, changing: Tree | None, gate: Gate) -> None:
        self.tree = tree
        self._changing = changing
        self.gate = gate
        self.handles = 0
        self.copying: dict[int, trio.Event] = {}
        """Nodes that are being copied up; set when done."""
        self.caches_absence = True
        """The kernel may remember that a name does not exist."""
        self.dropped = False
        self._desk: Desk | None = None
        gate.changed = self._tell_desk
        self.native_writes = True
        """Who writes may be given the file itself; not where a quota has to be kept."""
        self.keeper: Keeper | None = None

    @property
    def desk(self) -> Desk | None:
        """Made when it is first needed (directories.py)."""
        return self._desk

    @desk.setter
    def desk(self, made: Desk) -> None:
        self._desk = made
        self._tell_desk()
        made.begin()

    def _tell_desk(self) -> None:
        """Say anew what the fast lane may open: what passes the gate, and keeps no quota."""
        if self._desk is not None:
            self._desk.passes_upper = self.native_writes
            changing = self._changing
            open_to = changing is not None and self.native_writes and self.gate.is_open
            open_to = open_to and not self._desk.awaits_space
            self._desk.takes_writers = open_to
            self._desk.takes_names = (
                changing is not None and open_to and not changing.allowance.bounded
            )
            if changing is not None and changing.upper is not None:
                self._desk.keeps_in = changing.work.layer.fd
                self._desk.order = changing.work.order
                self._desk.leaves_data = changing.leaves_data
                self._desk.leaves_first = changing.makes_metacopies and not changing.leaves_data

    def left_data(self) -> None:
        """Say that a file was copied up without its data: so may others be from now on."""
        if self._desk is not None and not self._desk.leaves_data:
            self._tell_desk()

    @property
    def is_merged(self) -> bool:
        """Whether its files lie in layers: the lane's own directory has none."""
        return isinstance(self.tree, Tree)

    async def begin_new(self) -> Tree:
        """As `begin`, for what needs an inode: where only removed ones are in the way, which the
        kernel is about to let go of, those are waited for."""
        changing = self._changing
        if changing is not None and changing.allowance.bounded:
            for _ in range(round(LET_GO_S / LOOK_AGAIN_S)):
                if not changing.allowance.waits_for_removed:
                    break
                await trio.sleep(LOOK_AGAIN_S)
        return await self.begin()

    async def begin_without(self, parent: Node, name: bytes) -> Tree:
        """As `begin`, for what takes a name away: one of the lower layers leaves a whiteout."""
        tree = self._changing
        if tree is not None and tree.allowance.bounded and tree.hides(parent, name):
            return await self.begin_new()
        return await self.begin()

    async def begin_removal(self, parent: Node, name: bytes) -> Tree:
        """As `begin_without`, for what may leave nothing. Then it does not wait for space: who
        removes many files gives it."""
        tree = self._changing
        if tree is not None and tree.inodes.freeing.coming and not tree.hides(parent, name):
            return await self._begin(0.0)
        return await self.begin_without(parent, name)

    async def begin(self) -> Tree:
        """Pass the gate and return the tree to change; `end` must follow. Raises EROFS."""
        return await self._begin(FREED_S)

    async def _begin(self, freed_s: float) -> Tree:
        """As `begin`; for how long to wait for space is for the caller to say."""
        if self._changing is None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        await self._until_counted(self._changing)
        awaits_space = self._desk is not None and self._desk.awaits_space
        if awaits_space or self._changing.inodes.freeing.coming:
            await self._until_freed(self._changing, freed_s)
        await self.gate.enter()
        return self._changing

    async def _until_counted(self, tree: Tree) -> None:
        if tree.allowance.awaits_count and self.keeper is not None:
            await self.keeper.until_counted(tree)

    async def _until_freed(self, tree: Tree, freed_s: float) -> None:
        """Wait for what big removed files hold, where it may be needed."""
        for _ in range(round(freed_s / LOOK_AGAIN_S)):
            if not tree.needs_freed():
                break
            await trio.sleep(LOOK_AGAIN_S)
        self._await_space(awaited=not freed_s and tree.needs_freed())

    def _await_space(self, *, awaited: bool) -> None:
        """Have changes come here for as long as they are to wait for space."""
        if self._desk is not None and self._desk.awaits_space != awaited:
            self._desk.awaits_space = awaited
            self._tell_desk()

    def bind(self, quota: Quota, *, holds_still: bool = False) -> None:
        """Set what the tree may take, from the next request on; with `holds_still` all that is
        written comes through us, so that it can be frozen while files are open for writing. In a
        lane without opens it does so anyway."""
        if self._changing is not None:
            self._changing.allowance.quota = quota
            self.native_writes = quota.size_bytes is None and not holds_still
            self._tell_desk()

    async def relieve(self) -> None:
        """Have a file system give back what it took in advance."""
        if self.keeper is not None:
            await self.keeper.relieve()

    async def shown_space(self, real: os.statvfs_result) -> os.statvfs_result:
        """Return what df(1) says inside the tree, of a file system with these figures."""
        if self._changing is None:
            return real
        await self._until_counted(self._changing)
        return self._changing.allowance.statfs(real)

    def end(self) -> None:
        """Say that a change is over; the next one may wait for space that this one gives."""
        self.gate.leave()
        tree = self._changing
        if tree is not None and tree.inodes.freeing.expected and tree.needs_freed():
            self._await_space(awaited=True)

    def forgotten(self, ino: int) -> None:
        """The kernel let go of a node that only a dead worker knew."""
        if self._changing is not None:
            self._changing.forgotten(ino)

    def close(self) -> None:
        """Close the tree, which nobody uses."""
        if self._desk is not None:
            self._desk.end()
            self._desk = None
        self.gate.changed = bool
        self.tree.close()

    def drop(self) -> None:
        """Take no more changes, ever."""
        self.dropped = True
        if self._changing is not None:
            self._changing.readonly = True
            self.gate.close()


class StaleNode(OSError):
    """A request names a node that this worker does not know."""

    def __init__(self, ino: int) -> None:
        super().__init__(errno.ESTALE, os.strerror(errno.ESTALE))
        self.ino = ino


class Forest:
    """The trees of one session and the nodes that the kernel knows of them."""

    def __init__(self, inodes: Inodes, backing: BackingIds | None = None) -> None:
        """`backing` are the ids of the session's connection, where files are passed through."""
        self.inodes = inodes
        self.backing = backing
        self._has_predecessor = inodes.places is not None and bool(
            len(inodes.places) or inodes.places.is_short
        )
        self.is_without_opens = False
        """Nobody says which files are open: any that the kernel has may be mapped."""
        self.let_go: Callable[[int], object] = _ignore
        """Told each number that is forgotten later than the kernel said."""
        self.recalled: Callable[[Shown, Node], object] = _recalled
        """Told each node that is made of a file that the kernel was given without one."""
        self._doubted: dict[int, float] = {}
        """Files that may be in use, of which the kernel has said that it forgot them, and when; the
        first one first."""
        self._in_excess: set[int] = set()
        """What was doubted and the kernel had: it may have a reference less than is counted."""
        self._made_nameless: dict[int, float] = {}
        """When files were made without a name, in the last second; the first one first."""
        self._has_doubts = trio.Event()
        self._shown: dict[int, Shown] = {}
        self._incarnations = Incarnations(self._is_held)

    def find(self, nodeid: int) -> tuple[Shown, Node]:
        """Return a node that the kernel names; StaleNode makes it look the name up again."""
        ino = number_of(nodeid)
        try:
            found = self._shown[ino >> identity.LOW_BITS], self.inodes.get(ino)
        except KeyError:
            found = self._recall(ino)
        if nodeid != ino and self.nodeid(found[1]) != nodeid:
            raise StaleNode(ino)
        return found

    def nodeid(self, node: Node) -> int:
        """Return the number by which a reply names a node; see incarnations.py."""
        return self._incarnations.nodeid(node)

    def is_double(self, node: Node) -> bool:
        """Whether the kernel may know a node by two numbers."""
        return self._incarnations.is_double(node)

    def remember(self, node: Node) -> None:
        """Count one more reference that the kernel holds to a node."""
        self.inodes.remember(node)
        self._incarnations.remember(node)

    def remember_nameless(self, node: Node) -> None:
        """As `remember`, of a file that was just made without a name; its number may have been that
        of a removed one, of which a FORGET is late."""
        self.remember(node)
        if self._has_predecessor:
            latest_s = time.monotonic() - DOUBT_S
            while (first := next(iter(self._made_nameless.items()), None)) and first[1] < latest_s:
                del self._made_nameless[first[0]]
            self._made_nameless.pop(self.nodeid(node), None)
            self._made_nameless[self.nodeid(node)] = time.monotonic()

    def forget(self, nodeid: int, count: int) -> None:
        """Count `count` references less; those of a dead worker's time are not known and not
        missed.

        What the kernel forgot may have been looked up again before it is heard that it did. Where
        all references are counted that does no harm. Else the FORGET takes back those of the time
        before with those of now, and what must not end while it is in use is kept.
        """
        if not self._has_predecessor or not self._is_doubtful(nodeid, count):
            self._forget(nodeid, count)

    def end(self, parent: Node, name: bytes, node: Node, before: Before, count: int) -> bool:
        """Let a file go with its only name, and with `count` references, which are all that there
        are; False when nothing was done: there are more, or more to it."""
        if node.nlookup != count or self._incarnations.has_second(node):
            return False
        if self._is_inherited(node.ino):
            return False
        ended = cast(Tree, node.tree).end(parent, name, node, before)
        if ended:
            key = node.ino >> identity.LOW_BITS
            self._let_go(node.ino)
            self._reconsider(key, self._shown[key])
        return ended

    def _is_inherited(self, ino: int) -> bool:
        """Whether the kernel may have references to a node of which nobody knows: an earlier worker
        gave it that number, and it has not let go of it since."""
        places = self.inodes.places
        return self._has_predecessor and (places is None or places.is_inherited(ino))

    @property
    def doubts_inherited(self) -> bool:
        """Whether a FORGET of any file that an earlier worker gave the kernel may be late and take
        back what must be kept."""
        return self._has_predecessor and self.is_without_opens

    def _is_doubtful(self, nodeid: int, count: int) -> bool:
        """Whether a FORGET may be late; then all references but one have been taken back."""
        is_open = self.backing is not None and self.backing.get(nodeid) is not None
        is_used = is_open or self._is_on_its_way(nodeid)
        known = self.inodes.find(number_of(nodeid))
        if not is_used and (known is None or known.stash is None or known.link is not None):
            return (
                self.doubts_inherited
                and self._is_inherited(number_of(nodeid))
                and self._may_be_mapped(nodeid, count)
            )
        try:
            _, node = self.find(nodeid)
        except OSError:
            lookups = 0
        else:
            lookups = self._incarnations.lookups(nodeid, node)
        if count < lookups or not (is_used or kernel_has(nodeid)):
            return False
        if is_used:  # or its opens are too many: who opened it was killed between two workers
            self._doubt(nodeid)
        self._keep_one(nodeid, lookups)
        return True

    def _is_on_its_way(self, nodeid: int) -> bool:
        """Whether the kernel may not have read yet the reply that made it a file without a name.

        A name is looked up, made and removed under the kernel's lock of its directory, which it
        holds until it has read the reply. So the kernel has a removed file, or has forgotten it.
        """
        made_s = self._made_nameless.get(nodeid)
        return made_s is not None and time.monotonic() < made_s + DOUBT_S

    def _may_be_mapped(self, nodeid: int, count: int) -> bool:
        """As `_is_doubtful`, where files are opened without us: what is forgotten here is not
        written back before a commit."""
        ino = number_of(nodeid)
        node = self.inodes.find(ino)
        shown = self._shown.get(ino >> identity.LOW_BITS)
        if node is None and shown is not None:
            try:
                node = shown.tree.recall(ino)
            except OSError:  # it has lost its name
                return False
        lookups = 0 if node is None else self._incarnations.lookups(nodeid, node)
        if node is None or not lookups:  # it may be known since the worker before the last
            return kernel_has(nodeid)
        if node.type != stat.S_IFREG or count < lookups - (nodeid in self._in_excess):
            return False
        self._doubt(nodeid)
        self._keep_one(nodeid, lookups)
        return True

    def _keep_one(self, nodeid: int, lookups: int) -> None:
        if lookups > 1:
            self._forget(nodeid, lookups - 1)

    def _doubt(self, nodeid: int) -> None:
        self._doubted.pop(nodeid, None)
        self._doubted[nodeid] = time.monotonic()
        self._has_doubts.set()

    async def settle_doubts(self) -> NoReturn:
        """Forget what the kernel has forgotten after all, as long as the session lasts."""
        while True:
            while self._doubted:
                nodeid, since_s = next(iter(self._doubted.items()))
                await trio.sleep(max(0.0, since_s + DOUBT_S - time.monotonic()))
                if self._doubted.get(nodeid) == since_s:
                    try:
                        self._settle_doubt(nodeid)
                    except Exception:
                        log.exception("fuse.forget_failed", inode=nodeid, count=1)
            self._has_doubts = trio.Event()
            await self._has_doubts.wait()

    def _settle_doubt(self, nodeid: int) -> None:
        del self._doubted[nodeid]
        if kernel_has(nodeid):
            self._in_excess.add(nodeid)
            return
        self._in_excess.discard(nodeid)
        self._forget(nodeid, 1)
        self.let_go(nodeid)

    def _forget(self, nodeid: int, count: int) -> None:
        ino = number_of(nodeid)
        key = ino >> identity.LOW_BITS
        shown = self._shown.get(key)
        if shown is not None and nodeid == ino and shown.tree.handed.forget(ino, count):
            if shown.tree.handed.peek(ino) is None:
                self.strike(ino)
                self._let_go(nodeid)
            self._reconsider(key, shown)
            return
        try:
            node = self.inodes.get(ino)
        except KeyError:
            if self.inodes.places is not None:
                self.inodes.places.drop(ino)
            if shown is not None:
                shown.forgotten(ino)
        else:
            known = min(count, self._incarnations.lookups(nodeid, node))
            self.inodes.forget(ino, known)
            self._incarnations.forget(nodeid, node, known)
            if shown is not None and shown.desk is not None and not node.nlookup:
                shown.desk.strike(ino)
        self._let_go(nodeid)
        if shown is not None:
            self._reconsider(key, shown)

    def _let_go(self, nodeid: int) -> None:
        """Close the backing id of a node that the kernel has forgotten: another file may get its
        number."""
        if self._refers_to(nodeid):
            return
        self._in_excess.discard(nodeid)
        if self.backing is not None:
            self.backing.forgotten(nodeid)

    def _refers_to(self, nodeid: int) -> bool:
        ino = number_of(nodeid)
        if ino not in self.inodes:
            return False
        return self._incarnations.lookups(nodeid, self.inodes.get(ino)) > 0

    def _is_held(self, ino: int) -> bool:
        if self.backing is None:
            return False
        entry = self.backing.get(ino)
        if entry is not None and entry.kind == Kind.LOWER:
            return True
        return self.backing.get(ino | INCARNATION) is not None

    def strike(self, ino: int) -> None:
        """Have nothing answered about a node in the fast lane from where its file was noted."""
        shown = self._shown.get(ino >> identity.LOW_BITS)
        if shown is not None and shown.desk is not None:
            shown.desk.strike(ino)

    def released(self, shown: Shown, ino: int) -> None:
        """A handle on node `ino` was closed."""
        shown.handles -= 1
        self._reconsider(ino >> identity.LOW_BITS, shown)

    def is_known(self, ino: int) -> bool:
        """Whether the kernel has a reference to a node that we know of."""
        return ino in self.inodes

    def numbers(self, root: int) -> list[int]:
        """Return the numbers of files of a tree that the kernel may have data of: those with a
        node, those that were read without one, and all that an earlier worker handed out.

        The tree is named by the number of its root; nobody may have looked at it yet.
        """
        key = root >> identity.LOW_BITS
        if self._has_predecessor and self.inodes.places is not None:
            return self.inodes.places.below(root, identity.LOW_BITS)
        found = [
            it.ino
            for it in self.inodes
            if it.ino >> identity.LOW_BITS == key and it.type == stat.S_IFREG
        ]
        shown = self._shown.get(key)
        return found if shown is None else found + shown.tree.handed.touched()

    @property
    def notes_are_short(self) -> bool:
        """Whether the kernel may have files that nothing says it has: an earlier worker's memory
        was damaged."""
        return self.inodes.places is not None and self.inodes.places.is_short

    @property
    def lookups(self) -> int:
        """The kernel's references to all nodes."""
        return sum(shown.tree.lookups for shown in self._shown.values())

    @property
    def known_count(self) -> int:
        """Files and directories that the kernel refers to."""
        without = sum(len(shown.tree.handed) for shown in self._shown.values())
        return len(self.inodes) + without

    def statfs(self) -> os.statvfs_result:
        """Return the figures of the file system that takes the changes."""
        raise NotImplementedError

    def syncfs(self) -> None:
        """Make all changes durable. Blocks; safe in any thread."""
        raise NotImplementedError

    def close(self) -> None:
        """Close every tree."""
        for shown in self._shown.values():
            shown.close()
        self._shown.clear()

    def _recall(self, ino: int) -> tuple[Shown, Node]:
        """Make the node of a file that was handed out without one."""
        shown = self._shown.get(ino >> identity.LOW_BITS)
        node = None if shown is None else shown.tree.recall(ino)
        if shown is None or node is None:
            return self._adopt(ino)
        self.recalled(shown, node)
        return shown, node

    def _adopt(self, ino: int) -> tuple[Shown, Node]:
        raise StaleNode(ino)

    def _reconsider(self, key: int, shown: Shown) -> None:
        """Close a tree that nobody uses, where it can be opened again."""


class SingleForest(Forest):
    """One tree whose root is the mount's root."""

    def __init__(
        self,
        tree: Tree,
        inodes: Inodes,
        backing: BackingIds | None = None,
        *,
        caches_absence: bool = True,
    ) -> None:
        super().__init__(inodes, backing)
        self._tree = tree
        shown = Shown(tree, tree, Gate())
        shown.caches_absence = caches_absence
        self._shown[0] = shown
        self.remember(tree.root)

    def statfs(self) -> os.statvfs_result:
        return self._tree.statfs()

    def syncfs(self) -> None:
        if self._tree.upper is not None:
            syncfs(self._tree.upper.path)


def _ignore(nodeid: int) -> None:
    pass


def _recalled(shown: Shown, node: Node) -> None:
    pass
