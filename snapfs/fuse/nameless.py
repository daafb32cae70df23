"""O_TMPFILE: TMPFILE is asked and answered as CREATE is."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING

from snapfs.fuse import wire
from snapfs.fuse.channel import Body, Opcode, RawHandler, Request
from snapfs.fuse.inflight import Noting
from snapfs.overlay import Node, Tree

if TYPE_CHECKING:
    from snapfs.fuse.operations import OverlayOperations

_CREATE_IN = struct.Struct("<IIII")


class NamelessRequests:
    """Handler for files that are made without a name."""

    def __init__(self, operations: OverlayOperations) -> None:
        self._operations = operations

    def handlers(self) -> Mapping[int, RawHandler]:
        return {Opcode.TMPFILE: self.tmpfile}

    async def tmpfile(self, request: Request) -> Body:
        flags, mode, umask, _ = _CREATE_IN.unpack_from(request.body)
        operations = self._operations
        shown, parent = operations.forest.find(request.nodeid)
        uid, gid = operations.view.caller(request)
        tree = await shown.begin()
        try:
            with operations.once() as once:
                node, fd = _made(once, tree, flags) or tree.tmpfile(
                    parent, mode, flags, uid=uid, gid=gid, umask=umask
                )
                once.did(node.ino)
            operations.forest.remember_nameless(node)
            try:
                entry = operations.entry(shown, node)
                opened = operations.opened_past(shown, node, fd, request.pid)
            except OSError:
                os.close(fd)
                operations.forest.forget(node.ino, 1)
                raise
            if not operations.passing.is_lasting(node):
                entry.attr_timeout = 0
            return wire.entry(entry) + wire.opened(*opened)
        finally:
            shown.end()


def _made(once: Noting, tree: Tree, flags: int) -> tuple[Node, int] | None:
    """Return and open the file that a dead worker made for this request, if it did."""
    if once.earlier is None or not once.earlier.first:
        return None
    node = tree.nameless(once.earlier.first, None)
    return None if node is None else (node, tree.open(node, flags & os.O_ACCMODE))
