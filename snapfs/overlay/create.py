"""New entries: files, directories, links. A new entry appears whole, in one system call.

Where the creator is also what the file system would make the owner, the entry is made in place;
otherwise, and where a whiteout is in the way, it is made in the work directory and renamed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from . import acl, devices, xattrs
from .copyup import copy_up, directory_up, mark_impure
from .core import MergedTree
from .layer import is_whiteout, refuse, stat_or_none
from .node import Dir, Node
from .quota import ENTRY_BYTES
from .syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, rename

Maker = Callable[[int, bytes, int], None]
"""Makes the entry at (directory descriptor, path) with permission bits as the umask lets them."""


class Owner(NamedTuple):
    """Who makes an entry."""

    uid: int
    gid: int
    umask: int


class New(NamedTuple):
    """What an entry is to be like, once the parent's rules were applied."""

    kind: int
    mode: int
    """Permission bits; 0 and unused for a symbolic link."""
    uid: int
    gid: int
    access: bytes | None
    default: bytes | None
    in_place: bool
    """Made in place it would have the right owner and no ACL."""


def inherited(tree: MergedTree, parent: Dir) -> tuple[int, bytes | None]:
    """Return (group id or -1, default ACL or None) that entries of `parent` take over."""
    known = parent.inherits
    if known is None:
        fd, path = tree.where(parent)
        real = os.stat(path, dir_fd=fd, follow_symlinks=False)
        gid = real.st_gid if real.st_mode & stat.S_ISGID else -1
        known = parent.inherits = (gid, xattrs.get(tree.real_path(parent), acl.DEFAULT))
    return known


def plan(tree: MergedTree, parent: Dir, mode: int, owner: Owner) -> New:
    """Apply the parent's set-group-id bit and default ACL, or else the umask."""
    group, default = inherited(tree, parent)
    kind, mode, gid = stat.S_IFMT(mode), stat.S_IMODE(mode), owner.gid
    access = None
    if kind == stat.S_IFLNK:
        default = None
    elif default is None:
        mode &= ~owner.umask
    else:
        mode, access = acl.inherit(default, mode)
    if group >= 0:
        gid = group
        if kind == stat.S_IFDIR:
            mode |= stat.S_ISGID
    given = owner.uid == os.geteuid() and (group >= 0 or gid == os.getegid())
    return New(kind, mode, owner.uid, gid, access, default, given and default is None)


def make(
    tree: MergedTree,
    parent: Dir,
    name: bytes,
    mode: int,
    owner: Owner,
    maker: Maker,
    *,
    aside: bool = False,
) -> Node:
    """Make an entry of type and permissions `mode`; FileExistsError when the name is visible.

    `aside`: the maker takes several steps, of which nobody may see one without the others.
    """
    hides = check_free(tree, parent, name)
    new = plan(tree, parent, mode, owner)
    aside = aside or hides or not new.in_place
    tree.allowance.check(ENTRY_BYTES, 1)
    tree.usage.note(parent)
    if aside or not _make_in_place(tree, parent, name, new, maker):
        _make_aside(tree, parent, name, new, maker, opaque=hides)
    node = tree.lookup(parent, name)
    tree.usage.new(node)
    return node


def _make_in_place(tree: MergedTree, parent: Dir, name: bytes, new: New, maker: Maker) -> bool:
    """Make the entry where it belongs; False when a whiteout is there."""
    fd, path = tree.upper_layer.at(parent.prefix() + name)
    try:
        maker(fd, path, new.mode)
    except FileExistsError:
        _check_whiteout(fd, path, name)
        return False
    try:
        _set_mode(fd, path, new)
    except OSError:
        tree.usage.spoil()
        raise
    return True


def _make_aside(
    tree: MergedTree, parent: Dir, name: bytes, new: New, maker: Maker, *, opaque: bool
) -> None:
    """Make the entry in the work directory and give it its name."""
    temp = tree.work.temp()
    is_dir = new.kind == stat.S_IFDIR
    try:
        maker(tree.work.layer.fd, temp, new.mode)
        dress(tree, temp, new)
        if opaque and is_dir:
            xattrs.put(tree.work.proc(temp), xattrs.OPAQUE, b"y")
        publish(tree, temp, parent, name, is_dir=is_dir)
    except OSError:
        tree.work.discard(temp)
        raise


def check_free(tree: MergedTree, parent: Dir, name: bytes) -> bool:
    """Copy the parent up; True when a whiteout hides a lower name, FileExistsError when shown."""
    if parent.dead:
        raise refuse(errno.ENOENT, name)
    if tree.lower_entry(parent, name) is not None:
        if not parent.up:
            raise refuse(errno.EEXIST, name)
        fd, path = tree.upper_layer.at(parent.prefix() + name)
        _check_whiteout(fd, path, name)
        return True
    directory_up(tree, parent)
    return False


def _check_whiteout(fd: int, path: bytes, name: bytes) -> os.stat_result:
    real = stat_or_none(fd, path)
    if real is None or not is_whiteout(real):
        raise refuse(errno.EEXIST, name)
    return real


def _set_mode(fd: int, path: bytes, new: New) -> None:
    """Undo what the process's own umask took away."""
    if new.kind != stat.S_IFLNK:
        os.chmod(path, new.mode, dir_fd=fd)


def dress(tree: MergedTree, temp: bytes, new: New) -> None:
    """Give a new entry its owner, ACLs and mode."""
    fd = tree.work.layer.fd
    os.chown(temp, new.uid, new.gid, dir_fd=fd, follow_symlinks=False)
    if new.access is not None:
        xattrs.put(tree.work.proc(temp), acl.ACCESS, new.access)
    if new.default is not None and new.kind == stat.S_IFDIR:
        xattrs.put(tree.work.proc(temp), acl.DEFAULT, new.default)
    _set_mode(fd, temp, new)


def publish(tree: MergedTree, temp: bytes, parent: Dir, name: bytes, *, is_dir: bool) -> None:
    """Give an entry made aside its name, which is free or a whiteout in the upper layer."""
    work = tree.work.layer.fd
    fd, path = tree.upper_layer.at(parent.prefix() + name)
    try:
        rename(work, temp, fd, path, RENAME_NOREPLACE)
        return
    except FileExistsError:
        whiteout = _check_whiteout(fd, path, name)
    if is_dir:
        rename(work, temp, fd, path, RENAME_EXCHANGE)
        tree.work.discard(temp)
    else:
        rename(work, temp, fd, path)
    tree.usage.whiteout_gone(whiteout)


def take_in(tree: MergedTree, parent: Dir, name: bytes, ino: int, kind: int, real_ino: int) -> Node:
    """Make the node of an entry that was made in place, and is like any that is the first to have
    its number. Nothing is looked at: it may have gone since."""
    node = tree.inodes.meet(ino)
    if node is None:
        if kind == stat.S_IFDIR:
            node = Dir(tree, ino, parent, name)
        else:
            node = Node(tree, ino, kind, parent, name)
        node.up = True
        tree.inodes.enter(node)
    else:
        node.add_name(parent, name)
    tree.usage.new(node, real_ino)
    return node


def create(
    tree: MergedTree, parent: Dir, name: bytes, mode: int, flags: int, owner: Owner
) -> tuple[Node, int]:
    """Make a regular file and open it."""
    opened: list[int] = []
    how = flags & os.O_ACCMODE | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

    def maker(fd: int, path: bytes, bits: int) -> None:
        opened.append(os.open(path, how, bits, dir_fd=fd))

    try:
        node = make(tree, parent, name, stat.S_IFREG | stat.S_IMODE(mode), owner, maker)
    except OSError:
        for fd in opened:
            os.close(fd)
        raise
    return node, opened[0]


def mknod(tree: MergedTree, parent: Dir, name: bytes, mode: int, rdev: int, owner: Owner) -> Node:
    """Make a device, fifo, socket or empty file."""
    kind = stat.S_IFMT(mode) or stat.S_IFREG
    is_special = devices.is_whiteout_like(kind, rdev)

    def maker(fd: int, path: bytes, bits: int) -> None:
        if is_special:
            devices.make(fd, path, bits)
        else:
            os.mknod(path, kind | bits, rdev, dir_fd=fd)

    mode = kind | stat.S_IMODE(mode)
    return make(tree, parent, name, mode, owner, maker, aside=is_special)


def _forbidden(tree: MergedTree, parent: Dir, name: bytes) -> OSError:
    """EPERM, unless the name is taken: the kernel says that first."""
    return refuse(errno.EPERM if tree.find(parent, name) is None else errno.EEXIST, name)


def mkdir(tree: MergedTree, parent: Dir, name: bytes, mode: int, owner: Owner) -> Node:
    """Make a directory, opaque when it takes the place of a removed lower one."""

    def maker(fd: int, path: bytes, bits: int) -> None:
        os.mkdir(path, bits, dir_fd=fd)

    return make(tree, parent, name, stat.S_IFDIR | (mode & 0o1777), owner, maker)


def symlink(tree: MergedTree, parent: Dir, name: bytes, target: bytes, owner: Owner) -> Node:
    """Make a symbolic link."""

    def maker(fd: int, path: bytes, _: int) -> None:
        os.symlink(target, path, dir_fd=fd)

    return make(tree, parent, name, stat.S_IFLNK | 0o777, owner, maker)


def link(tree: MergedTree, node: Node, parent: Dir, name: bytes) -> None:
    """Give a file another name, after copying it up."""
    if isinstance(node, Dir):
        raise _forbidden(tree, parent, name)
    if node.parent is None and tree.getattr(node).nlink == 0:
        raise refuse(errno.ENOENT, name)
    hides = check_free(tree, parent, name)
    copy_up(tree, node)
    tree.allowance.check(ENTRY_BYTES)
    tree.usage.note(node)
    tree.usage.note(parent)
    if node.copied:
        mark_impure(tree, parent)
    source_fd, source = tree.where(node)
    fd, path = tree.upper_layer.at(parent.prefix() + name)
    if not hides:
        try:
            os.link(source, path, src_dir_fd=source_fd, dst_dir_fd=fd, follow_symlinks=False)
        except FileExistsError:
            _check_whiteout(fd, path, name)
        else:
            node.add_name(parent, name)
            return
    work, temp = tree.work.layer.fd, tree.work.temp()
    os.link(source, temp, src_dir_fd=source_fd, dst_dir_fd=work, follow_symlinks=False)
    publish(tree, temp, parent, name, is_dir=False)
    node.add_name(parent, name)
