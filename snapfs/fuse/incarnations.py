"""Two node numbers for one file: what it was before it was copied up, and the copy.

The kernel goes on reading the lower file through descriptors that were open before the copy-up, by
the node number that it knew then; one number cannot have two files behind it at a time. So while
such a descriptor is open the file gets a second number, the first with `INCARNATION` set, which
later look-ups hand out. Both mean the same overlay node, and both show the same st_ino.

INVARIANT: `_seconds` has the kernel's references to second numbers; those to first numbers are the
rest of `Node.nlookup`. A file keeps its second number until its node is forgotten.
"""

from __future__ import annotations

import stat
from collections.abc import Callable

from snapfs.fuse.channel import INCARNATION
from snapfs.overlay import Node


def number_of(nodeid: int) -> int:
    """Return the inode number behind either of a file's node numbers."""
    return nodeid & ~INCARNATION


class Incarnations:
    """Which files of a session have second numbers, and the kernel's references to them."""

    def __init__(self, is_held: Callable[[int], bool]) -> None:
        """`is_held` says whether the kernel has a lower file open by this number, or a copy by its
        second."""
        self._is_held = is_held
        self._seconds: dict[int, int] = {}

    def nodeid(self, node: Node) -> int:
        """Return the number to hand out for a node from now on."""
        ino = node.ino
        if ino in self._seconds:
            return ino | INCARNATION
        if node.copied and node.type == stat.S_IFREG and self._is_held(ino):
            self._seconds[ino] = 0
            return ino | INCARNATION
        return ino

    def remember(self, node: Node) -> None:
        """Count a reference to the number that is handed out now."""
        if node.ino in self._seconds:
            self._seconds[node.ino] += 1

    def lookups(self, nodeid: int, node: Node) -> int:
        """Return the kernel's references to one number."""
        second = self._seconds.get(node.ino, 0)
        return second if nodeid != node.ino else node.nlookup - second

    def forget(self, nodeid: int, node: Node, count: int) -> None:
        """Count references less; to be called after they were taken from the node."""
        if nodeid != node.ino and node.ino in self._seconds:  # else it is of a dead worker's time
            self._seconds[node.ino] -= count
        if not node.nlookup:
            self._seconds.pop(node.ino, None)

    def has_second(self, node: Node) -> bool:
        """Whether a node has a second number."""
        return node.ino in self._seconds

    def is_double(self, node: Node) -> bool:
        """Whether the kernel may know a node by both numbers."""
        second = self._seconds.get(node.ino)
        return second is not None and (node.nlookup > second or self._is_held(node.ino))
