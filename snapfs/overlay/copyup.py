"""Copy-up: a lower file's copy in the upper layer, made aside and published by one rename.

The slow part (CopyUp.run) reads the lower file, which never changes, and writes a file in the work
directory; it touches no state of the tree. Until the rename the merged view is as it was.
"""

from __future__ import annotations

import errno
import os
import stat

from . import identity, lower, protection, xattrs
from ._copies import Source
from .core import MergedTree
from .layer import refuse, stat_or_none
from .links import Link
from .metacopy import data_of
from .node import GONE, Dir, Node
from .ordering import Order
from .quota import ENTRY_BYTES
from .specials import Special
from .syscalls import RENAME_NOREPLACE, rename, set_times

QUICK_BYTES = 128 * 1024
"""What is copied inline at most, when it is in memory."""


class CopyUp:
    """One copy-up of a node that is no directory: made by `start`, then `run`, then `finish`.

    Of a metadata-only copy, all but the data is taken as that has it.
    """

    __slots__ = (
        "_content",
        "_ino",
        "_order",
        "_protattr",
        "_source",
        "_work",
        "data",
        "node",
        "temp",
    )

    def __init__(
        self, tree: MergedTree, node: Node, *, data: bool, order: Order | None = None
    ) -> None:
        """`order`: what `run` waits for; else what the tree's copies have to."""
        self.node = node
        self.data = data
        """Copy the content; without it the copy is empty (the file is about to be cut)."""
        self._work = tree.work
        self._order = tree.work.order if order is None else order
        self._ino = b"%d" % (node.ino & identity.LOW_MASK)
        self._protattr = b""
        self._source: Source | Special
        self._content: Source | None = None
        """Where the data of a regular file is."""
        fd, path = tree.where(node)
        if node.type == stat.S_IFREG:
            self._source = self._content = Source(fd, path)
        else:
            self._source = Special(fd, path)
        self.temp = self._work.temp()
        try:
            if self._content is not None:
                self._look(tree, self._content)
            tree.allowance.check(self.takes_bytes, 0 if node.metacopy else 1)
        except BaseException:
            self.close()
            raise
        if node.metacopy:
            tree.completing.add(node)
            tree.inodes.changed(node.ino)

    def _look(self, tree: MergedTree, source: Source) -> None:
        """Find the data where that is, and what protects the file."""
        if source.is_metacopy and self.size_bytes:
            found = data_of(tree, self.node)
            if found is not None:
                layer, path = found
                self._content = Source(*layer.at(path))
        self._protattr = protection.of_source(tree, self.node, source.attributes)

    def close(self) -> None:
        """Let go of the lower file, for a job that does not run."""
        self._source.close()
        if self._content is not None:
            self._content.close()

    @property
    def nlink(self) -> int:
        """How many names the lower file has."""
        return self._source.nlink

    @property
    def size_bytes(self) -> int:
        """How much `run` will copy at most."""
        return self._source.size_bytes if self.data and self._content is not None else 0

    @property
    def takes_bytes(self) -> int:
        """How much space the copy and its name take at most: holes stay holes."""
        data = self._source if self._content is None else self._content
        return ENTRY_BYTES + min(self.size_bytes, data.allocated_bytes)

    def is_quick(self) -> bool:
        """Whether `run` will wait for nothing: it may as well run inline."""
        if not self.size_bytes or self._content is None:
            return True
        waits = self._order is not Order.NOTHING
        return not waits and self.size_bytes <= QUICK_BYTES and self._content.fetch()

    def run(self) -> None:
        """Make the copy. Blocks; safe in any thread. On failure call abort_copy_up()."""
        try:
            if isinstance(self._source, Source):
                self._copy_regular(self._source, self._content or self._source)
            else:
                self._source.copy(self._work, self.temp, self._ino)
        finally:
            self.close()

    def open(self) -> int:
        """Open the copy of a regular file, made but not published, for reading."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self.temp, flags, dir_fd=self._work.layer.fd)

    def _copy_regular(self, source: Source, content: Source) -> None:
        source.copy(
            content,
            self._work.layer.fd,
            self.temp,
            self.size_bytes,
            self._order,
            self.data or not source.size_bytes,
            self._ino,
            self._protattr,
        )


def finish(tree: MergedTree, job: CopyUp) -> None:
    """Let the finished copy take the lower file's place. A no-op when that has happened already."""
    node, work = job.node, tree.work
    if node.up:
        work.discard(job.temp)
        return
    if node.metacopy:
        _complete(tree, node, job.temp)
        return
    link = None
    if job.nlink > 1 and identity.lasts(low := node.ino & identity.LOW_MASK):
        named = 0 if node.parent is None else 1
        link = tree.links.begin(low, job.temp, job.nlink, named=named)
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


def _complete(tree: MergedTree, node: Node, temp: bytes) -> None:
    """Let a copy with data take the place of the metadata-only one, wherever that is."""
    work, parent = tree.work, node.parent
    tree.usage.note(node)
    tree.usage.passed(os.stat(temp, dir_fd=work.layer.fd).st_ino)
    if parent is None:
        _finish_nameless(tree, node, temp, None)
        return
    fd, path = tree.upper_layer.at(tree.upper_path(node))
    times = os.stat(tree.real_path(parent), follow_symlinks=False)
    rename(work.layer.fd, temp, fd, path)
    node.rise()
    if node.stash is not None:  # the same file by a second name, until now
        work.discard(node.stash)
        node.stash = None
    keep_times(tree, parent, times)


def take_up(
    tree: MergedTree,
    parent: Dir,
    name: bytes,
    ino: int,
    kind: int,
    real_ino: int,
    *,
    has_data: bool,
) -> Node:
    """Make the node of a lower file that was copied up in place, or let that of a directory know.
    Nothing is looked at: it may have been forgotten since."""
    parent.impure = True
    node = tree.inodes.meet(ino)
    if node is None:
        node = Node(tree, ino, kind, parent, name)
        node.up = node.copied = True
        tree.inodes.enter(node)
    entry = None if has_data else tree.lower_entry(parent, name)
    if entry is not None:
        node.leave_data(*lower.file_of(parent.stack, lower.top(entry), name))
    elif not node.up:
        node.rise()
    tree.usage.new(node, real_ino)
    return node


def finish_or_discard(tree: MergedTree, job: CopyUp) -> None:
    """Finish a job; when that fails the lower file stays in place and the copy goes."""
    try:
        finish(tree, job)
    except OSError:
        if not job.node.up:
            tree.work.discard(job.temp)
        raise
    finally:
        tree.completing.discard(job.node)


def abort(tree: MergedTree, job: CopyUp) -> None:
    """Clean up a job that failed or is not wanted, and that does not run any more."""
    tree.completing.discard(job.node)
    job.close()
    tree.work.discard(job.temp)


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
        abort(tree, job)
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
    for directory in reversed(below):
        _one_directory_up(tree, directory)


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
