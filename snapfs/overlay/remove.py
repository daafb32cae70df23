"""Removal of names: unlink and rmdir, with whiteouts where the lower layers show the name.

A file that the kernel still knows is moved to the work directory instead, and deleted at forget.
"""

from __future__ import annotations

import contextlib
import errno
import os

from . import identity, metacopy
from .copyup import abandon, directory_up, found, stash_name
from .core import MergedTree, directory
from .layer import refuse, scan, stat_or_none
from .node import GONE, Dir, Node
from .quota import ENTRY_BYTES
from .syscalls import RENAME_WHITEOUT, rename
from .usage import Before, whiteouts_in


def unlink(tree: MergedTree, parent: Dir, name: bytes) -> None:
    """Remove a name of a file."""
    node = tree.lookup(parent, name)
    if isinstance(node, Dir):
        raise refuse(errno.EISDIR, name)
    visible_below = tree.lower_entry(parent, name) is not None
    fd, path = _place(tree, parent, name)
    tree.usage.note(parent)
    tree.usage.note(node)
    if not in_upper(tree, node, fd, path):
        _check_whiteout(tree)
        tree.work.put_whiteout(fd, path)
        node.drop_name(parent, name)
        lower_name_gone(tree, node)
        return
    last = node.stash is None and len(node.names()) == 1
    if last and tree.may_be_known(node):
        _keep(tree, node, fd, path, whiteout=visible_below)
    else:
        with tree.usage.losing(node) if last else contextlib.nullcontext():
            _delete(tree, fd, path, whiteout=visible_below)
    node.drop_name(parent, name)
    if last and node.stash is None:
        abandon(tree, node)


def _check_whiteout(tree: MergedTree) -> None:
    """Refuse, when the quota is used up, to remove what takes a whiteout and gives nothing."""
    if tree.allowance.bounded:
        shared = tree.work.shared_whiteout()
        tree.allowance.check(ENTRY_BYTES, 0 if shared is not None and shared.st_nlink > 1 else 1)


def _delete(tree: MergedTree, fd: int, path: bytes, *, whiteout: bool) -> None:
    if whiteout:
        tree.work.replace_by_whiteout(fd, path)
    else:
        os.unlink(path, dir_fd=fd)


def _place(tree: MergedTree, parent: Dir, name: bytes) -> tuple[int, bytes]:
    directory_up(tree, parent)
    return tree.upper_layer.at(parent.prefix() + name)


def in_upper(tree: MergedTree, node: Node, fd: int, path: bytes) -> bool:
    """Whether the upper layer itself has this name of a node."""
    if node.link is not None:
        return stat_or_none(fd, path) is not None
    return node.is_above


def lower_name_gone(tree: MergedTree, node: Node) -> None:
    """Keep the count of a hard link's names after one that was only in the lower layers went."""
    if node.link is not None:
        found(tree, node)
    elif not node.up:
        fd, path = tree.where(node)
        nlink = os.stat(path, dir_fd=fd, follow_symlinks=False).st_nlink
        low = node.ino & identity.LOW_MASK
        if nlink > 1 and identity.lasts(low):
            tree.links.count_removed(low, nlink)


def _keep(tree: MergedTree, node: Node, fd: int, path: bytes, *, whiteout: bool) -> None:
    """Move what a known node is to the work directory, leaving a whiteout or nothing."""
    stash = stash_name(node)
    metacopy.say_where(tree, node)
    flags = RENAME_WHITEOUT if whiteout else 0
    rename(fd, path, tree.work.layer.fd, stash, flags)
    node.stash = stash
    if not node.is_dir:
        tree.work.expect(os.stat(stash, dir_fd=tree.work.layer.fd, follow_symlinks=False).st_blocks)
    if whiteout:
        tree.usage.whiteout_made(os.stat(path, dir_fd=fd, follow_symlinks=False))


def take_out(tree: MergedTree, node: Node, parent: Dir, name: bytes, *, further: bool) -> None:
    """Book that a name of an upper file or empty directory went. It was kept, unless it has a
    `further` one that is known; this one need not be: it may have been an earlier process's."""
    if further:
        if (parent, name) in node.names():
            node.drop_name(parent, name)
        return
    node.stash = stash_name(node)
    if isinstance(node, Dir):
        _strike(tree, node, parent, name)
    else:
        node.drop_name(parent, name)


def end(tree: MergedTree, node: Node, parent: Dir, name: bytes, before: Before) -> bool:
    """Book what `take_out` and a FORGET of all lookups do with a file that lost its only name, and
    delete it; False when it is to go the long way."""
    is_only = node.parent is parent and node.name == name and not node.more_names
    if not is_only or node.is_dir or node.stash is not None or before.st_nlink != 1:
        return False
    try:
        tree.work.unlink_kept(stash_name(node), before.st_blocks)
    except OSError:
        return False
    tree.usage.lost(node, before)
    node.drop_name(parent, name)
    node.stash = GONE
    tree.inodes.end(node)
    return True


def rmdir(tree: MergedTree, parent: Dir, name: bytes) -> None:
    """Remove a directory in which nothing is visible."""
    node = directory(tree.lookup(parent, name))
    if not is_empty(tree, node):
        raise refuse(errno.ENOTEMPTY, name)
    visible_below = tree.lower_entry(parent, name) is not None
    fd, path = _place(tree, parent, name)
    tree.usage.note(parent)
    tree.usage.note(node)
    if not node.up:
        _check_whiteout(tree)
        tree.work.put_whiteout(fd, path)
        retire(tree, node, parent, name)
        return
    if tree.may_be_known(node) or visible_below or has_entries(tree, node):
        _keep(tree, node, fd, path, whiteout=visible_below)
    else:
        os.rmdir(path, dir_fd=fd)
    retire(tree, node, parent, name)


def retire(tree: MergedTree, node: Dir, parent: Dir, name: bytes) -> None:
    """Strike out a directory that was removed; it stays readable (and empty) while it is known."""
    _strike(tree, node, parent, name)
    if node.up and node.stash is not None:
        _drop_whiteouts(tree, node.stash)
    if node.up and not tree.may_be_known(node):
        if node.stash is not None:
            tree.work.discard(node.stash)
        node.stash = GONE


def _strike(tree: MergedTree, node: Dir, parent: Dir, name: bytes) -> None:
    tree.upper_layer.forget_steps()
    tree.handed.close(node.ino)
    node.drop_name(parent, name)
    node.dead = True
    tree.inodes.leave(node)


def _drop_whiteouts(tree: MergedTree, stash: bytes) -> None:
    """Delete what a removed directory hid of the lower layers: nothing is looked up in it again."""
    for whiteout in whiteouts_in(tree.work.proc(stash)):
        tree.usage.whiteout_gone(whiteout)
    tree.work.empty(stash)


def is_empty(tree: MergedTree, node: Dir) -> bool:
    """Whether a merged directory shows nothing."""
    return not tree.listing(node, fresh=True)


def has_entries(tree: MergedTree, node: Dir) -> bool:
    """Whether the upper directory holds anything, which in an empty merged one are whiteouts."""
    return any(True for _ in scan(tree.real_path(node)))
