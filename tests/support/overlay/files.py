"""The same file operations on a mounted directory and on a Tree, raising OSError alike.

Paths are bytes relative to the root. `OnMount` calls the kernel; `OnTree` looks names up, remembers
nodes as the kernel would and calls the Tree.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from snapfs.overlay import Node, SetAttr, Tree
from snapfs.overlay.syscalls import AT_FDCWD
from snapfs.overlay.syscalls import rename as renameat2


class Files(Protocol):
    """What can be done to a tree of files."""

    def create(self, path: bytes, mode: int, content: bytes) -> None: ...
    def mkdir(self, path: bytes, mode: int) -> None: ...
    def mknod(self, path: bytes, mode: int, rdev: int) -> None: ...
    def symlink(self, target: bytes, path: bytes) -> None: ...
    def link(self, old: bytes, new: bytes) -> None: ...
    def unlink(self, path: bytes) -> None: ...
    def rmdir(self, path: bytes) -> None: ...
    def rename(self, old: bytes, new: bytes, flags: int) -> None: ...
    def write(self, path: bytes, offset: int, content: bytes) -> None: ...
    def rewrite(self, path: bytes, content: bytes) -> None: ...
    def truncate(self, path: bytes, size: int) -> None: ...
    def chmod(self, path: bytes, mode: int) -> None: ...
    def chown(self, path: bytes, uid: int, gid: int) -> None: ...
    def utime(self, path: bytes, atime_ns: int, mtime_ns: int) -> None: ...
    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None: ...
    def removexattr(self, path: bytes, name: bytes) -> None: ...
    def hold(self, path: bytes) -> Held: ...


class Held(Protocol):
    """An open file, whatever happens to its name."""

    def append(self, content: bytes) -> None: ...
    def content(self) -> bytes: ...
    def close(self) -> None: ...


class HeldFd:
    """A file descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def append(self, content: bytes) -> None:
        os.pwrite(self.fd, content, os.fstat(self.fd).st_size)

    def content(self) -> bytes:
        return os.pread(self.fd, 1 << 20, 0)

    def close(self) -> None:
        os.close(self.fd)


class OnMount:
    """Operations on a mounted directory, without following a last symbolic link."""

    def __init__(self, root: Path) -> None:
        self.root = os.fsencode(root)

    def _at(self, path: bytes) -> bytes:
        return os.path.join(self.root, path)

    def create(self, path: bytes, mode: int, content: bytes) -> None:
        fd = os.open(self._at(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
        with open(fd, "wb") as file:
            file.write(content)

    def mkdir(self, path: bytes, mode: int) -> None:
        os.mkdir(self._at(path), mode)

    def mknod(self, path: bytes, mode: int, rdev: int) -> None:
        os.mknod(self._at(path), mode, rdev)

    def symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(target, self._at(path))

    def link(self, old: bytes, new: bytes) -> None:
        os.link(self._at(old), self._at(new), follow_symlinks=False)

    def unlink(self, path: bytes) -> None:
        os.unlink(self._at(path))

    def rmdir(self, path: bytes) -> None:
        os.rmdir(self._at(path))

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        renameat2(AT_FDCWD, self._at(old), AT_FDCWD, self._at(new), flags)

    def write(self, path: bytes, offset: int, content: bytes) -> None:
        fd = os.open(self._at(path), os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            os.pwrite(fd, content, offset)
        finally:
            os.close(fd)

    def rewrite(self, path: bytes, content: bytes) -> None:
        fd = os.open(self._at(path), os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, "wb") as file:
            file.write(content)

    def truncate(self, path: bytes, size: int) -> None:
        os.truncate(self._at(path), size)

    def chmod(self, path: bytes, mode: int) -> None:
        os.chmod(self._at(path), mode)

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        os.lchown(self._at(path), uid, gid)

    def utime(self, path: bytes, atime_ns: int, mtime_ns: int) -> None:
        os.utime(self._at(path), ns=(atime_ns, mtime_ns), follow_symlinks=False)

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        os.setxattr(self._at(path), name, value, flags, follow_symlinks=False)

    def removexattr(self, path: bytes, name: bytes) -> None:
        os.removexattr(self._at(path), name, follow_symlinks=False)

    def hold(self, path: bytes) -> Held:
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
        return HeldFd(os.open(self._at(path), flags))


def _must_be_dir(node: Node, path: bytes) -> None:
    """Refuse to go through a node; symbolic links lead nowhere in these tests."""
    if not node.is_dir:
        number = errno.ENOENT if node.type == stat.S_IFLNK else errno.ENOTDIR
        raise OSError(number, os.strerror(number), path)


class OnTree:
    """Operations on a Tree as root with umask 022, remembering what was looked up."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.remembered: dict[int, tuple[Node, int]] = {}

    def forget(self) -> None:
        """Forget everything, as the kernel does under memory pressure."""
        for node, count in self.remembered.values():
            self.tree.inodes.forget(node.ino, count)
        self.remembered.clear()

    def node(self, path: bytes) -> Node:
        node: Node = self.tree.root
        for name in filter(None, path.split(b"/")):
            _must_be_dir(node, path)
            node = self.tree.lookup(node, name)
            self._remember(node)
        return node

    def _remember(self, node: Node) -> None:
        self.tree.inodes.remember(node)
        count = self.remembered.get(node.ino, (node, 0))[1]
        self.remembered[node.ino] = (node, count + 1)

    def _parent(self, path: bytes) -> tuple[Node, bytes]:
        above, name = os.path.split(path)
        parent = self.node(above)
        _must_be_dir(parent, path)
        return parent, name

    def _new(self, path: bytes, make: Callable[[Node, bytes], Node]) -> Node:
        """Look up, then create, as the kernel does."""
        parent, name = self._parent(path)
        node = make(parent, name)
        self._remember(node)
        return node

    def create(self, path: bytes, mode: int, content: bytes) -> None:
        parent, name = self._parent(path)
        node, fd = self.tree.create(parent, name, mode, os.O_WRONLY, uid=0, gid=0, umask=0o22)
        self._remember(node)
        with open(fd, "wb") as file:
            file.write(content)

    def mkdir(self, path: bytes, mode: int) -> None:
        self._new(path, lambda p, n: self.tree.mkdir(p, n, mode, uid=0, gid=0, umask=0o22))

    def mknod(self, path: bytes, mode: int, rdev: int) -> None:
        self._new(path, lambda p, n: self.tree.mknod(p, n, mode, rdev, uid=0, gid=0, umask=0o22))

    def symlink(self, target: bytes, path: bytes) -> None:
        self._new(path, lambda p, n: self.tree.symlink(p, n, target, uid=0, gid=0))

    def link(self, old: bytes, new: bytes) -> None:
        node = self.node(old)
        parent, name = self._parent(new)
        self.tree.link(node, parent, name)

    def unlink(self, path: bytes) -> None:
        parent, name = self._parent(path)
        self._remember(self.tree.lookup(parent, name))
        self.tree.unlink(parent, name)

    def rmdir(self, path: bytes) -> None:
        parent, name = self._parent(path)
        self._remember(self.tree.lookup(parent, name))
        self.tree.rmdir(parent, name)

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        parent, name = self._parent(old)
        new_parent, new_name = self._parent(new)
        self.tree.rename(parent, name, new_parent, new_name, flags)

    def _open(self, path: bytes, flags: int) -> tuple[Node, int]:
        node = self.node(path)
        if node.type == stat.S_IFLNK:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        return node, self.tree.open(node, flags)

    def write(self, path: bytes, offset: int, content: bytes) -> None:
        _, fd = self._open(path, os.O_WRONLY)
        try:
            os.pwrite(fd, content, offset)
        finally:
            os.close(fd)

    def rewrite(self, path: bytes, content: bytes) -> None:
        _, fd = self._open(path, os.O_WRONLY | os.O_TRUNC)
        with open(fd, "wb") as file:
            file.write(content)

    def truncate(self, path: bytes, size: int) -> None:
        self.tree.setattr(self.node(path), SetAttr(size=size))

    def chmod(self, path: bytes, mode: int) -> None:
        self.tree.setattr(self.node(path), SetAttr(mode=mode))

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        self.tree.setattr(self.node(path), SetAttr(uid=uid, gid=gid))

    def utime(self, path: bytes, atime_ns: int, mtime_ns: int) -> None:
        self.tree.setattr(self.node(path), SetAttr(atime_ns=atime_ns, mtime_ns=mtime_ns))

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        self.tree.setxattr(self.node(path), name, value, flags)

    def removexattr(self, path: bytes, name: bytes) -> None:
        self.tree.removexattr(self.node(path), name)

    def hold(self, path: bytes) -> Held:
        return HeldFd(self._open(path, os.O_RDWR)[1])
