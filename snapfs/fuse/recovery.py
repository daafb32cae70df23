"""Finding nodes that only a dead worker knew, by their numbers.

A path is walked again by the kernel when a node on it is ESTALE. An open file or a working
directory has no path; and where files are not opened (noopen.py) the kernel asks for contents of
what it looked up in the time of another worker. Numbers are the same as then, so one walk through
the merged tree says what is where; its outcome serves all that is asked for in the next seconds.

Nodes without a name are not found: a removed file that was open stays ESTALE.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass

import structlog
import trio

from snapfs.fuse.trees import Forest, Shown
from snapfs.overlay import Dir, Node, identity

KEPT_S = 30.0
"""How long a walk is remembered after its last use."""
MOST_LOST = 10_000
"""Numbers remembered as not to be found, so that asking again costs no walk."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Walk:
    """Where the nodes of a tree are: for each, the number of its directory and its name there."""

    places: dict[int, tuple[int, bytes]]
    used_s: float

    def path(self, ino: int, root: int) -> list[bytes] | None:
        """Return the names that lead to a node, or None."""
        names: list[bytes] = []
        while ino != root:
            place = self.places.get(ino)
            if place is None:
                return None
            ino, name = place
            names.append(name)
        return names[::-1]


class Recovery:
    """Finds nodes in the trees of a forest. Everything runs on trio's thread."""

    def __init__(self, forest: Forest) -> None:
        self._forest = forest
        self._walks: dict[int, Walk] = {}
        self._turn = trio.Lock()
        """Held by who walks: the others find what it found."""
        self._lost: set[int] = set()

    async def recover(self, ino: int) -> bool:
        """Make a node known again; False when there is no such node."""
        key, low = identity.split(ino)
        if not low or ino in self._lost or not identity.lasts(low):
            return False
        async with self._turn:
            self._forget_old()
            try:
                shown, root = self._forest.find(key << identity.LOW_BITS)
                is_found = self._follow(key, shown, root, ino)
                if not is_found:
                    await self._walk(key, shown, root)
                    is_found = self._follow(key, shown, root, ino)
            except OSError as error:
                log.warning("node.not_recovered", inode=ino, error=str(error))
                return False
            if not is_found:
                self._note_lost(ino)
            return is_found

    def _follow(self, key: int, shown: Shown, root: Node, ino: int) -> bool:
        """Look a node up where the walk saw it; False when it is not there."""
        walk = self._walks.get(key)
        names = walk.path(ino, root.ino) if walk else None
        if walk is None or names is None:
            return False
        walk.used_s = trio.current_time()
        node = root
        try:
            for name in names:
                node = shown.tree.lookup(node, name)
        except (FileNotFoundError, NotADirectoryError):
            return False  # moved or removed since the walk
        if node.ino != ino:
            return False
        self._forest.remember(node)
        return True

    async def _walk(self, key: int, shown: Shown, root: Node) -> None:
        """Note the place of every node of a tree, letting other requests through in between."""
        began_s = trio.current_time()
        places: dict[int, tuple[int, bytes]] = {}
        pending = [root]
        while pending:
            directory = pending.pop()
            for entry in shown.tree.readdir(directory):
                places[entry.ino] = (directory.ino, entry.name)
                if entry.type == stat.S_IFDIR:
                    node = shown.tree.lookup(directory, entry.name)
                    if isinstance(node, Dir):
                        pending.append(node)
            await trio.lowlevel.checkpoint()
        self._walks[key] = Walk(places, trio.current_time())
        dur_ms = round((trio.current_time() - began_s) * 1000)
        log.info("tree.walked", root=root.ino, nodes=len(places), dur_ms=dur_ms)

    def _forget_old(self) -> None:
        now_s = trio.current_time()
        for key in [key for key, it in self._walks.items() if it.used_s + KEPT_S < now_s]:
            del self._walks[key]

    def _note_lost(self, ino: int) -> None:
        if len(self._lost) >= MOST_LOST:
            self._lost.clear()
        self._lost.add(ino)
