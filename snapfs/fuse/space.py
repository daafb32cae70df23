"""STATFS, which pyfuse3 hands on without saying of which node: df(1) tells a snapshot's quota."""

from __future__ import annotations

import os
import struct

from snapfs.fuse.channel import Body, Opcode, Request
from snapfs.fuse.operations import OverlayOperations
from snapfs.fuse.threads import blocking

_STATFS_OUT = struct.Struct("<QQQQQIIII24x")


def add_to(operations: OverlayOperations) -> None:
    """Let `operations` answer STATFS by node; to be called before the session is served."""

    async def statfs(request: Request) -> Body:
        shown, _ = operations.forest.find(request.nodeid)
        real = await blocking(operations.threads.file_io, operations.forest.statfs)
        return _pack(shown.shown_space(real))

    operations.raw[Opcode.STATFS] = statfs


def _pack(figures: os.statvfs_result) -> bytes:
    """Return fuse_statfs_out."""
    return _STATFS_OUT.pack(
        figures.f_blocks,
        figures.f_bfree,
        figures.f_bavail,
        figures.f_files,
        figures.f_ffree,
        figures.f_bsize,
        figures.f_namemax,
        figures.f_frsize,
        0,
    )
