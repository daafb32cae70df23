"""Reads and writes of files, also of those that an earlier worker opened.

The kernel sends back the number of a handle with each request, and with it the node, and how the
file is open. So a handle that only a dead worker had is made again from the request, under its old
number, when it is used for the first time. Who has it open was counted then (backing.py); its
release is counted now.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING

from snapfs.fuse import channel, privileges
from snapfs.fuse.answering import raising
from snapfs.fuse.channel import Body, Opcode, RawHandler, Request
from snapfs.fuse.handles import FileHandle
from snapfs.fuse.hot import PASSING
from snapfs.fuse.lending import lent, read_all
from snapfs.fuse.refusing import FROM_CACHE
from snapfs.fuse.threads import blocking
from snapfs.overlay import Tree

if TYPE_CHECKING:
    from snapfs.fuse.files import FileHandlers

READ_IN = struct.Struct("<QQIIQII")
WRITE_IN = struct.Struct("<QQIIQII")
WRITE_OUT = struct.Struct("<II")
KILL_SET_ID = 1 << 2
"""FUSE_WRITE_KILL_SUIDGID: who writes may not keep set-id bits."""
_KEPT_FLAGS = os.O_ACCMODE | os.O_SYNC | os.O_DSYNC | os.O_NOATIME | os.O_APPEND


class InheritedRequests:
    """Handlers for READ and WRITE."""

    def __init__(self, operations: FileHandlers) -> None:
        self._operations = operations

    def handlers(self) -> Mapping[int, RawHandler]:
        return {Opcode.READ: self.read, Opcode.WRITE: self.write}

    async def read(self, request: Request) -> Body:
        fh, offset, size, _, _, flags, _ = READ_IN.unpack_from(request.body)
        if fh == PASSING:
            return await self._read_past(request.nodeid, offset, size)
        self._know(request, fh, flags)
        return await raising(self._operations.read(fh, offset, size))

    async def write(self, request: Request) -> Body:
        fh, offset, size, how, _, flags, _ = WRITE_IN.unpack_from(request.body)
        if flags & os.O_ACCMODE == os.O_RDONLY:  # pages of a mapping: for no file in particular
            flags = os.O_RDWR
        if fh == PASSING:  # the kernel writes by itself what is open so
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        self._know(request, fh, flags)
        channel.note_set_id_killer(request.pid if how & KILL_SET_ID else channel.NO_KILLER)
        data = memoryview(request.body)[WRITE_IN.size : WRITE_IN.size + size]
        is_whole = bool(how & FROM_CACHE)
        with self._operations.refused_pages.noting(request.nodeid, how):
            self._check_grows(fh, how, flags)
            done = await raising(self._operations.write(fh, offset, data, is_whole=is_whole))
        return WRITE_OUT.pack(done, 0)

    async def _read_past(self, nodeid: int, offset: int, size: int) -> bytes:
        """Read of a file that is open past us: readahead(2) and posix_fadvise(2) ask for its pages
        all the same. Its handle is all such files', so nothing is kept under that."""
        operations = self._operations
        with lent(operations, nodeid, PASSING) as fd:
            return await blocking(operations.threads.file_io, read_all, fd, size, offset)

    def _check_grows(self, fh: int, how: int, flags: int) -> None:
        if self._operations.files.get(fh).only_grows and (
            how & FROM_CACHE or not flags & os.O_APPEND
        ):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def _know(self, request: Request, fh: int, flags: int) -> None:
        """Make a handle again that only an earlier worker had."""
        files = self._operations.files
        known = files.find(fh)
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        if known is not None and (known.writable or not writable):
            return
        shown, node = self._operations.forest.find(request.nodeid)
        fd = shown.tree.open(node, flags & _KEPT_FLAGS)
        if known is not None:  # read first by a mapping that is written back now
            known.reopen(fd)
        else:
            known = FileHandle(
                shown, node, request.nodeid, flags=0, fd=fd, writable=False, pid=request.pid
            )
            known.native = self._operations.passing.is_native(request.nodeid)
            shown.handles += 1
            files.add(known, fh)
        if writable:
            known.writable = True
            known.only_grows = isinstance(node.tree, Tree) and node.tree.only_grows(node)
            known.set_id = privileges.has_set_id(os.fstat(fd).st_mode)
            node.tree.usage.opened(node, native=known.native)
