"""Changes of a node itself: attributes and extended attributes."""

from __future__ import annotations

import errno
import os
import stat

from . import acl, xattrs
from .copyup import copy_up
from .core import MergedTree
from .layer import refuse
from .metacopying import attributes_up
from .node import Dir, Node
from .quota import ENTRY_BYTES
from .syscalls import set_times
from .types import SetAttr


def setattr(tree: MergedTree, node: Node, change: SetAttr, fd: int | None) -> None:
    """Apply a change in the order size, owner, mode, times: each survives those before it."""
    if change.size is not None and node.type != stat.S_IFREG:
        raise refuse(errno.EISDIR if node.is_dir else errno.EINVAL, node.name)
    if change.mode is not None and node.type == stat.S_IFLNK:
        raise refuse(errno.EOPNOTSUPP, node.name)
    if change == SetAttr():
        return
    if change.size is None:
        attributes_up(tree, node)
    else:
        copy_up(tree, node, data=change.size != 0)
    tree.usage.note(node)
    if isinstance(node, Dir):
        node.inherits = None
    if change.size is not None:
        _truncate(tree, node, change.size, fd)
    at, path = tree.where(node)
    if change.uid is not None or change.gid is not None:
        uid = -1 if change.uid is None else change.uid
        gid = -1 if change.gid is None else change.gid
        os.chown(path, uid, gid, dir_fd=at, follow_symlinks=False)
    if change.mode is not None:
        os.chmod(path, stat.S_IMODE(change.mode), dir_fd=at)
    if change.atime_ns is not None or change.mtime_ns is not None:
        set_times(at, path, change.atime_ns, change.mtime_ns)


def _truncate(tree: MergedTree, node: Node, size_bytes: int, fd: int | None) -> None:
    """Cut or extend; by path, as truncate(2), the time stays when the size does."""
    if fd is not None:
        os.ftruncate(fd, size_bytes)
    else:
        os.truncate(tree.real_path(node), size_bytes)


def setxattr(tree: MergedTree, node: Node, name: bytes, value: bytes, flags: int) -> None:
    """Set a user-visible attribute."""
    _check_kind(node, name)
    attributes_up(tree, node)
    tree.allowance.check(len(value) + -len(value) % ENTRY_BYTES)
    tree.usage.note(node)
    os.setxattr(tree.real_path(node), xattrs.stored(name), value, flags, follow_symlinks=False)
    _forget_inherited(node, name)


def removexattr(tree: MergedTree, node: Node, name: bytes) -> None:
    """Remove a user-visible attribute; OSError(ENODATA), and no copy-up, when it is not there."""
    _check_kind(node, name)
    if not node.is_above:
        tree.getxattr(node, name)
        attributes_up(tree, node)
    tree.usage.note(node)
    os.removexattr(tree.real_path(node), xattrs.stored(name), follow_symlinks=False)
    _forget_inherited(node, name)


def _check_kind(node: Node, name: bytes) -> None:
    """Only files and directories have user attributes (xattr(7)); refuse before a copy-up."""
    if name.startswith(b"user.") and node.type not in (stat.S_IFREG, stat.S_IFDIR):
        raise refuse(errno.EPERM, node.name)


def _forget_inherited(node: Node, name: bytes) -> None:
    if isinstance(node, Dir) and name == acl.DEFAULT:
        node.inherits = None
