"""fallocate, SEEK_DATA and SEEK_HOLE, copy_file_range: done to the backing files, in threads.

The kernel refuses by itself what its FUSE does not know: of fallocate's modes those that move data
(collapse, insert), and clones by ioctl. copy_file_range clones where the backing file system can.
"""

from __future__ import annotations

import os
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from snapfs.fuse import bounded, privileges, setid
from snapfs.fuse.channel import Body, Opcode, RawHandler, Request
from snapfs.fuse.lending import lent
from snapfs.fuse.threads import blocking
from snapfs.fuse.trees import Shown
from snapfs.overlay import Node, Tree
from snapfs.overlay.filecalls import FALLOC_FL_PUNCH_HOLE, fallocate

if TYPE_CHECKING:
    from snapfs.fuse.operations import OverlayOperations

Result = TypeVar("Result")

MAX_COPY_BYTES = 128 << 20
"""Of one request: a freeze waits no longer than for this, and who copies asks again."""

_FALLOCATE_IN = struct.Struct("<QQQII")
_LSEEK_IN = struct.Struct("<QqII")
_LSEEK_OUT = struct.Struct("<Q")
_COPY_IN = struct.Struct("<QQQQQQQ")
_COPY_OUT = struct.Struct("<II")
_COPY_64_OUT = struct.Struct("<Q")


class Found(NamedTuple):
    """The file that a request is about."""

    shown: Shown
    node: Node
    fd: int
    """-1 when it has to be opened."""


class SpaceRequests:
    """Handlers for the space and the content of files."""

    def __init__(self, operations: OverlayOperations) -> None:
        self._operations = operations

    def handlers(self) -> Mapping[int, RawHandler]:
        return {
            Opcode.FALLOCATE: self.fallocate,
            Opcode.LSEEK: self.lseek,
            Opcode.COPY_FILE_RANGE: self.copy_file_range,
            Opcode.COPY_FILE_RANGE_64: self.copy_file_range_64,
        }

    async def fallocate(self, request: Request) -> Body:
        fh, offset, length, mode, _ = _FALLOCATE_IN.unpack_from(request.body)
        async with self._changed(request, request.nodeid, fh) as (found, tree):
            tree.prepare_fallocate(found.node, mode)
            takes = 0 if mode & FALLOC_FL_PUNCH_HOLE else length
            async with self._admitted(found, tree, offset, takes) as fits:
                if fits < takes:
                    raise bounded.exceeded()
                await self._run(fallocate, found.fd, mode, offset, length)
        return b""

    async def lseek(self, request: Request) -> Body:
        fh, offset, whence, _ = _LSEEK_IN.unpack_from(request.body)
        with lent(self._operations, request.nodeid, fh) as fd:
            return _LSEEK_OUT.pack(await self._run(os.lseek, fd, offset, whence))

    async def copy_file_range(self, request: Request) -> Body:
        return _COPY_OUT.pack(await self._copy(request), 0)

    async def copy_file_range_64(self, request: Request) -> Body:
        return _COPY_64_OUT.pack(await self._copy(request))

    async def _copy(self, request: Request) -> int:
        fh, offset, to_nodeid, to_fh, to_offset, length, _ = _COPY_IN.unpack_from(request.body)
        count = min(length, MAX_COPY_BYTES)
        with lent(self._operations, request.nodeid, fh) as source:
            async with (
                self._changed(request, to_nodeid, to_fh) as (target, tree),
                self._admitted(target, tree, to_offset, count) as fits,
            ):
                return await self._run(
                    os.copy_file_range, source, target.fd, fits, offset, to_offset
                )

    @asynccontextmanager
    async def _admitted(
        self, found: Found, tree: Tree, offset_bytes: int, length_bytes: int
    ) -> AsyncIterator[int]:
        """Give how much of a range may be taken in the block."""
        tree.usage.note(found.node)
        if not length_bytes or not tree.allowance.bounded:
            yield length_bytes
            return
        async with bounded.admitted(
            found.shown, tree, found.node, found.fd, offset_bytes, length_bytes
        ) as fits:
            yield fits

    async def _run(self, call: Callable[..., Result], *args: object) -> Result:
        return await blocking(self._operations.threads.file_io, call, *args)

    @asynccontextmanager
    async def _changed(
        self, request: Request, nodeid: int, fh: int
    ) -> AsyncIterator[tuple[Found, Tree]]:
        """Lend a descriptor to change a file by, inside the gate, after it was copied up."""
        found = self._find(nodeid, fh)
        node = found.node
        tree = await found.shown.begin()
        try:
            await self._operations.copy_ups.ensure(found.shown, tree, node)
            fd = tree.open(node, os.O_RDWR | os.O_APPEND) if found.fd < 0 else found.fd
            try:
                self._take_set_id(tree, node, request, fd)
                yield found._replace(fd=fd), tree
            finally:
                if found.fd < 0:
                    os.close(fd)
        finally:
            found.shown.end()

    def _find(self, nodeid: int, fh: int) -> Found:
        """Find a file by its handle, or else by its node."""
        handle = self._operations.files.find(fh)
        if handle is not None:
            return Found(handle.shown, handle.node, handle.fd)
        return Found(*self._operations.forest.find(nodeid), -1)

    def _take_set_id(self, tree: Tree, node: Node, request: Request, fd: int) -> None:
        """Take set-id bits that the caller may not keep; these requests do not say so."""
        mode = os.fstat(fd).st_mode
        if not privileges.has_set_id(mode):
            return
        left = privileges.left_by(request.pid, mode, tree.getattr(node).gid)
        setid.leave(tree, node, request.nodeid, mode, left)
