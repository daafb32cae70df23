"""Rename. A merged or lower directory moves by a redirect; what was visible below leaves a
whiteout.

Everything that can fail comes before the one rename that users see. What is prepared (copies, a
redirect to where a directory is anyway, an empty target cleared of its whiteouts) changes no view.
"""

from __future__ import annotations

import errno
import os

from . import xattrs
from .copyup import abandon, clone_dir, directory_up, mark_impure, materialise, stash_name
from .core import MergedTree
from .layer import is_whiteout, refuse, stat_or_none
from .node import Dir, Node
from .remove import has_entries, in_upper, is_empty, lower_name_gone, retire
from .syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT
from .syscalls import rename as rename_real

_TOO_LONG = (errno.ENOSPC, errno.E2BIG, errno.ERANGE, errno.ENAMETOOLONG)


def rename(
    tree: MergedTree, parent: Dir, name: bytes, new_parent: Dir, new_name: bytes, flags: int
) -> None:
    """Move a name, as renameat2(2) with NOREPLACE or EXCHANGE."""
    if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
        raise refuse(errno.EINVAL, name)
    node = tree.lookup(parent, name)
    target = tree.find(new_parent, new_name)
    _check(tree, node, parent, target, new_parent, new_name, flags)
    if target is node:
        return
    directory_up(tree, parent)
    directory_up(tree, new_parent)
    materialise(tree, node, parent, name)
    _prepare(tree, node, new_parent, new_name)
    if flags == RENAME_EXCHANGE and target is not None:
        _exchange(tree, node, parent, name, target, new_parent, new_name)
    else:
        _replace(tree, node, parent, name, target, new_parent, new_name)


def _check(
    tree: MergedTree,
    node: Node,
    parent: Dir,
    target: Node | None,
    new_parent: Dir,
    new_name: bytes,
    flags: int,
) -> None:
    """Refuse what rename(2) refuses, before anything is copied up."""
    if new_parent.dead:
        raise refuse(errno.ENOENT, new_name)
    if flags == RENAME_EXCHANGE and target is None:
        raise refuse(errno.ENOENT, new_name)
    if flags == RENAME_NOREPLACE and target is not None:
        raise refuse(errno.EEXIST, new_name)
    if isinstance(node, Dir) and _is_inside(new_parent, node):
        raise refuse(errno.EINVAL, new_name)
    if target is None or target is node:
        return
    if flags != RENAME_EXCHANGE:
        _check_replaced(tree, node, parent, target, new_name)
    elif isinstance(target, Dir) and _is_inside(parent, target):
        raise refuse(errno.EINVAL, new_name)


def _check_replaced(
    tree: MergedTree, node: Node, parent: Dir, target: Node, new_name: bytes
) -> None:
    if isinstance(target, Dir):
        if _is_inside(parent, target):
            raise refuse(errno.ENOTEMPTY, new_name)
        if not isinstance(node, Dir):
            raise refuse(errno.EISDIR, new_name)
        if not is_empty(tree, target):
            raise refuse(errno.ENOTEMPTY, new_name)
    elif isinstance(node, Dir):
        raise refuse(errno.ENOTDIR, new_name)


def _is_inside(node: Dir | None, ancestor: Dir) -> bool:
    """Whether a directory is `ancestor` or lies below it."""
    while node is not None:
        if node is ancestor:
            return True
        node = node.parent
    return False


def _prepare(tree: MergedTree, node: Node, parent: Dir, name: bytes) -> None:
    """Mark a node and its new parent so that it will mean the same under its new name."""
    if isinstance(node, Dir):
        if node.stack:
            _set_redirect(tree, node, parent)
        elif not node.opaque and tree.lower_entry(parent, name) is not None:
            xattrs.put(tree.real_path(node), xattrs.OPAQUE, b"y")
            node.opaque = True
    if node.copied or (isinstance(node, Dir) and node.stack):
        mark_impure(tree, parent)


def _set_redirect(tree: MergedTree, node: Dir, parent: Dir) -> None:
    """Say on disk where a directory's lower part is; by a name if the parent stays the same."""
    origin = node.origin_path()
    above, name = os.path.split(origin)
    short = above.rstrip(b"/") == parent.origin_path() and bool(parent.stack)
    try:
        xattrs.put(tree.real_path(node), xattrs.REDIRECT, name if short else origin)
    except OSError as error:
        if error.errno in _TOO_LONG:
            raise refuse(errno.EXDEV, node.name) from error
        raise
    node.origin = origin


def _exchange(
    tree: MergedTree,
    node: Node,
    parent: Dir,
    name: bytes,
    target: Node,
    new_parent: Dir,
    new_name: bytes,
) -> None:
    materialise(tree, target, new_parent, new_name)
    _prepare(tree, target, parent, name)
    fd, path = tree.upper_layer.at(parent.prefix() + name)
    new_fd, new_path = tree.upper_layer.at(new_parent.prefix() + new_name)
    rename_real(fd, path, new_fd, new_path, RENAME_EXCHANGE)
    node.drop_name(parent, name)
    target.drop_name(new_parent, new_name)
    _moved(tree, node, new_parent, new_name)
    _moved(tree, target, parent, name)


def _replace(
    tree: MergedTree,
    node: Node,
    parent: Dir,
    name: bytes,
    target: Node | None,
    new_parent: Dir,
    new_name: bytes,
) -> None:
    shown_below = tree.lower_entry(parent, name) is not None
    fd, path = tree.upper_layer.at(parent.prefix() + name)
    new_fd, new_path = tree.upper_layer.at(new_parent.prefix() + new_name)
    target_in_upper = target is not None and in_upper(tree, target, new_fd, new_path)
    saved = False
    if target is not None and target_in_upper:
        saved = _save_target(tree, target, new_fd, new_path)
    try:
        if isinstance(node, Dir) and target is None and _has_whiteout(new_fd, new_path):
            rename_real(fd, path, new_fd, new_path, RENAME_EXCHANGE)
            if not shown_below:
                os.unlink(path, dir_fd=fd)
        else:
            rename_real(fd, path, new_fd, new_path, RENAME_WHITEOUT if shown_below else 0)
    except OSError:
        if target is not None and saved:
            _give_back(tree, target, new_fd, new_path)
        raise
    node.drop_name(parent, name)
    if target is not None:
        _replaced(tree, target, new_parent, new_name, in_upper=target_in_upper)
    _moved(tree, node, new_parent, new_name)


def _has_whiteout(fd: int, path: bytes) -> bool:
    real = stat_or_none(fd, path)
    return real is not None and is_whiteout(real)


def _save_target(tree: MergedTree, target: Node, fd: int, path: bytes) -> bool:
    """Keep a known target usable after it was replaced, and empty a directory of its whiteouts."""
    work = tree.work
    if isinstance(target, Dir):
        if target.nlookup or has_entries(tree, target):
            _swap_for_empty(tree, target, fd, path)
            return True
    elif target.nlookup and target.stash is None and len(target.names()) == 1:
        stash = stash_name(target)
        os.link(path, stash, src_dir_fd=fd, dst_dir_fd=work.layer.fd, follow_symlinks=False)
        target.stash = stash
        return True
    return False


def _give_back(tree: MergedTree, target: Node, fd: int, path: bytes) -> None:
    """Undo _save_target after a rename that failed."""
    stash = stash_name(target)
    if isinstance(target, Dir):
        rename_real(tree.work.layer.fd, stash, fd, path, RENAME_EXCHANGE)
    tree.work.discard(stash)
    target.stash = None


def _swap_for_empty(tree: MergedTree, target: Dir, fd: int, path: bytes) -> None:
    """Exchange an empty merged directory for an opaque one without whiteouts (ovl_clear_empty)."""
    work, temp = tree.work, tree.work.temp()
    try:
        clone_dir(tree, target, temp)
        xattrs.put(work.proc(temp), xattrs.OPAQUE, b"y")
        rename_real(work.layer.fd, temp, fd, path, RENAME_EXCHANGE)
    except OSError:
        work.discard(temp)
        raise
    stash = stash_name(target)
    rename_real(work.layer.fd, temp, work.layer.fd, stash)
    target.stash = stash


def _replaced(tree: MergedTree, target: Node, parent: Dir, name: bytes, *, in_upper: bool) -> None:
    """Book a name that another node took over."""
    if isinstance(target, Dir):
        retire(tree, target, parent, name)
        return
    target.drop_name(parent, name)
    if not in_upper:
        lower_name_gone(tree, target)
    elif target.parent is None and target.stash is None:
        abandon(tree, target)


def _moved(tree: MergedTree, node: Node, parent: Dir, name: bytes) -> None:
    """Book a node's new name; cached paths below a directory are stale from now on."""
    node.add_name(parent, name)
    if isinstance(node, Dir):
        tree.epoch += 1
        tree.upper_layer.forget_steps()
