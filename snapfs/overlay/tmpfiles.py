"""Files that are made without a name (O_TMPFILE) and may get one later.

Such a file lies in the work directory as a removed one does, in no layer: what counts, freezes or
commits the layer does not meet it. It goes when it is forgotten. Its first link moves it to its
name, by one rename.
"""

from __future__ import annotations

import os
import stat

from . import create
from .copyup import stash_name
from .core import MergedTree
from .node import Dir, Node
from .quota import ENTRY_BYTES
from .syscalls import rename


def tmpfile(
    tree: MergedTree, parent: Dir, mode: int, flags: int, owner: create.Owner
) -> tuple[Node, int]:
    """Make a nameless regular file that is to inherit from `parent`, and open it.

    The caller remembers the node: forgetting it deletes the file.
    """
    tree.allowance.check(0, 1)
    new = create.plan(tree, parent, stat.S_IFREG | stat.S_IMODE(mode), owner)
    temp = tree.work.temp()
    how = flags & os.O_ACCMODE | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temp, how, new.mode, dir_fd=tree.work.layer.fd)
    try:
        create.dress(tree, temp, new)
        return _keep(tree, temp, fd), fd
    except OSError:
        os.close(fd)
        tree.work.discard(temp)
        raise


def _keep(tree: MergedTree, temp: bytes, fd: int) -> Node:
    real = os.fstat(fd)
    ino = tree.prefix | tree.numbers.low(real.st_dev, real.st_ino)
    node = Node(tree, ino, stat.S_IFREG, None, b"")
    stash, work = stash_name(node), tree.work.layer.fd
    rename(work, temp, work, stash)
    node.up, node.stash = True, stash
    tree.inodes.enter(node)
    tree.linkable.add(ino)
    tree.usage.new(node)
    return node


def link_first(tree: MergedTree, node: Node, parent: Dir, name: bytes) -> None:
    """Give a nameless file its first name; FileExistsError when that is visible."""
    stash = node.stash
    if stash is None:
        raise ValueError(f"node {node.ino} has a name")
    create.check_free(tree, parent, name)
    tree.allowance.check(ENTRY_BYTES)
    tree.usage.note(node)
    tree.usage.note(parent)
    create.publish(tree, stash, parent, name, is_dir=False)
    node.stash = None
    node.add_name(parent, name)
    tree.linkable.discard(node.ino)
