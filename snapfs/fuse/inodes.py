"""statx with the birth time, inode flags (chattr, lsattr), statfs and syncfs."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyfuse3

from snapfs.fuse import wire
from snapfs.fuse.channel import Body, Opcode, RawHandler, Request
from snapfs.fuse.threads import blocking
from snapfs.fuse.trees import Shown
from snapfs.overlay import Node, Tree
from snapfs.overlay.filecalls import (
    FS_IOC_FSGETXATTR,
    FS_IOC_FSSETXATTR,
    FS_IOC_GETFLAGS,
    FS_IOC_SETFLAGS,
    FSXATTR_BYTES,
    ExtendedFlags,
)

if TYPE_CHECKING:
    from snapfs.fuse.operations import OverlayOperations

_IOCTL_IN = struct.Struct("<QIIQII")
_IOCTL_OUT = struct.Struct("<iIII")
_FLAGS = struct.Struct("<I")
_CHANGES = (FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR)


class InodeRequests:
    """Handlers for what is known of a node."""

    def __init__(self, operations: OverlayOperations) -> None:
        self._operations = operations

    def handlers(self) -> Mapping[int, RawHandler]:
        return {
            Opcode.STATX: self.statx,
            Opcode.IOCTL: self.ioctl,
            Opcode.STATFS: self.statfs,
            Opcode.SYNCFS: self.syncfs,
        }

    async def statx(self, request: Request) -> Body:
        shown, node = self._operations.forest.find(request.nodeid)
        tree = shown.tree
        birth_ns = tree.birth_ns(node) if isinstance(tree, Tree) else None
        return wire.statx(self._operations.entry(shown, node), birth_ns)

    async def statfs(self, request: Request) -> Body:
        shown, _ = self._operations.forest.find(request.nodeid)
        operations = self._operations
        real = await blocking(operations.threads.file_io, operations.forest.statfs)
        return wire.statfs(await shown.shown_space(real))

    async def syncfs(self, request: Request) -> Body:
        """Linux asks this of virtiofs and of block devices only, up to 6.18 at least."""
        operations = self._operations
        await blocking(operations.threads.file_io, operations.forest.syncfs)
        return b""

    async def ioctl(self, request: Request) -> Body:
        """Answer what the kernel itself asks for flags; it has checked who may set them.

        Programs ask for other things of any file (whether it is a terminal); none are there.
        """
        _, _, command, _, in_size, _ = _IOCTL_IN.unpack_from(request.body)
        given = request.body[_IOCTL_IN.size : _IOCTL_IN.size + in_size]
        if command not in (FS_IOC_GETFLAGS, FS_IOC_FSGETXATTR, *_CHANGES):
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        shown, node = self._operations.forest.find(request.nodeid)
        if command in _CHANGES:
            await self._set(shown, node, command, given)
            with contextlib.suppress(FileNotFoundError):  # the kernel has nothing cached
                pyfuse3.invalidate_inode(request.nodeid, attr_only=True)
            return _IOCTL_OUT.pack(0, 0, 0, 0)
        if not isinstance(shown.tree, Tree):
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        return _IOCTL_OUT.pack(0, 0, 0, 0) + _get(shown.tree, node, command)

    async def _set(self, shown: Shown, node: Node, command: int, given: bytes) -> None:
        if len(given) != (_FLAGS.size if command == FS_IOC_SETFLAGS else FSXATTR_BYTES):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        tree = await shown.begin()
        try:
            await self._operations.copy_ups.ensure(shown, tree, node)
            if command == FS_IOC_SETFLAGS:
                tree.setflags(node, *_FLAGS.unpack(given))
            else:
                tree.setfields(node, ExtendedFlags.unpack(given))
        finally:
            shown.end()


def _get(tree: Tree, node: Node, command: int) -> bytes:
    if command == FS_IOC_GETFLAGS:
        return _FLAGS.pack(tree.getflags(node))
    return tree.getfields(node).pack()
