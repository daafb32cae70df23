"""Handlers of a lane that is asked for no opens: files are known by node, never by handle.

OPEN is answered ENOSYS once and never comes again, so a warm open, read and close cost no request.
What then comes with handle 0 is served by the number of its node. CREATE is answered ENOSYS too:
the kernel makes a file by MKNOD. Nobody says for what a file is open, so it is copied up when it is
first written, and a removed file lives until the kernel forgets it.

Descriptors are our own affair: at most `KEPT` of them, the least recently used closed first.
INVARIANT: a node has at most one, in `Descriptors` and in the table of handles alike.
"""

from __future__ import annotations

import os
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from snapfs.fuse import _desk, channel, privileges, setid
from snapfs.fuse.answering import raising
from snapfs.fuse.attributes import View
from snapfs.fuse.channel import Body, NotSupported, Opcode, OpenFlags, Request
from snapfs.fuse.files import FileHandlers
from snapfs.fuse.handles import FileHandle
from snapfs.fuse.inflight import InFlight
from snapfs.fuse.inherited import KILL_SET_ID, READ_IN, WRITE_IN, WRITE_OUT
from snapfs.fuse.operations import OverlayOperations
from snapfs.fuse.refusing import FROM_CACHE
from snapfs.fuse.trees import Forest, Shown
from snapfs.overlay import Node, SetAttr, Tree

KEPT = 512
"""By Python; the fast lane keeps as many (desk_src/kept.h)."""


class Descriptors:
    """One open descriptor a node, as long as it is used now and then."""

    def __init__(self, operations: FileHandlers, kept: int = KEPT) -> None:
        self._operations = operations
        self._kept = kept
        self._numbers: OrderedDict[int, int] = OrderedDict()
        """Node to number of its handle, the least recently used first."""
        self._users: Counter[int] = Counter()
        """Node to requests under way."""

    def __len__(self) -> int:
        return len(self._numbers)

    @asynccontextmanager
    async def lent(self, shown: Shown, node: Node, *, writable: bool) -> AsyncIterator[int]:
        """Give the number of a handle on a node for the block; it is not closed meanwhile."""
        number = self._find(node.ino, writable=writable)
        if number is None:
            number = self._open(shown, node, writable=writable)
        self._users[node.ino] += 1
        try:
            yield number
        finally:
            self._users[node.ino] -= 1
            if not self._users[node.ino]:
                del self._users[node.ino]
                self._shrink()
                if not self._operations.forest.is_known(node.ino):
                    self.close(node.ino)

    def close(self, ino: int) -> None:
        """Close a node's descriptor, if it has one and no request uses it."""
        if ino not in self._users and (number := self._numbers.pop(ino, None)) is not None:
            self._release(number)

    def _find(self, ino: int, *, writable: bool) -> int | None:
        number = self._numbers.get(ino)
        if number is None or (writable and not self._operations.files.get(number).writable):
            return None
        self._numbers.move_to_end(ino)
        return number

    def _open(self, shown: Shown, node: Node, *, writable: bool) -> int:
        """Open a node, in the place of a descriptor that is for reading only."""
        # Whether an append-only file may be written, each write asks.
        fd = shown.tree.open(node, os.O_RDWR | os.O_APPEND if writable else os.O_RDONLY)
        number = self._numbers.get(node.ino)
        if number is not None:  # may be in use: it becomes writable under its number
            handle = self._operations.files.get(number)
            os.dup2(fd, handle.fd, inheritable=False)
            os.close(fd)
            handle.writable, handle.lower = True, False
            return number
        handle = FileHandle(shown, node, node.ino, flags=0, fd=fd, writable=writable, pid=0)
        shown.handles += 1
        number = self._numbers[node.ino] = self._operations.files.add(handle)
        return number

    def _shrink(self) -> None:
        for ino in list(self._numbers)[: max(0, len(self._numbers) - self._kept)]:
            self.close(ino)

    def _release(self, number: int) -> None:
        handle = self._operations.files.pop(number)
        if handle is not None:
            handle.close()
            self._operations.forest.released(handle.shown, handle.node.ino)


class NoOpenOperations(OverlayOperations):
    """The handlers of a lane, less handles."""

    def __init__(self, forest: Forest, view: View, *, inflight: InFlight | None = None) -> None:
        super().__init__(forest, view, inflight=inflight)
        self.descriptors = Descriptors(self)
        self.hot.without_opens = True
        forest.is_without_opens = True
        forest.let_go = self._close_forgotten
        self.raw.update(
            {
                Opcode.OPEN: _refuse_for_good,
                Opcode.CREATE: _refuse_for_good,
                Opcode.READ: self._finding(self._read_node),
                Opcode.WRITE: self._finding(self._write_node),
            }
        )

    def forgot(self, nodeid: int, lookups: int) -> None:
        super().forgot(nodeid, lookups)
        self._close_forgotten(nodeid)

    def ended(self, nodeid: int) -> None:
        self._close_forgotten(nodeid)

    def _close_forgotten(self, nodeid: int) -> None:
        if not self.forest.is_known(nodeid):
            self.descriptors.close(nodeid)

    def opened_past(self, shown: Shown, node: Node, fd: int, pid: int) -> tuple[int, int, int]:
        """Nobody says when what was made without a name is closed: it is known by its node too."""
        os.close(fd)
        return 0, OpenFlags.KEEP_CACHE, 0

    def maybe_mapped(self, root: int) -> Collection[int]:
        """Any file may be: the kernel told us of no open."""
        return self.forest.numbers(root)

    @property
    def open_count(self) -> int:
        """Descriptors that are kept."""
        return len(self.files) + _desk.descriptors()

    async def _read_node(self, request: Request) -> Body:
        _, offset, size, *_ = READ_IN.unpack_from(request.body)
        shown, node = self.forest.find(request.nodeid)
        self.place(shown, node)
        async with self.descriptors.lent(shown, node, writable=False) as number:
            return await raising(self.read(number, offset, size))

    async def _write_node(self, request: Request) -> Body:
        shown, node = self.forest.find(request.nodeid)
        how = WRITE_IN.unpack_from(request.body)[3]
        with self.refused_pages.noting(request.nodeid, how):
            return await self._write_known(request, shown, node)

    async def _write_known(self, request: Request, shown: Shown, node: Node) -> Body:
        _, offset, size, flags, _, opened, _ = WRITE_IN.unpack_from(request.body)
        data = memoryview(request.body)[WRITE_IN.size : WRITE_IN.size + size]
        channel.note_set_id_killer(request.pid if flags & KILL_SET_ID else channel.NO_KILLER)
        await self._prepare_write(shown, node, request.pid)
        if isinstance(shown.tree, Tree):  # a mapping's pages come without O_APPEND
            shown.tree.check_open(node, opened)
        self.place(shown, node)
        async with self.descriptors.lent(shown, node, writable=True) as number:
            is_whole = bool(flags & FROM_CACHE)
            done = await raising(self.write(number, offset, data, is_whole=is_whole))
        return WRITE_OUT.pack(done, 0)

    async def _prepare_write(self, shown: Shown, node: Node, pid: int) -> None:
        """Copy a file up, and take set-id bits that process `pid`, which writes, may not keep."""
        if node.up and channel.set_id_killer() == channel.NO_KILLER:
            return
        tree = await shown.begin()
        try:
            await self.copy_ups.ensure(shown, tree, node)
            found = tree.getattr(node)
            if privileges.has_set_id(found.mode):
                left = privileges.left_by_write(found.mode, found.gid, pid)
                setid.leave(tree, node, node.ino, found.mode, left)
        finally:
            shown.end()

    def _note_mode(self, node: Node, wanted: SetAttr) -> None:
        """Each write says by itself whether it takes set-id bits."""


async def _refuse_for_good(request: Request) -> Body:
    raise NotSupported
