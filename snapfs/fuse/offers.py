"""What handlers offer the fast lane: answers about files of lower layers, which do not change.

INVARIANT: offers are about files that are in a lower layer only. Such a file answers differently
once it is copied up (`Node.rise`) or has lost its name (`Node.drop_name`); both take offers back.
"""

from __future__ import annotations

import errno
import stat

from snapfs.fuse.attributes import View
from snapfs.fuse.channel import INCARNATION
from snapfs.fuse.hot import Hot
from snapfs.fuse.trees import Shown
from snapfs.overlay import Inodes, Node

_NAMESPACES = (b"security.", b"user.")
"""Attributes whose absence in one name is their absence in another, where there are none at all."""


class Offers:
    """Decides what is offered, and takes it back."""

    def __init__(self, hot: Hot, view: View, inodes: Inodes) -> None:
        self._hot = hot
        self._view = view
        inodes.changed = self.withdraw

    def attributes(self, nodeid: int, shown: Shown, node: Node) -> None:
        """Offer what GETATTR is being answered. Other names of a file may come and go above."""
        if not self._hot.on or self._view.owners is not None or not _is_lower_file(node):
            return
        found = shown.tree.getattr(node)
        if found.nlink == 1:
            self._hot.offer_attributes(nodeid, found, self._view.timeout_s)

    def absence(self, nodeid: int, shown: Shown, node: Node, name: bytes, answer: OSError) -> None:
        """Offer that a file has no attributes, when GETXATTR was just answered so for one."""
        if not self._hot.on or answer.errno != errno.ENODATA or not _is_lower_file(node):
            return
        namespace = next((it for it in _NAMESPACES if name.startswith(it)), None)
        if namespace is not None and not shown.tree.listxattr(node):
            self._hot.offer_no_xattrs(nodeid, user=namespace == b"user.")

    def withdraw(self, ino: int) -> None:
        """Take everything back, of all incarnations of a file."""
        self._hot.withdraw(ino)
        self._hot.withdraw(ino | INCARNATION)


def _is_lower_file(node: Node) -> bool:
    return node.type == stat.S_IFREG and not node.up and node.layer is not None
