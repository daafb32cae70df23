"""Nodes of merged trees and the table of those that the kernel knows.

A node is one file, whatever it is called and wherever its data lies: a copy-up, a rename or a
second hard link changes where a node is found, never which node it is.

INVARIANT a node is in its parent's `children` under each of its known names exactly while its
lookup count is above zero; a child keeps its parent alive. Nodes that were looked up but not
remembered are found again, as long as somebody holds them, through weak references.

The kernel may also be given files of lower directories without a node being made (`Handed`, in C):
a node that is made later takes over the count. INVARIANT a number is counted in one place only.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from .freeing import Freeing
from .layer import Layer, Layers, Place

if TYPE_CHECKING:
    from ._names import Index, Places
    from .core import MergedTree
    from .links import Link


GONE = b"gone"
"""Stash of a removed file that nobody kept: a name that is never there."""


class Node:
    """One file of a merged tree. Read its public attributes; only the overlay changes them."""

    __slots__ = (
        "__weakref__",
        "copied",
        "ino",
        "layer",
        "link",
        "lower_path",
        "metacopy",
        "more_names",
        "name",
        "nlookup",
        "parent",
        "stash",
        "synced",
        "tree",
        "type",
        "up",
    )

    def __init__(
        self, tree: MergedTree, ino: int, kind: int, parent: Dir | None, name: bytes
    ) -> None:
        self.tree = tree
        self.ino = ino
        """The visible inode number, which is the FUSE node id too."""
        self.type = kind
        """File type: S_IFMT bits."""
        self.nlookup = 0
        """How often the kernel looked this node up and has not forgotten it; kept by Inodes."""
        self.parent = parent
        """Directory of one of its names; None for a root and for a file without names."""
        self.name = name
        self.more_names: list[tuple[Dir, bytes]] | None = None
        self.up = False
        """Its data is in the upper layer (or in the work directory, see `stash`). Of a node that
        exists only `rise` sets this."""
        self.metacopy = False
        """All but its data is in the upper layer: that is in the lower file still (metacopying.py).
        Then it is not `up`."""
        self.copied = False
        """Its upper file is a copy of a lower one and carries its number as an attribute."""
        self.synced = False
        """Somebody has waited for an fsync of its upper file, since that has its present one."""
        self.stash: bytes | None = None
        """Name in the work directory to reach the upper file by, when none in the tree will do."""
        self.layer: Layer | None = None
        self.lower_path = b""
        """Where the lower file is, in `layer`. Unused by directories."""
        self.link: Link | None = None
        """Bookkeeping of a lower file with several names."""

    @property
    def is_dir(self) -> bool:
        return self.type == stat.S_IFDIR

    @property
    def is_above(self) -> bool:
        """Whether the upper layer has a file for it, with its data or without."""
        return self.up or self.metacopy

    @property
    def owes_name(self) -> bool:
        """Whether fdatasync(2) may leave out the name by which its file is found after a power cut:
        ext4 does that with one which a copy-up gave it."""
        return self.copied and not self.synced

    def rise(self) -> None:
        """Be in the upper layer from now on, as the copy of a lower file."""
        self.up = self.copied = True
        self.metacopy = self.synced = False
        self.tree.inodes.changed(self.ino)

    def leave_data(self, layer: Layer, path: bytes) -> None:
        """Be a metadata-only copy, whose data is in a lower file."""
        self.up = self.copied = False
        self.metacopy = True
        self.layer, self.lower_path = layer, path

    def names(self) -> list[tuple[Dir, bytes]]:
        """All names known at the moment."""
        first = [] if self.parent is None else [(self.parent, self.name)]
        return first + (self.more_names or [])

    def add_name(self, parent: Dir, name: bytes) -> None:
        """Note a name of this node; a no-op when it is known."""
        if self.parent is parent and self.name == name:
            return
        if self.parent is None:
            self.parent, self.name = parent, name
        elif self.more_names is None:
            self.more_names = [(parent, name)]
        elif (parent, name) not in self.more_names:
            self.more_names.append((parent, name))
        else:
            return
        if self.nlookup:
            parent.children[name] = self
            self.tree.inodes.note_place(self, parent)

    def drop_name(self, parent: Dir, name: bytes) -> None:
        """Strike a name out; `parent` is None afterwards when it was the last one known."""
        if parent.children.get(name) is self:
            del parent.children[name]
        if self.parent is parent and self.name == name:
            if self.more_names:
                self.parent, self.name = self.more_names.pop()
            else:
                self.parent = None
        elif self.more_names:
            self.more_names.remove((parent, name))
        if not self.more_names:
            self.more_names = None
        if self.parent is None:
            self.tree.inodes.changed(self.ino)
        elif self.nlookup:
            self.tree.inodes.note_place(self)


class Dir(Node):
    """A directory of a merged tree."""

    __slots__ = (
        "_prefix",
        "changes",
        "children",
        "dead",
        "epoch",
        "impure",
        "index",
        "inherits",
        "opaque",
        "origin",
        "stack",
    )

    def __init__(self, tree: MergedTree, ino: int, parent: Dir | None, name: bytes) -> None:
        super().__init__(tree, ino, stat.S_IFDIR, parent, name)
        self.children: dict[bytes, Node] = {}
        self.changes = 0
        """Counts changes of its names: a listing of an older count is stale."""
        self.stack: tuple[Place, ...] = ()
        """Its directories in the lower layers, topmost first."""
        self.index: Index | None = None
        """Merged names of the stack, once read."""
        self.impure = False
        """The upper directory is marked: children may carry numbers of lower files."""
        self.opaque = False
        """The upper directory is marked opaque."""
        self.origin: bytes | None = None
        """Absolute path of the stack in the lower chain, where that differs from the path here."""
        self.inherits: tuple[int, bytes | None] | None = None
        """What new entries take over, once read: group id or -1, and the default ACL."""
        self.dead = False
        """Removed from the tree, but still known to somebody."""
        self._prefix = b""
        self.epoch = -1

    def prefix(self) -> bytes:
        """Path in the upper layer with a slash behind it; empty for the root."""
        epoch = self.tree.epoch
        if self.epoch == epoch:
            return self._prefix
        stale = []
        here = self
        while here.epoch != epoch and here.parent is not None:
            stale.append(here)
            here = here.parent
        prefix = here._prefix
        for node in reversed(stale):
            prefix = node._prefix = b"%s%s/" % (prefix, node.name)
            node.epoch = epoch
        return prefix

    def origin_path(self) -> bytes:
        """Absolute path at which the lower chain has this directory's stack; empty for the root."""
        names = []
        here = self
        while here.origin is None and here.parent is not None:
            names.append(here.name)
            here = here.parent
        return b"/".join([here.origin or b"", *reversed(names)])


class Inodes:
    """The nodes of all trees of a lane, by number, and what the trees share: layers, and what is
    being freed."""

    def __init__(self, places: Places | None = None) -> None:
        """`places` is told where each node is, for a process that comes later."""
        self.layers = Layers()
        self.freeing = Freeing()
        self.places = places
        self.changed: Callable[[int], object] = _ignore
        """Told the number of each lower file that becomes an upper one, with its data or without,
        is about to get that, or loses its last known name, in the step that does it."""
        self._known: dict[int, Node] = {}
        self._passing: WeakValueDictionary[int, Node] = WeakValueDictionary()

    def __len__(self) -> int:
        """Number of nodes with a lookup count."""
        return len(self._known)

    def __contains__(self, ino: int) -> bool:
        """Whether a number is that of a remembered node."""
        return ino in self._known

    def __iter__(self) -> Iterator[Node]:
        """Return the nodes with a lookup count, as they are now."""
        return iter(list(self._known.values()))

    def get(self, ino: int) -> Node:
        """Return a remembered node; KeyError when the kernel should not know this number."""
        return self._known[ino]

    def find(self, ino: int) -> Node | None:
        """Return a node that anybody holds."""
        return self._known.get(ino) or self._passing.get(ino)

    def meet(self, ino: int) -> Node | None:
        """As find, when the node is about to be used by a name."""
        node = self.find(ino)
        if node is not None:
            self.take(node)
        return node

    def enter(self, node: Node) -> None:
        """Make a new node findable."""
        self._passing[node.ino] = node
        self.take(node)

    def take(self, node: Node) -> None:
        """Let a node count the lookups that were counted without it."""
        count = node.tree.handed.take(node.ino)
        if count:
            self._count(node, count)

    def note_place(self, node: Node, parent: Dir | None = None) -> None:
        """Note for a process that comes later where a node is that the kernel knows: in `parent`,
        or where its first name is."""
        parent = parent or node.parent
        if self.places is not None and parent is not None:
            self.places.note(node.ino, parent.ino)

    def leave(self, node: Node) -> None:
        """Make a node that lost its last name unfindable, so that its number can be used again."""
        self._passing.pop(node.ino, None)

    def remember(self, node: Node) -> None:
        """Count one lookup by the kernel."""
        self._count(node, 1)

    def _count(self, node: Node, lookups: int) -> None:
        if not node.nlookup:
            self._known[node.ino] = node
            self._passing.pop(node.ino, None)
            node.tree.handed.claim(node.ino)
            for parent, name in node.names():
                parent.children[name] = node
            self.note_place(node)
        node.nlookup += lookups
        node.tree.counted += lookups

    def forget(self, ino: int, count: int) -> None:
        """Take back `count` lookups; at zero the node goes, with what only it kept alive."""
        node = self._known[ino]
        node.nlookup -= count
        node.tree.counted -= count
        if node.nlookup > 0:
            return
        node.nlookup = 0
        self._strike(node)
        for parent, name in node.names():
            if parent.children.get(name) is node:
                del parent.children[name]
        if node.parent is not None or node is node.tree.root:
            self._passing[ino] = node
        node.tree.released(node)

    def end(self, node: Node) -> None:
        """Forget a node that is known, and whose file is gone with its last name."""
        node.tree.counted -= node.nlookup
        node.nlookup = 0
        self._strike(node)

    def _strike(self, node: Node) -> None:
        del self._known[node.ino]
        if self.places is not None:
            self.places.drop(node.ino)
        node.tree.handed.disclaim(node.ino)

    def drop(self, tree: MergedTree) -> list[Node]:
        """Forget all nodes of a tree at once; returns them for the caller to invalidate."""
        gone = [node for node in self._known.values() if node.tree is tree]
        for node in gone:
            self.forget(node.ino, node.nlookup)
        for node in [it for it in self._passing.values() if it.tree is tree]:
            self.leave(node)  # somebody may hold on to it; nobody is to find it
        tree.handed.clear()
        return gone


def _ignore(ino: int) -> None:
    pass
