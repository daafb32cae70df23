"""Finding nodes that only a dead worker knew, by their numbers.

The kernel goes on with the numbers that it was given: of open files, of working directories, of
all that it has in its caches. They are the same for each worker, and where each node is was noted
(overlay, Places): its directory, by number. So a node is found by finding its directory first, up
to the snapshot's root, and then among the names of it; one that has lost its name is found in what
is kept of removed files. A directory's names are read once for all that are asked for in the next
seconds.

The notes are hints. What is not where they say, because a move was under way when its worker died,
is looked for in the whole tree, once for all such nodes. So is what was removed and is still in the
lower layers: whether a name there was removed or moved, only its copy's place tells.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import structlog
import trio

from snapfs.fuse.trees import Forest
from snapfs.overlay import Dir, DirEntry, Node, Tree, identity

MOST_WALKS = 3
"""Of a tree in which directories move meanwhile, for one node."""
_TROUBLE = frozenset({errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""What says nothing of a node; who asked hears it, and may ask again."""
KEPT_S = 30.0
"""How long what was read is remembered after its last use."""

_NOTHING: Mapping[int, int] = MappingProxyType({})
"""No walk was made."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Remembered:
    """What was read of one tree: the names of directories by number, and where a walk saw nodes."""

    used_s: float
    names: dict[int, tuple[Dir, int, dict[int, bytes]]] = field(default_factory=dict)
    """Directories, how often each had changed then, and its names by number.

    Holding the node keeps it the one that counts the changes.
    """
    walked: dict[int, int] = field(default_factory=dict)
    """The directory of each node."""
    lost: set[int] = field(default_factory=set)
    """Numbers that are nowhere, so that asking again costs no walk."""


class Recovery:
    """Finds nodes in the trees of a forest. Everything runs on trio's thread."""

    def __init__(self, forest: Forest) -> None:
        self._forest = forest
        self._trees: dict[int, Remembered] = {}
        self._turn = trio.Lock()
        """Held by who walks: the others find what it found."""

    async def recover(self, ino: int) -> bool:
        """Make a node known again; False when there is no such node.

        Raises OSError when nobody can say whether there is: a directory cannot be read.
        """
        key, low = identity.split(ino)
        if not key or not low or not identity.lasts(low) or self._forest.inodes.places is None:
            return False
        try:
            shown, _ = self._forest.find(key << identity.LOW_BITS)
            if not isinstance(shown.tree, Tree):
                return False
            self._forget_old()
            node = self._find(shown.tree, ino) or await self._search(shown.tree, ino)
        except OSError as error:
            if error.errno in _TROUBLE:
                log.error("node.recovery_failed", inode=ino, error=str(error))
                raise
            log.info("node.not_recovered", inode=ino, error=str(error))  # its snapshot is gone
            return False
        if node is None:
            return False
        if not self._forest.is_known(ino):
            self._forest.remember(node)
        return True

    def _find(self, tree: Tree, ino: int, seen: Mapping[int, int] = _NOTHING) -> Node | None:
        """Return a node that is where the notes say; or, rather, where a walk has `seen` it."""
        known = self._forest.inodes.find(ino)
        if known is not None:
            return known
        parent: Node | None = None
        for number in self._way(tree, ino, seen):
            moved = seen is _NOTHING or number in seen
            parent = self._child(tree, number, parent, moved=moved)
        return parent

    def _way(self, tree: Tree, ino: int, seen: Mapping[int, int]) -> list[int]:
        """Return the numbers from a node that is known, or of which nothing is noted, down."""
        places = self._forest.inodes.places
        way = [ino]
        while self._forest.inodes.find(ino) is None and ino != tree.root.ino:
            ino = seen.get(ino) or (places.get(ino) if places is not None else 0)
            if not ino or ino in way:
                break
            way.append(ino)
        return way[::-1]

    def _child(self, tree: Tree, ino: int, parent: Node | None, *, moved: bool) -> Node | None:
        if ino == tree.root.ino:
            return tree.root
        node = self._forest.inodes.find(ino)
        if node is not None:
            return node
        if isinstance(parent, Dir) and not parent.dead:
            name = self._names(tree, parent).get(ino)
            if name is not None:
                try:
                    node = tree.lookup(parent, name)
                except FileNotFoundError:
                    node = None
                if node is not None and node.ino == ino:
                    return node
        return tree.nameless(ino, parent, moved=moved)

    def _names(self, tree: Tree, parent: Dir) -> dict[int, bytes]:
        known = self._remembered(tree).names
        found = known.get(parent.ino)
        if found is None or found[:2] != (parent, parent.changes):
            found = known[parent.ino] = parent, parent.changes, tree.names_by_number(parent)
        return found[2]

    async def _search(self, tree: Tree, ino: int) -> Node | None:
        """Look for a node in its whole tree."""
        async with self._turn:
            remembered = self._remembered(tree)
            if ino in remembered.lost:
                return None
            node = self._find(tree, ino)
            if node is None and ino in remembered.walked:
                node = self._find(tree, ino, remembered.walked)
            if node is None:  # what was seen then may have lost its name since
                await self._walk(tree, remembered)
                node = self._find(tree, ino) or self._find(tree, ino, remembered.walked)
            if node is not None:
                self._forest.inodes.note_place(node)
            else:
                remembered.lost.add(ino)
            return node

    async def _walk(self, tree: Tree, remembered: Remembered) -> None:
        """Note the place of every node of a tree, letting other requests through in between.

        When directories moved meanwhile, perhaps to where it had been already, it begins again; the
        last time it lets nobody through.
        """
        began_s = trio.current_time()
        for left in reversed(range(MOST_WALKS)):
            epoch = tree.epoch
            remembered.walked = {}
            for directory, entry in entries(tree):
                if entry is not None:
                    remembered.walked[entry.ino] = directory.ino
                elif left:
                    await trio.lowlevel.checkpoint()
            if tree.epoch == epoch:
                break
        remembered.used_s = trio.current_time()
        dur_ms = round((trio.current_time() - began_s) * 1000)
        log.info("tree.walked", root=tree.root.ino, nodes=len(remembered.walked), dur_ms=dur_ms)

    def _remembered(self, tree: Tree) -> Remembered:
        now_s = trio.current_time()
        found = self._trees.setdefault(tree.root.ino, Remembered(now_s))
        found.used_s = now_s
        return found

    def _forget_old(self) -> None:
        now_s = trio.current_time()
        for root in [root for root, it in self._trees.items() if it.used_s + KEPT_S < now_s]:
            del self._trees[root]


def entries(tree: Tree) -> Iterator[tuple[Node, DirEntry | None]]:
    """Yield each entry of a tree with its directory, and None behind the last of each."""
    pending: list[Node] = [tree.root]
    while pending:
        directory = pending.pop()
        if isinstance(directory, Dir) and directory.dead:
            continue  # removed since it was seen
        for entry in tree.readdir(directory):
            yield directory, entry
            if entry.type == stat.S_IFDIR:
                node = tree.lookup(directory, entry.name)
                if isinstance(node, Dir):
                    pending.append(node)
        yield directory, None
