"""Directories without handles: listings by node number, and lookups.

OPENDIR is answered ENOSYS once; the kernel then opens directories by itself and keeps listings that
it read to the end until it changes the directory. Without the channel a handle is the directory's
number (operations.py). A listing is asked for by the directory's number
and the place behind which to go on. Places are hashes of names, the same for every worker, so that
nothing has to be remembered: what is there all the time is listed exactly once, whatever comes and
goes meanwhile, and whoever answers.

Where a directory lies in lower layers only, the tree's `Desk` answers from its index (in C);
everything else takes the way through the tree's rules.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator
from functools import partial

import pyfuse3

from snapfs.fuse import channel, entries, labels
from snapfs.fuse._desk import Desk
from snapfs.fuse.attributes import View
from snapfs.fuse.channel import Opcode, RawHandler, Request
from snapfs.fuse.threads import Threads, blocking
from snapfs.fuse.trees import Forest, Readable, Shown
from snapfs.overlay import Dir, Listed, Node, Tree, identity

_READ_IN = struct.Struct("<QQI")
_DOT, _DOT_DOT = 1, 2
"""Places of `.` and `..`; those of names are greater."""
_CHUNK = 128
"""Names taken from a listing at a time."""


class Directories:
    """Handlers of requests about directories, past pyfuse3."""

    def __init__(
        self,
        forest: Forest,
        view: View,
        threads: Threads,
        present: Callable[[Shown, Node], tuple[int, bool]],
        place: Callable[[Shown, Node], None],
        looked_up: Callable[[int, int | None], None],
    ) -> None:
        """`present` gives a node's number in replies, and whether its attributes may be cached;
        `place` is told of each node that is handed out, `looked_up` which thread was told of which
        number, or that there is none."""
        self._present = present
        self._place = place
        self._looked_up = looked_up
        self._forest = forest
        self._view = view
        self._threads = threads
        self.shows_xattrs = True
        """Extended attributes of files are shown as they are."""

    def handlers(self) -> dict[int, RawHandler]:
        """Return what is to be in `Operations.raw`."""
        return {
            Opcode.LOOKUP: self.lookup,
            Opcode.OPENDIR: self.opendir,
            Opcode.READDIR: partial(self._read, plus=False),
            Opcode.READDIRPLUS: partial(self._read, plus=True),
            Opcode.FSYNCDIR: self.fsyncdir,
        }

    async def lookup(self, request: Request) -> bytes:
        """Find a name and count the reference that the kernel gets."""
        name = request.body[:-1]
        shown, parent = self._forest.find(request.nodeid)
        desk = self.desk(shown)
        if desk is not None and shown.tree.admit(parent):
            reply = desk.lookup(request.nodeid, name)
            if reply is not None:
                return reply
        try:
            node = shown.tree.lookup(parent, name)
        except FileNotFoundError:
            self._looked_up(request.pid, None)
            self._place(shown, parent)
            if shown.caches_absence:
                return entries.absent(self._view)
            raise
        self._looked_up(request.pid, node.ino)
        return self._known(shown, node)

    async def opendir(self, request: Request) -> bytes:
        """Never asked for again: the kernel opens directories by itself."""
        raise channel.NotSupported

    async def fsyncdir(self, request: Request) -> bytes:
        """Make a directory's entries durable."""
        _, node = self._forest.find(request.nodeid)
        if node.up:  # committed layers are durable already
            at, path = node.tree.where(node)
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)
            try:
                await blocking(self._threads.file_io, os.fsync, fd)
            finally:
                os.close(fd)
        return b""

    async def _read(self, request: Request, *, plus: bool) -> bytes:
        _, after, size = _READ_IN.unpack_from(request.body)
        shown, node = self._forest.find(request.nodeid)
        page = self._from_desk(shown, node, request, plus=plus)
        if page is None:
            page = self._from_tree(shown, node, after, size, plus=plus)
        if not page and node.ino == identity.LANE_ROOT and not shown.caches_absence:
            # Snapshots come and go by themselves: the kernel must not keep this list.
            await blocking(self._threads.notify, pyfuse3.invalidate_inode, node.ino)
        return page

    def desk(self, shown: Shown) -> Desk | None:
        """Return the tree's desk; None where attributes are not shown as they are stored."""
        if self._view.owners is not None or self._view.static_nlink:
            return None
        if shown.desk is None:
            desk = Desk(
                shown.tree.handed,
                self._view.timeout_s,
                shown.caches_absence,
                self.shows_xattrs,
                partial(self._entry, shown),
                shown.tree.main_numbers,
            )
            desk.leaves_forgets = self._forest.doubts_inherited
            desk.refuses_labels = labels.are_unknown()
            shown.desk = desk
        return shown.desk

    def _from_desk(self, shown: Shown, node: Node, request: Request, *, plus: bool) -> bytes | None:
        desk = self.desk(shown)
        if desk is None or not shown.tree.admit(node):
            return None
        _, after, size = _READ_IN.unpack_from(request.body)
        return desk.list(node.ino, after, size, plus, request.pid)

    def _from_tree(self, shown: Shown, node: Node, after: int, size: int, *, plus: bool) -> bytes:
        """List any directory: of an upper layer, merged, or the lane's own."""
        if not node.is_dir:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        known = self._from_notes(shown, node, after, size) if plus else None
        if known is not None:
            return known
        page = _Page(size, plus=plus)
        for it in listed(shown.tree, node, after):
            record = entries.dirent(it.ino, it.place, it.name, it.type)
            if not page.has_room(record):
                break
            has_attributes = plus and not is_dot(it)
            attributes = self._entry(shown, node, it.name) if has_attributes else entries.NOTHING
            if attributes is not None:
                page.add(attributes, record)
        return page.close()

    def _from_notes(self, shown: Shown, node: Node, after: int, size: int) -> bytes | None:
        """List what an upper directory shows, from where its files were noted to be."""
        desk, tree = self.desk(shown), shown.tree
        index = tree.plain_listing(node, fresh=after == 0) if isinstance(tree, Tree) else None
        if desk is None or index is None or not isinstance(node, Dir):
            return None
        above = node if node.parent is None else node.parent
        page, known = desk.list_known(node, index, node.ino, above.ino, after, size)
        for ino in known:
            self._forest.remember(self._forest.inodes.get(ino))
        return page

    def _entry(self, shown: Shown, parent: Node, name: bytes) -> bytes | None:
        """Return and count what a listing hands to the kernel; None for what is gone."""
        if shown.tree.lists_without_nodes:
            return entries.NOTHING
        try:
            return self._known(shown, shown.tree.lookup(parent, name))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                return None
            raise

    def _known(self, shown: Shown, node: Node) -> bytes:
        """Return the entry that hands a node to the kernel, and count it."""
        nodeid, lasting = self._present(shown, node)
        reply = entries.entry(self._view, shown.tree.getattr(node), nodeid, lasting=lasting)
        self._forest.remember(node)
        self._place(shown, node)
        return reply


def listed(tree: Readable, node: Node, after: int) -> Iterator[Listed]:
    """Yield what a directory lists behind a place, in the order of places; 0 begins."""
    above = node if node.parent is None else node.parent
    for place, name, ino in ((_DOT, b".", node.ino), (_DOT_DOT, b"..", above.ino)):
        if place > after:
            yield Listed(place, name, ino, stat.S_IFDIR)
    while chunk := tree.page(node, after, _CHUNK):
        yield from chunk
        after = chunk[-1].place


def is_dot(entry: Listed) -> bool:
    """Whether an entry is `.` or `..`: the kernel takes no reference to these."""
    return entry.place <= _DOT_DOT


class _Page:
    """The reply to one READDIR or READDIRPLUS."""

    def __init__(self, size: int, *, plus: bool) -> None:
        self._left = size
        self._plus = plus
        self._parts: list[bytes] = []

    def has_room(self, record: bytes) -> bool:
        needed = len(record) + (len(entries.NOTHING) if self._plus else 0)
        return needed <= self._left

    def add(self, attributes: bytes, record: bytes) -> None:
        """Append an entry for which there is room."""
        for part in (attributes, record) if self._plus else (record,):
            self._parts.append(part)
            self._left -= len(part)

    def close(self) -> bytes:
        """Return all of it."""
        return b"".join(self._parts)
