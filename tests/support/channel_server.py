"""A file system of one file, to try the channel on: `python -m tests.support.channel_server`.

    file       has the contents of a file beside the mount, by passthrough; its node's number has
               the incarnation bit

FALLOCATE tells what was asked: mode 0 is EDOM, KEEP_SIZE fails by a bug, PUNCH_HOLE gives a reply
that does not fit. STATFS shows the node that it was asked for as the number of blocks; for the file
it waits until that is looked up as `go`. LSEEK is not supported.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
from pathlib import Path

import trio

from snapfs.fuse import channel, handover, session
from snapfs.fuse.answering import answering
from snapfs.fuse.channel import NotSupported, Opcode, OpenFlags, Request

import pyfuse3  # isort: skip  # after the channel's library

ROOT = 1
FILE = 7 | channel.INCARNATION
_FALLOCATE = struct.Struct("<QQQII")
_STATFS = struct.Struct("<QQQQQIIII24x")


class OneFile(session.Operations):
    def __init__(self, backing: Path, device: int) -> None:
        super().__init__()
        self.fd = os.open(backing, os.O_RDWR)
        self.backing_id = channel.backing_open(device, self.fd)
        self.go = trio.Event()
        self.handles = 1 << 40
        self.raw = {
            Opcode.FALLOCATE: self.fallocate,
            Opcode.STATFS: self.raw_statfs,
            Opcode.LSEEK: self.lseek,
        }

    def entry(self, ino: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = ino
        entry.st_mode = stat.S_IFDIR | 0o755 if ino == ROOT else stat.S_IFREG | 0o644
        entry.st_nlink = 1
        entry.st_size = os.fstat(self.fd).st_size
        entry.attr_timeout = 0
        entry.entry_timeout = 0
        return entry

    @answering
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self.entry(inode)

    @answering
    async def setattr(
        self, inode: int, attr: object, fields: object, fh: object, ctx: object
    ) -> pyfuse3.EntryAttributes:
        return self.entry(inode)

    @answering
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if name == b"go":
            self.go.set()
        if name not in (b"go", b"file"):
            raise OSError(errno.ENOENT, "no")
        return self.entry(FILE)

    def opened(self, flags: OpenFlags) -> pyfuse3.FileInfo:
        self.handles += 1
        channel.answer_open(self.handles, flags, self.backing_id)
        return pyfuse3.FileInfo(fh=self.handles)

    @answering
    async def open(self, inode: int, flags: int, ctx: object) -> pyfuse3.FileInfo:
        return self.opened(OpenFlags.PASSTHROUGH)

    @answering
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: object
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        return self.opened(OpenFlags.PASSTHROUGH), self.entry(FILE)

    @answering
    async def opendir(self, inode: int, ctx: object) -> int:
        return 1

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        if not start_id:
            pyfuse3.readdir_reply(token, b"file", self.entry(FILE), 1)

    @answering
    async def release(self, fh: int) -> None:
        pass

    async def fallocate(self, request: Request) -> bytes:
        assert request.nodeid == FILE
        _, _, _, mode, _ = _FALLOCATE.unpack_from(request.body)
        match mode:
            case 0:
                raise OSError(errno.EDOM, "asked")
            case 3:  # FALLOC_FL_PUNCH_HOLE, which has to keep the size
                return b"does not fit"
            case 1:  # FALLOC_FL_KEEP_SIZE
                raise RuntimeError("a bug")
        return b""

    async def raw_statfs(self, request: Request) -> bytes:
        if request.nodeid == FILE:
            await self.go.wait()
        return _STATFS.pack(request.nodeid & ~channel.INCARNATION, 0, 0, 0, 0, 512, 255, 512, 0)

    async def lseek(self, request: Request) -> bytes:
        raise NotSupported


async def _serve(mountpoint: Path, backing: Path) -> None:
    connection = handover.connect(
        mountpoint, source="one", wanted=handover.WANTED_PASSTHROUGH, timeout_s=20
    )
    operations = OneFile(backing, os.dup(connection.fd))
    await session.serve(
        operations, connection.fd, connection.init, ready=lambda: print("ready", flush=True)
    )


if __name__ == "__main__":
    trio.run(_serve, Path(sys.argv[1]), Path(sys.argv[2]))
