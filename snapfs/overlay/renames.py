"""Rename. A lower or merged directory moves by a redirect; a name shown below leaves a whiteout.

Everything that can fail comes before the one rename that users see. What is prepared (copies, a
redirect to where a directory is anyway, an empty target cleared of its whiteouts) changes no view.
"""

from __future__ import annotations

import errno
import os
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from . import devices, metacopy, xattrs
from .copyup import abandon, clone_dir, directory_up, mark_impure, materialise, stash_name
from .core import MergedTree
from .create import Owner, publish
from .layer import is_whiteout, refuse, stat_or_none
from .node import Dir, Node
from .quota import ENTRY_BYTES
from .remove import has_entries, in_upper, is_empty, lower_name_gone, retire
from .syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT
from .syscalls import rename as rename_real

_TOO_LONG = (errno.ENOSPC, errno.E2BIG, errno.ERANGE, errno.ENAMETOOLONG)


class Spot(NamedTuple):
    """A name in a directory, whether or not there is anything."""

    parent: Dir
    name: bytes

    def real(self, tree: MergedTree) -> tuple[int, bytes]:
        """Directory descriptor and path in the upper layer."""
        return tree.upper_layer.at(self.parent.prefix() + self.name)


_KNOWN = (
    0,
    RENAME_NOREPLACE,
    RENAME_EXCHANGE,
    RENAME_WHITEOUT,
    RENAME_WHITEOUT | RENAME_NOREPLACE,
)


def rename(tree: MergedTree, old: Spot, new: Spot, flags: int, owner: Owner) -> None:
    """Move a name, as renameat2(2) with its flags; `owner` gets the device of a WHITEOUT."""
    if flags not in _KNOWN:
        raise refuse(errno.EINVAL, old.name)
    node = tree.lookup(*old)
    target = tree.find(*new)
    _check(tree, node, old, target, new, flags)
    if target is node:
        return
    directory_up(tree, old.parent)
    directory_up(tree, new.parent)
    materialise(tree, node, *old)
    grows = target is None and old.parent is not new.parent
    leaves_whiteout = tree.lower_entry(*old) is not None
    tree.allowance.check(ENTRY_BYTES if grows else 0, 1 if leaves_whiteout else 0)
    for changing in (old.parent, new.parent, node, target):
        if changing is not None:
            tree.usage.note(changing)
    _prepare(tree, node, new)
    if flags == RENAME_EXCHANGE and target is not None:
        _exchange(tree, node, old, target, new)
    elif flags & RENAME_WHITEOUT:
        _replace_leaving_device(tree, node, old, target, new, owner)
    else:
        _replace(tree, node, old, target, new)


def take_over(node: Node, parent: Dir, name: bytes) -> None:
    """Book that a file with one name has another one. It never is without."""
    before = node.names()[0]
    before[0].changes += 1
    node.add_name(parent, name)
    node.drop_name(*before)


def _replace_leaving_device(
    tree: MergedTree, node: Node, old: Spot, target: Node | None, new: Spot, owner: Owner
) -> None:
    """Rename, then put a 0:0 device at the old name, which was made ready before.

    Two steps on disk. A crash between them loses the device and nothing else.
    """
    work, temp = tree.work, tree.work.temp()
    try:
        devices.make(work.layer.fd, temp, 0)
        os.chown(temp, owner.uid, owner.gid, dir_fd=work.layer.fd, follow_symlinks=False)
        _replace(tree, node, old, target, new)
        publish(tree, temp, *old, is_dir=False)
    except OSError:
        work.discard(temp)
        raise
    tree.usage.new(tree.lookup(*old))


def _check(
    tree: MergedTree, node: Node, old: Spot, target: Node | None, new: Spot, flags: int
) -> None:
    """Refuse what rename(2) refuses, before anything is copied up."""
    if new.parent.dead or (flags == RENAME_EXCHANGE and target is None):
        raise refuse(errno.ENOENT, new.name)
    if flags & RENAME_NOREPLACE and target is not None:
        raise refuse(errno.EEXIST, new.name)
    if isinstance(node, Dir) and _is_inside(new.parent, node):
        raise refuse(errno.EINVAL, new.name)
    if target is None or target is node:
        return
    if flags != RENAME_EXCHANGE:
        _check_replaced(tree, node, old, target, new)
    elif isinstance(target, Dir) and _is_inside(old.parent, target):
        raise refuse(errno.EINVAL, new.name)


def _check_replaced(tree: MergedTree, node: Node, old: Spot, target: Node, new: Spot) -> None:
    if isinstance(target, Dir):
        if _is_inside(old.parent, target):
            raise refuse(errno.ENOTEMPTY, new.name)
        if not isinstance(node, Dir):
            raise refuse(errno.EISDIR, new.name)
        if not is_empty(tree, target):
            raise refuse(errno.ENOTEMPTY, new.name)
    elif isinstance(node, Dir):
        raise refuse(errno.ENOTDIR, new.name)


def _is_inside(node: Dir | None, ancestor: Dir) -> bool:
    """Whether a directory is `ancestor` or lies below it."""
    while node is not None:
        if node is ancestor:
            return True
        node = node.parent
    return False


def _prepare(tree: MergedTree, node: Node, new: Spot) -> None:
    """Mark a node and its new parent so that it will mean the same under its new name."""
    merged = False
    if isinstance(node, Dir):
        merged = bool(node.stack)
        if merged:
            _set_redirect(tree, node, new.parent)
        elif not node.opaque and tree.lower_entry(*new) is not None:
            xattrs.put(tree.real_path(node), xattrs.OPAQUE, b"y")
            node.opaque = True
    if node.copied or merged:
        mark_impure(tree, new.parent)


def _set_redirect(tree: MergedTree, node: Dir, parent: Dir) -> None:
    """Say on disk where a directory's lower part is; by a name if the parent stays the same.

    Until the rename it must be true of the parent that the directory leaves, too.
    """
    origin = node.origin_path()
    above, name = os.path.split(origin)
    stays = node.parent is parent and bool(parent.stack)
    short = stays and above.rstrip(b"/") == parent.origin_path()
    try:
        xattrs.put(tree.real_path(node), xattrs.REDIRECT, name if short else origin)
    except OSError as error:
        if error.errno in _TOO_LONG:
            raise refuse(errno.EXDEV, node.name) from error
        raise
    node.origin = origin


def _exchange(tree: MergedTree, node: Node, old: Spot, target: Node, new: Spot) -> None:
    materialise(tree, target, *new)
    tree.usage.note(target)
    _prepare(tree, target, old)
    rename_real(*old.real(tree), *new.real(tree), RENAME_EXCHANGE)
    node.drop_name(*old)
    target.drop_name(*new)
    _moved(tree, node, new)
    _moved(tree, target, old)


def _replace(tree: MergedTree, node: Node, old: Spot, target: Node | None, new: Spot) -> None:
    in_upper_layer = target is not None and in_upper(tree, target, *new.real(tree))
    saved = target is not None and in_upper_layer and _save_target(tree, target, new)
    try:
        with _losing(tree, target, in_upper_layer=in_upper_layer):
            _rename_real(tree, node, old, target, new)
    except OSError:
        if target is not None and saved:
            _give_back(tree, target, new)
        raise
    node.drop_name(*old)
    if target is not None:
        _replaced(tree, target, new, in_upper_layer=in_upper_layer)
    _moved(tree, node, new)


def _rename_real(tree: MergedTree, node: Node, old: Spot, target: Node | None, new: Spot) -> None:
    """The one rename; where the lower layers show the old name, a whiteout stays there."""
    shown_below = tree.lower_entry(*old) is not None
    fd, path = old.real(tree)
    new_fd, new_path = new.real(tree)
    whiteout = _whiteout(new_fd, new_path) if target is None else None
    if isinstance(node, Dir) and whiteout is not None:
        rename_real(fd, path, new_fd, new_path, RENAME_EXCHANGE)
        if shown_below:
            return
        os.unlink(path, dir_fd=fd)
    else:
        rename_real(fd, path, new_fd, new_path, RENAME_WHITEOUT if shown_below else 0)
        if shown_below:
            tree.usage.whiteout_made(os.stat(path, dir_fd=fd, follow_symlinks=False))
    if whiteout is not None:
        tree.usage.whiteout_gone(whiteout)


def _whiteout(fd: int, path: bytes) -> os.stat_result | None:
    real = stat_or_none(fd, path)
    return real if real is not None and is_whiteout(real) else None


def _losing(
    tree: MergedTree, target: Node | None, *, in_upper_layer: bool
) -> AbstractContextManager[None]:
    """Tell the usage count of a target that nothing will lead to once it is replaced."""
    if target is None or isinstance(target, Dir) or not in_upper_layer:
        return nullcontext()
    if target.stash is not None or len(target.names()) > 1:
        return nullcontext()
    return tree.usage.losing(target)


def _save_target(tree: MergedTree, target: Node, new: Spot) -> bool:
    """Keep a known target usable after it is replaced, and empty a directory of its whiteouts."""
    if isinstance(target, Dir):
        if tree.may_be_known(target) or has_entries(tree, target):
            _swap_for_empty(tree, target, new)
            return True
    elif tree.may_be_known(target) and target.stash is None and len(target.names()) == 1:
        stash, work = stash_name(target), tree.work.layer.fd
        metacopy.say_where(tree, target)
        fd, path = new.real(tree)
        try:
            os.link(path, stash, src_dir_fd=fd, dst_dir_fd=work, follow_symlinks=False)
        except FileExistsError:  # of a process that died before the rename
            os.unlink(stash, dir_fd=work)
            os.link(path, stash, src_dir_fd=fd, dst_dir_fd=work, follow_symlinks=False)
        target.stash = stash
        return True
    return False


def _swap_for_empty(tree: MergedTree, target: Dir, new: Spot) -> None:
    """Exchange an empty merged directory for an opaque one without whiteouts (ovl_clear_empty)."""
    work, temp = tree.work, tree.work.temp()
    try:
        clone_dir(tree, target, temp)
        xattrs.put(work.proc(temp), xattrs.OPAQUE, b"y")
        rename_real(work.layer.fd, temp, *new.real(tree), RENAME_EXCHANGE)
    except OSError:
        work.discard(temp)
        raise
    stash = stash_name(target)
    rename_real(work.layer.fd, temp, work.layer.fd, stash)
    target.stash = stash


def _give_back(tree: MergedTree, target: Node, new: Spot) -> None:
    """Undo _save_target after a rename that failed."""
    stash = stash_name(target)
    if isinstance(target, Dir):
        rename_real(tree.work.layer.fd, stash, *new.real(tree), RENAME_EXCHANGE)
    tree.work.discard(stash)
    target.stash = None


def _replaced(tree: MergedTree, target: Node, new: Spot, *, in_upper_layer: bool) -> None:
    """Book a name that another node took over."""
    if isinstance(target, Dir):
        retire(tree, target, *new)
        return
    target.drop_name(*new)
    if not in_upper_layer:
        lower_name_gone(tree, target)
    elif target.parent is None and target.stash is None:
        abandon(tree, target)


def _moved(tree: MergedTree, node: Node, new: Spot) -> None:
    """Book a node's new name; cached paths below a directory are stale from now on."""
    node.add_name(*new)
    if tree.may_be_known(node):  # to who moves it; an earlier process may have handed it out
        tree.inodes.note_place(node, new.parent)
    if isinstance(node, Dir):
        tree.usage.moved()
        tree.epoch += 1
        tree.handed.moved()
        tree.upper_layer.forget_steps()
