"""Where files are, for the fast lane: it answers attributes and opens of a file from there.

INVARIANT: what is told of a file ends when it is copied up (`Node.rise`) or has lost its last name
(`Node.drop_name`). Otherwise a place may be old: the fast lane uses what it finds there only if it
is the same file.
"""

from __future__ import annotations

import stat
from collections.abc import Callable

from snapfs.fuse._desk import Desk
from snapfs.fuse.channel import INCARNATION
from snapfs.fuse.hot import Hot
from snapfs.fuse.trees import Forest, Shown
from snapfs.overlay import Dir, Node, Tree


class Places:
    """Tells where files are, and takes it back."""

    def __init__(self, hot: Hot, forest: Forest, desk: Callable[[Shown], Desk | None]) -> None:
        """`desk` gives the one of a tree, if it may have one."""
        self._hot = hot
        self._forest = forest
        self._desk = desk
        forest.inodes.changed = self.withdraw

    def place(self, shown: Shown, node: Node) -> None:
        """Tell where a regular file or symbolic link is now, or a directory of the upper layer; not
        of a file with two numbers."""
        tree = shown.tree
        if not self._hot.on or not isinstance(tree, Tree):
            return
        if isinstance(node, Dir):
            self._place_directory(shown, tree, node)
        elif node.type in (stat.S_IFREG, stat.S_IFLNK):
            desk = self._desk(shown)
            place = tree.place_of(node)
            if desk is None or place is None or node.parent is None:
                return
            if self._forest.nodeid(node) == node.ino:
                fd, path = place
                of = (node.ino, fd, path, node.type, node.is_above, node.parent.ino)
                data = tree.data_place_of(node)
                if data is not None:
                    desk.note(*of, *data)
                elif not node.metacopy:
                    desk.note(*of)

    def _place_directory(self, shown: Shown, tree: Tree, node: Dir) -> None:
        if not node.up or node.dead:
            return
        desk = self._desk(shown)
        place = tree.place_of(node)
        if desk is not None and place is not None:
            desk.note_directory(node.ino, *place, tree.index(node) if node.stack else None)

    def withdraw(self, ino: int) -> None:
        """Take everything back, of all incarnations of a file."""
        self._forest.strike(ino)
        if self._forest.backing is not None:
            self._forest.backing.withdraw(ino)
            self._forest.backing.withdraw(ino | INCARNATION)
