"""What becomes of a change that a dead worker had in hand, when the kernel sends it again.

While a change of names waits for its answer the kernel holds the lock of the directories that it is
about, and it asked for the change because of what it had seen there. So what is there now tells
whether a change that was noted has happened: each appears whole, in one system call. What was not
noted has not begun (inflight.py).

An open that empties its file is noted when that is done: the kernel holds no lock meanwhile, and
what others have written past us since is to stay.

All else is done again and comes to the same: a write or a copy goes to the offset that the request
names, attributes are set to what it says, looking does nothing. An open or a release is counted
once with the number of its request (backing.py).
"""

from __future__ import annotations

import errno
import os
import stat

import pyfuse3

from snapfs.fuse.inflight import IN_DOUBT, Noting
from snapfs.overlay import Node, Tree
from snapfs.overlay.syscalls import RENAME_WHITEOUT

Spot = tuple[Node, bytes]
"""A name in a directory."""


def made(once: Noting, tree: Tree, parent: Node, name: bytes) -> Node | None:
    """Return the node of a new name that is there already; with None, make it: it is noted."""
    if once.earlier is not None:
        found = _find(tree, parent, name)
        if found is not None:
            return found
    once.intend()
    return None


def removed(once: Noting, tree: Tree, parent: Node, name: bytes) -> bool:
    """Whether a name is gone already; if not, remove it: it is noted."""
    if once.earlier is not None and _find(tree, parent, name) is None:
        return True
    once.intend()
    return False


def moved(once: Noting, tree: Tree, old: Spot, new: Spot, flags: int) -> bool:
    """Whether a name was moved, or two exchanged, already; if not, do it: it is noted.

    Raises FileNotFoundError when there is nothing to move, EIO when nobody can say what happened.
    """
    note = once.earlier
    target = _find(tree, *new)
    if note is IN_DOUBT:
        if flags & pyfuse3.RENAME_EXCHANGE:
            raise OSError(errno.EIO, "two names may have been exchanged already", new[1])
        if target is not None and _find(tree, *old) is None:
            _note_places(target)
            return True
    elif note is not None and target is not None and target.ino == note.first:
        left = _find(tree, *old)
        _note_places(target, left)
        return left is None or bool(flags & (pyfuse3.RENAME_EXCHANGE | RENAME_WHITEOUT))
    once.intend(tree.lookup(*old).ino, 0 if target is None else target.ino)
    return False


def _note_places(*nodes: Node | None) -> None:
    """Note where nodes are that the kernel knows, as who moved them could not any more."""
    for node in nodes:
        if node is not None:
            node.tree.inodes.note_place(node)


def finish_move(tree: Tree, old: Spot, flags: int, *, uid: int, gid: int) -> None:
    """Make the device that a move leaves, which comes after the move itself."""
    if flags & RENAME_WHITEOUT and _find(tree, *old) is None:
        tree.mknod(*old, stat.S_IFCHR, 0, uid=uid, gid=gid, umask=0)


def attribute_set(once: Noting, tree: Tree, node: Node, name: bytes, flags: int) -> bool:
    """Whether an attribute that was to be new is there already; if not, set it: it is noted.

    Setting one that may be there needs no note.
    """
    if not flags & os.XATTR_CREATE:
        return False
    if once.earlier is not None and has_attribute(tree, node, name):
        return True
    once.intend()
    return False


def attribute_removed(once: Noting, tree: Tree, node: Node, name: bytes) -> bool:
    """Whether an attribute is gone already; if not, remove it: it is noted."""
    if once.earlier is not None and not has_attribute(tree, node, name):
        return True
    once.intend()
    return False


def has_attribute(tree: Tree, node: Node, name: bytes) -> bool:
    """Whether a node has an attribute, as users see it."""
    return name in tree.listxattr(node)


def _find(tree: Tree, parent: Node, name: bytes) -> Node | None:
    try:
        return tree.lookup(parent, name)
    except FileNotFoundError:
        return None
