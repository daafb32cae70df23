"""Inode flags (chattr(1)): immutable and append-only are the overlay's own affair.

A file that carried them in the upper layer could not be copied, moved, or removed with its layer.
So they are kept as kernel overlayfs keeps them, in `trusted.overlay.protattr`, and this module says
what they forbid, which are the kernel's own rules (may_delete(), may_open(), setattr_prepare()).
All other flags are set on the upper file itself. Flags that a lower file has from elsewhere count
too.

A layer with such attributes is marked at its root, so that trees without any never look for them.
"""

from __future__ import annotations

import errno
import os
import stat

from .copyup import copy_up
from .core import MergedTree
from .filecalls import (
    FALLOC_FL_KEEP_SIZE,
    FS_APPEND_FL,
    FS_CASEFOLD_FL,
    FS_IMMUTABLE_FL,
    FS_PROJINHERIT_FL,
    FS_VERITY_FL,
    FS_XFLAG_APPEND,
    FS_XFLAG_IMMUTABLE,
    FS_XFLAG_PROJINHERIT,
    ExtendedFlags,
    get_extended,
    get_flags,
    set_extended,
    set_flags,
)
from .layer import refuse
from .node import Dir, Node
from .protection import APPEND, IMMUTABLE, PROTECTING, protection, store
from .types import SetAttr

_FIXED = FS_CASEFOLD_FL | FS_PROJINHERIT_FL | FS_VERITY_FL
"""Not for users: names would mean another thing, or renames between directories would fail."""
_XFLAGS = {FS_IMMUTABLE_FL: FS_XFLAG_IMMUTABLE, FS_APPEND_FL: FS_XFLAG_APPEND}
_XFLAGS_PROTECTING = FS_XFLAG_IMMUTABLE | FS_XFLAG_APPEND


Spot = tuple[Node, bytes]
"""A name in a directory."""

# What they forbid


def check_create(tree: MergedTree, parent: Node) -> None:
    """Refuse a new name in an immutable directory."""
    if protection(tree, parent) & IMMUTABLE:
        raise refuse(errno.EPERM, parent.name)


def check_remove(tree: MergedTree, parent: Node, name: bytes) -> None:
    """Refuse to take a name from a protected directory, or from a protected file."""
    node = tree.lookup(parent, name)
    if protection(tree, parent):
        raise refuse(errno.EPERM, name)
    check_change(tree, node)


def check_rename(tree: MergedTree, old: Spot, new: Spot) -> None:
    """Refuse to take either name from where it is, or to give a directory one."""
    check_remove(tree, *old)
    try:
        check_remove(tree, *new)
    except FileNotFoundError:
        check_create(tree, new[0])


def check_change(tree: MergedTree, node: Node) -> None:
    """Refuse a change of owner, mode, attributes or the number of names."""
    if protection(tree, node):
        raise refuse(errno.EPERM, node.name)


def check_setattr(tree: MergedTree, node: Node, change: SetAttr) -> None:
    """Refuse a setattr: of an append-only file, times may be set to the present one."""
    only_times = change.mode is change.uid is change.gid is change.size is None
    touches = only_times and not change.gives_times
    if protection(tree, node) & (IMMUTABLE if touches else PROTECTING):
        raise refuse(errno.EPERM, node.name)


def check_open(tree: MergedTree, node: Node, flags: int) -> None:
    """Refuse to open for writing: what is append-only opens with O_APPEND and without O_TRUNC."""
    appends = flags & os.O_APPEND and not flags & os.O_TRUNC
    if protection(tree, node) & (IMMUTABLE if appends else PROTECTING):
        raise refuse(errno.EPERM, node.name)


def only_grows(tree: MergedTree, node: Node) -> bool:
    """Whether a file is append-only."""
    return bool(protection(tree, node) & APPEND)


def check_fallocate(tree: MergedTree, node: Node, mode: int) -> None:
    """Refuse to change the space of a file; of an append-only one it may be reserved."""
    reserves = not mode & ~FALLOC_FL_KEEP_SIZE
    if protection(tree, node) & (IMMUTABLE if reserves else PROTECTING):
        raise refuse(errno.EPERM, node.name)


# Reading and setting them


def get(tree: MergedTree, node: Node) -> int:
    """Return a node's FS_*_FL; OSError(ENOTTY) where there are none."""
    fd = _open(tree, node)
    try:
        return get_flags(fd) | protection(tree, node)
    finally:
        os.close(fd)


def get_fields(tree: MergedTree, node: Node) -> ExtendedFlags:
    """Return a node's struct fsxattr."""
    fd = _open(tree, node)
    try:
        found = get_extended(fd)
    finally:
        os.close(fd)
    return found._replace(xflags=found.xflags | _to_xflags(protection(tree, node)))


def put(tree: MergedTree, node: Node, flags: int) -> None:
    """Set FS_*_FL. The caller has asked whether it may be; OSError(EOPNOTSUPP) for some."""
    if (get(tree, node) ^ flags) & _FIXED:
        raise refuse(errno.EOPNOTSUPP, node.name)
    copy_up(tree, node)
    tree.usage.note(node)
    fd = _open(tree, node)
    try:
        old = get_flags(fd)
        new = flags & ~PROTECTING | old & PROTECTING
        if new != old:
            set_flags(fd, new)
    finally:
        os.close(fd)
    store(tree, node, flags & PROTECTING)


def put_fields(tree: MergedTree, node: Node, wanted: ExtendedFlags) -> None:
    """Set what a struct fsxattr says, but for the project, which stays as it is."""
    shown = get_fields(tree, node)
    moved = (shown.xflags ^ wanted.xflags) & FS_XFLAG_PROJINHERIT
    if moved or shown.project != wanted.project:
        raise refuse(errno.EOPNOTSUPP, node.name)
    copy_up(tree, node)
    tree.usage.note(node)
    fd = _open(tree, node)
    try:
        old = get_extended(fd)
        kept = old.xflags & _XFLAGS_PROTECTING
        new = wanted._replace(
            xflags=wanted.xflags & ~_XFLAGS_PROTECTING | kept, extents=old.extents
        )
        if new != old:
            set_extended(fd, new)
    finally:
        os.close(fd)
    store(tree, node, _from_xflags(wanted.xflags))


def _open(tree: MergedTree, node: Node) -> int:
    """Open a file or directory to ask for its flags; other kinds have none."""
    if node.type not in (stat.S_IFREG, stat.S_IFDIR):
        raise refuse(errno.ENOTTY, node.name)
    if isinstance(node, Dir) and node.dead and not node.up:
        raise refuse(errno.ENOENT, node.name)
    at, path = tree.where(node)
    flags = os.O_RDONLY | os.O_NOATIME | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return os.open(path, flags, dir_fd=at)


def _to_xflags(flags: int) -> int:
    return sum(xflag for flag, xflag in _XFLAGS.items() if flags & flag)


def _from_xflags(xflags: int) -> int:
    return sum(flag for flag, xflag in _XFLAGS.items() if xflags & xflag)
