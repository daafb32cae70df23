"""Copy-up: a lower file's copy in the upper layer, made aside and published by one rename.

The slow part (CopyUp.run) reads the lower file, which never changes, and writes a file in the work
directory; it touches no state of the tree. Until the rename the merged view is as it was.
"""

from __future__ import annotations

import errno
import os
import stat

from . import devices, identity, protection, xattrs
from .core import MergedTree
from .layer import refuse, stat_or_none
from .links import Link
from .metacopy import data_of
from .node import GONE, Dir, Node
from .quota import ENTRY_BYTES
from .syscalls import RENAME_NOREPLACE, copy_data, rename, set_times, set_times_of
from .usage import BLOCK_BYTES


class CopyUp:
    """One copy-up of a node that is no directory: made by `start`, then `run`, then `finish`."""

    __slots__ = (
        *("_held", "_protecting", "_source", "_source_proc", "_work"),
        *("data", "node", "real", "temp"),
    )

    def __init__(self, tree: MergedTree, node: Node, *, data: bool) -> None:
        self.node = node
        self.data = data
        """Copy the content; without it the copy is empty (the file is about to be cut)."""
        self._work = tree.work
        self._held: list[int] = []
        """Descriptors of our own: a layer closes what leads to a long path when it needs others."""
        try:
            self._source = fd, path = self._hold(*tree.where(node))
            self._source_proc = b"/proc/self/fd/%d/%s" % (fd, path)
            self.temp = self._work.temp()
            self.real = os.stat(path, dir_fd=fd, follow_symlinks=False)
            if self.size_bytes:
                self._find_data(tree)
            self._protecting = protection.of_lower(tree, node)
            tree.allowance.check(self.takes_bytes, 1)
        except BaseException:
            self.close()
            raise

    def _hold(self, fd: int, path: bytes) -> tuple[int, bytes]:
        self._held.append(os.dup(fd))
        return self._held[-1], path

    def close(self) -> None:
        """Let go of the lower file, for a job that does not run."""
        while self._held:
            os.close(self._held.pop())

    def _find_data(self, tree: MergedTree) -> None:
        """The file may be a copy of metadata only: then read its data where that is."""
        found = data_of(tree, self.node)
        if found is not None:
            layer, path = found
            self._source = self._hold(*layer.at(path))

    @property
    def size_bytes(self) -> int:
        """How much `run` will copy at most; small ones may as well run inline."""
        return self.real.st_size if self.data and stat.S_ISREG(self.real.st_mode) else 0

    @property
    def takes_bytes(self) -> int:
        """How much space the copy and its name take at most: holes stay holes."""
        return ENTRY_BYTES + min(self.size_bytes, self.real.st_blocks * BLOCK_BYTES)

    def run(self) -> None:
        """Make the copy. Blocks; safe in any thread. On failure call abort_copy_up()."""
        try:
            if stat.S_ISREG(self.real.st_mode):
                self._copy_regular()
            else:
                self._copy_special()
        finally:
            self.close()

    def open(self) -> int:
        """Open the copy of a regular file, made but not published, for reading."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self.temp, flags, dir_fd=self._work.layer.fd)

    def _copy_regular(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        target = os.open(self.temp, flags, 0o600, dir_fd=self._work.layer.fd)
        try:
            if self.size_bytes:
                self._copy_content(target)
            os.fchown(target, self.real.st_uid, self.real.st_gid)
            xattrs.copy(self._source_proc, self._work.proc(self.temp))
            os.fchmod(target, stat.S_IMODE(self.real.st_mode))
            protection.carry(self._source_proc, target, self._protecting)
            cut = self.real.st_size > 0 and not self.data
            mtime_ns = None if cut else self.real.st_mtime_ns
            set_times_of(target, self.real.st_atime_ns, mtime_ns)
            if self._work.sync and self.size_bytes:
                os.fsync(target)
        finally:
            os.close(target)

    def _copy_content(self, target: int) -> None:
        fd, path = self._source
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOATIME
        source = os.open(path, flags, dir_fd=fd)
        try:
            copy_data(source, target, self.size_bytes)
        finally:
            os.close(source)

    def _copy_special(self) -> None:
        work, real = self._work.layer.fd, self.real
        if stat.S_ISLNK(real.st_mode):
            fd, path = self._source
            os.symlink(os.readlink(path, dir_fd=fd), self.temp, dir_fd=work)
        else:
            os.mknod(self.temp, stat.S_IFMT(real.st_mode) | 0o600, real.st_rdev, dir_fd=work)
        os.chown(self.temp, real.st_uid, real.st_gid, dir_fd=work, follow_symlinks=False)
        xattrs.copy(self._source_proc, self._work.proc(self.temp))
        if devices.shown(real.st_rdev, self._source_proc) != real.st_rdev:
            devices.mark(self._work.proc(self.temp))
        if not stat.S_ISLNK(real.st_mode):
            os.chmod(self.temp, stat.S_IMODE(real.st_mode), dir_fd=work)
        set_times(work, self.temp, real.st_atime_ns, real.st_mtime_ns)


def finish(tree: MergedTree, job: CopyUp) -> None:
    """Let the finished copy take the lower file's place. A no-op when that has happened already."""
    node, work = job.node, tree.work
    if node.up:
        work.discard(job.temp)
        return
    low = node.ino & identity.LOW_MASK
    xattrs.put(work.proc(job.temp), xattrs.INO, b"%d" % low)
    link = None
    if job.real.st_nlink > 1 and identity.lasts(low):
        named = 0 if node.parent is None else 1
        link = tree.links.begin(low, job.temp, job.real.st_nlink, named=named)
    if node.parent is None:
        _finish_nameless(tree, node, job.temp, link)
        return
    try:
        directory_up(tree, node.parent)
        times = place(tree, job.temp, node.parent, node.name)
    except OSError:
        if link is not None:
            tree.links.end(link, None)
        raise
    node.rise()
    if link is not None:
        node.link, node.stash = link, link.stash
        found(tree, node)
    tree.usage.new(node)
    keep_times(tree, node.parent, times)


def finish_or_discard(tree: MergedTree, job: CopyUp) -> None:
    """Finish a job; when that fails the lower file stays in place and the copy goes."""
    try:
        finish(tree, job)
    except OSError:
        if not job.node.up:
            tree.work.discard(job.temp)
        raise


def _finish_nameless(tree: MergedTree, node: Node, temp: bytes, link: Link | None) -> None:
    """Keep the copy of a file without a known name, for its other names or while it is known."""
    if link is not None:
        tree.work.discard(temp)
        node.link, node.stash = link, link.stash
    else:
        stash = stash_name(node)
        fd = tree.work.layer.fd
        rename(fd, temp, fd, stash)
        node.stash = stash
    node.rise()
    tree.usage.new(node)


def stash_name(node: Node) -> bytes:
    """Name in the work directory for a removed node that is still known."""
    return b"o%x" % (node.ino & identity.LOW_MASK)


def place(tree: MergedTree, temp: bytes, parent: Dir, name: bytes) -> os.stat_result:
    """Move a copy to its name in the upper layer; returns the parent as it was, for keep_times."""
    tree.usage.note(parent)
    mark_impure(tree, parent)
    fd, path = tree.upper_layer.at(parent.prefix() + name)
    times = os.stat(tree.real_path(parent), follow_symlinks=False)
    rename(tree.work.layer.fd, temp, fd, path, RENAME_NOREPLACE)
    return times


def keep_times(tree: MergedTree, parent: Dir, real: os.stat_result) -> None:
    """Set a directory's times back to what they were before a change that users do not see."""
    fd, path = tree.where(parent)
    set_times(fd, path, real.st_atime_ns, real.st_mtime_ns)


def found(tree: MergedTree, node: Node) -> None:
    """Count a name of a copied-up hard link out of the lower layers; the last ends its record."""
    link = node.link
    if link is None or not tree.links.count_found(link):
        return
    node.link = None
    if node.parent is not None:
        tree.links.end(link, None)
        node.stash = None
    elif not tree.may_be_known(node):
        with tree.usage.losing(node):
            tree.links.end(link, None)
        abandon(tree, node)
    else:
        node.stash = stash_name(node)
        tree.links.end(link, node.stash)


def abandon(tree: MergedTree, node: Node) -> None:
    """Make a node without a file behind it useless and its number free."""
    node.stash = GONE
    tree.inodes.leave(node)


def mark_impure(tree: MergedTree, parent: Dir) -> None:
    """Note on an upper directory that children may carry numbers of lower files or redirects."""
    if not parent.impure:
        tree.usage.note(parent)
        xattrs.put(tree.real_path(parent), xattrs.IMPURE, b"y")
        parent.impure = True


def copy_up(tree: MergedTree, node: Node, *, data: bool = True) -> None:
    """Copy a node up now, with its parents; a no-op when it is in the upper layer."""
    if node.up:
        return
    if isinstance(node, Dir):
        directory_up(tree, node)
        return
    job = CopyUp(tree, node, data=data)
    try:
        job.run()
    except OSError:
        tree.work.discard(job.temp)
        raise
    finish_or_discard(tree, job)


def directory_up(tree: MergedTree, node: Dir) -> None:
    """Copy up a directory's own attributes, after those of its parents; entries stay below."""
    below = []
    while not node.up:
        if node.dead or node.parent is None:
            raise refuse(errno.ENOENT, node.name)
        below.append(node)
        node = node.parent
    for lower in reversed(below):
        _one_directory_up(tree, lower)


def _one_directory_up(tree: MergedTree, node: Dir) -> None:
    parent, work = node.parent, tree.work
    if parent is None:
        return
    tree.allowance.check(ENTRY_BYTES, 1)
    temp = work.temp()
    tree.handed.close(node.ino)
    try:
        clone_dir(tree, node, temp)
        xattrs.put(work.proc(temp), xattrs.INO, b"%d" % (node.ino & identity.LOW_MASK))
        times = place(tree, temp, parent, node.name)
    except OSError:
        work.discard(temp)
        raise
    node.rise()
    tree.usage.new(node)
    keep_times(tree, parent, times)


def clone_dir(tree: MergedTree, node: Dir, temp: bytes) -> None:
    """Make an empty directory in the work directory that is otherwise like a node."""
    fd, path = tree.where(node)
    real = os.stat(path, dir_fd=fd, follow_symlinks=False)
    work = tree.work.layer.fd
    os.mkdir(temp, 0o700, dir_fd=work)
    os.chown(temp, real.st_uid, real.st_gid, dir_fd=work, follow_symlinks=False)
    xattrs.copy(tree.real_path(node), tree.work.proc(temp))
    os.chmod(temp, stat.S_IMODE(real.st_mode), dir_fd=work)
    if not node.up:
        protecting = protection.of_lower(tree, node)
        target = os.open(temp, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=work)
        try:
            protection.carry(tree.real_path(node), target, protecting)
        finally:
            os.close(target)
    set_times(work, temp, real.st_atime_ns, real.st_mtime_ns)


def materialise(tree: MergedTree, node: Node, parent: Dir, name: bytes) -> None:
    """Make sure that the upper layer itself has this name of a node."""
    if isinstance(node, Dir):
        directory_up(tree, node)
        return
    if not node.up:
        if (node.parent, node.name) != (parent, name):
            node.drop_name(parent, name)
            _make_first(node, parent, name)
        copy_up(tree, node)
        return
    if node.link is None:
        return
    directory_up(tree, parent)
    fd, path = tree.upper_layer.at(parent.prefix() + name)
    if stat_or_none(fd, path) is not None:
        return
    tree.usage.note(node)
    tree.usage.note(parent)
    mark_impure(tree, parent)
    times = os.stat(tree.real_path(parent), follow_symlinks=False)
    work = tree.work.layer.fd
    os.link(node.link.stash, path, src_dir_fd=work, dst_dir_fd=fd, follow_symlinks=False)
    keep_times(tree, parent, times)
    found(tree, node)


def _make_first(node: Node, parent: Dir, name: bytes) -> None:
    """Make a name the one that a copy-up uses."""
    if node.parent is None:
        node.add_name(parent, name)
        return
    other = (node.parent, node.name)
    node.parent, node.name = parent, name
    node.more_names = [other, *(node.more_names or [])]
    if node.nlookup:
        parent.children[name] = node
