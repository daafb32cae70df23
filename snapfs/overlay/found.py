"""Nodes found again by their numbers, when only an earlier process knew them.

The kernel names files by number alone. One that has a name is among those of its directory; one
that has none any more is what was removed while it was in use:

* an upper file or directory, in the work directory under its number (work.py);
* a file whose other names are in the lower layers still, the same way (links.py);
* a lower file or directory behind a whiteout, still in its directory's lower layers.
"""

from __future__ import annotations

import stat

from . import identity, lower, metacopy, xattrs
from .copyup import stash_name
from .core import MergedTree
from .layer import scan, stat_or_none
from .node import Dir, Node


def names_by_number(tree: MergedTree, parent: Dir) -> dict[int, bytes]:
    """Return each number that is in a directory, with a name of it."""
    index = tree.listing(parent, fresh=True)
    return {tree.entry_ino(parent, name, packed): name for name, packed in lower.tops(index)}


def nameless(tree: MergedTree, ino: int, parent: Dir | None, *, moved: bool) -> Node | None:
    """Make the node of what was removed while it was in use; None when nothing is left of it.

    `parent` is the directory where it had its name, for what lies in the lower layers: that is left
    alone when it may have `moved`, for then it has a copy under another name.
    """
    node = _kept(tree, ino, parent) or _linked(tree, ino)
    if node is None and not moved:
        node = _hidden(tree, ino, parent)
    if node is not None:
        tree.inodes.enter(node)
    return node


def kept_numbers(tree: MergedTree) -> list[int]:
    """Return the numbers of what the work directory keeps because somebody may still use it."""
    if tree.upper is None:
        return []
    names = (entry.name for entry in scan(tree.work.proc(b".")))
    return [tree.prefix | int(name[1:], 16) for name in names if name.startswith(b"o")]


def _kept(tree: MergedTree, ino: int, parent: Dir | None) -> Node | None:
    """What the work directory keeps under the number."""
    if tree.upper is None:
        return None
    node = Node(tree, ino, stat.S_IFREG, None, b"")
    stash = stash_name(node)
    real = stat_or_none(*tree.work.at(stash))
    if real is None:
        return None
    if stat.S_ISDIR(real.st_mode):
        node = _dead(tree, ino, parent)
    node.type = stat.S_IFMT(real.st_mode)
    node.up, node.stash = True, stash
    node.copied = xattrs.get(tree.work.proc(stash), xattrs.INO) is not None
    if node.type == stat.S_IFREG and real.st_nlink == 1:
        tree.linkable.add(ino)  # the kernel knows whether it was removed, or never had a name
    if xattrs.get(tree.work.proc(stash), xattrs.METACOPY) is not None:
        _find_data(tree, node, parent)
    return node


def _find_data(tree: MergedTree, node: Node, parent: Dir | None) -> None:
    """Note where the data of a metadata-only copy is that has no name any more."""
    found = metacopy.find_nameless(tree, tree.work.proc(stash_name(node)))
    entry = None if found or parent is None else _lower_entry(tree, node.ino, parent)
    if parent is not None and entry is not None:
        name, below = entry
        found = lower.file_of(parent.stack, lower.top(below), name)
    if found is not None:
        node.leave_data(*found)


def _linked(tree: MergedTree, ino: int) -> Node | None:
    """What has a copy for names that nobody has asked for."""
    if tree.upper is None:
        return None
    link = tree.links.get(ino & identity.LOW_MASK)
    real = stat_or_none(*tree.work.at(link.stash)) if link is not None and link.upper else None
    if link is None or real is None:
        return None
    node = Node(tree, ino, stat.S_IFMT(real.st_mode), None, b"")
    node.up = node.copied = True
    node.link, node.stash = link, link.stash
    return node


def _hidden(tree: MergedTree, ino: int, parent: Dir | None) -> Node | None:
    """What the lower layers have under the number, whatever the upper one says of its name."""
    found = None if parent is None else _lower_entry(tree, ino, parent)
    if parent is None or found is None:
        return None
    name, entry = found
    packed = lower.top(entry)
    if lower.kind_of(packed) == stat.S_IFDIR:
        return _dead(tree, ino, parent)
    return tree.nameless_lower(parent, name, packed)


def _dead(tree: MergedTree, ino: int, parent: Dir | None) -> Dir:
    """A directory that was removed: nothing is shown in it."""
    node = Dir(tree, ino, None, b"")
    node.dead = True
    found = None if parent is None else _lower_entry(tree, ino, parent)
    if parent is not None and found is not None:
        name, entry = found
        node.stack = lower.stack_of(tree.roots, parent.stack, name, entry)
    return node


def _lower_entry(tree: MergedTree, ino: int, parent: Dir) -> tuple[bytes, lower.Entry] | None:
    """Name and entry of a number in a directory's lower layers."""
    if not parent.stack:
        return None
    low = ino & identity.LOW_MASK
    index = tree.index(parent)
    name = next((name for name, packed in lower.tops(index) if lower.low_of(packed) == low), None)
    entry = None if name is None else index.get(name)
    return None if name is None or entry is None else (name, entry)
