"""A file system to try the fast lane on: `python -m tests.support.hot_server MOUNTPOINT FILE`.

It has one `file`, opened in passthrough; opens are on offer after the first that Python answers.
The root's attribute `user.seen` tells as JSON how often Python was asked for what, what the library
has answered, and how many opens are counted; setting `user.do` to `withdraw` or `forget` does that
to the file.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from collections import Counter
from pathlib import Path

import trio

from snapfs.fuse import channel, handover, session
from snapfs.fuse.answering import answering
from snapfs.fuse.backing import BackingIds, Kind
from snapfs.fuse.channel import Opcode, OpenFlags, Request
from snapfs.fuse.hot import PASSING
from snapfs.overlay import Attributes

import pyfuse3  # isort: skip  # after the channel's library

ROOT, FILE = 1, 7 | channel.INCARNATION


class HotFiles(session.Operations):
    def __init__(self, backing: Path, connection: handover.Connection) -> None:
        super().__init__()
        self.fd = os.open(backing, os.O_RDONLY)
        self.ids = BackingIds(os.dup(connection.fd), connection.journal)
        self.hot.passes(self.ids.opened, lambda happening: None, None)
        self.seen: Counter[str] = Counter()
        self.raw[Opcode.RELEASE] = self.release_node

    def entry(self, ino: int) -> pyfuse3.EntryAttributes:
        known = self.attributes(ino)
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = ino
        entry.st_mode = known.mode
        entry.st_nlink = 1
        entry.st_size = known.size
        entry.entry_timeout = entry.attr_timeout = 1000
        return entry

    def attributes(self, ino: int) -> Attributes:
        mode = stat.S_IFDIR | 0o755 if ino == ROOT else stat.S_IFREG | 0o644
        size = os.fstat(self.fd).st_size
        return Attributes(ino, mode, 1, 0, 0, 0, size, 8, 4096, -(10**9), 5, 2 * 10**9)

    @answering
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if name != b"file":
            raise OSError(errno.ENOENT, "no")
        return self.entry(FILE)

    @answering
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        if inode != ROOT:
            self.seen["getattr"] += 1
        return self.entry(inode)

    @answering
    async def open(self, inode: int, flags: int, ctx: object) -> pyfuse3.FileInfo:
        self.seen["open"] += 1
        writing = flags & os.O_ACCMODE != os.O_RDONLY
        entry = self.ids.enter(inode, Kind.UPPER, lambda: self.fd, writing=writing)
        self.ids.offer(inode)
        channel.answer_open(PASSING, OpenFlags.PASSTHROUGH, entry.backing_id)
        return pyfuse3.FileInfo(fh=PASSING)

    async def release_node(self, request: Request) -> bytes:
        self.seen["release"] += 1
        self.ids.close_id(self.ids.leave(request.nodeid, writing=False, keep=False))
        return b""

    @answering
    async def flush(self, fh: int) -> None:
        raise pyfuse3.FUSEError(errno.ENOSYS)

    @answering
    async def getxattr(self, inode: int, name: bytes, ctx: object) -> bytes:
        if inode == ROOT and name == b"user.seen":
            told = {"opens": self.ids.opened.total, "kept": len(self.ids)}
            answered = dict(self.hot.answered())
            return json.dumps({"seen": self.seen, "answered": answered, **told}).encode()
        self.seen["getxattr"] += 1
        raise OSError(errno.ENODATA, "none")

    @answering
    async def listxattr(self, inode: int, ctx: object) -> list[bytes]:
        self.seen["listxattr"] += 1
        return []

    @answering
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: object) -> None:
        match value:
            case b"withdraw":
                self.ids.withdraw(FILE)
            case b"forget":
                self.ids.discard(FILE)
            case _:
                raise OSError(errno.EINVAL, "no such order")


async def _serve(mountpoint: Path, backing: Path) -> None:
    connection = handover.connect(
        mountpoint, source="hot", wanted=handover.WANTED_PASSTHROUGH, timeout_s=20
    )
    operations = HotFiles(backing, connection)
    await session.serve(
        operations, connection.fd, connection.init, ready=lambda: print("ready", flush=True)
    )


if __name__ == "__main__":
    trio.run(_serve, Path(sys.argv[1]), Path(sys.argv[2]))
