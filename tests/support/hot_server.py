"""A file system to try the fast lane on: `python -m tests.support.hot_server MOUNTPOINT FILE`.

    file       opened in passthrough; offered for opening at each open that Python answers
    direct     opened past the page cache; its contents are offered at the first read

Attributes and the absence of attributes are offered when they are asked for. The root's attribute
`user.seen` tells as JSON how often Python was asked for what, and the lane's figures; setting
`user.do` to `withdraw`, `withdraw and tell`, `closed` or `stop` does that.
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
from snapfs.fuse.channel import OpenFlags
from snapfs.overlay import Attributes

import pyfuse3  # isort: skip  # after the channel's library

ROOT, FILE, DIRECT = 1, 7 | channel.INCARNATION, 8
NAMES = {b"file": FILE, b"direct": DIRECT}


class HotFiles(session.Operations):
    def __init__(self, backing: Path, device: int) -> None:
        super().__init__()
        self.fd = os.open(backing, os.O_RDONLY)
        self.backing_id = channel.backing_open(device, self.fd)
        self.seen: Counter[str] = Counter()
        self.handles = 1 << 40
        self.closed: list[int] = []

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
        if name not in NAMES:
            raise OSError(errno.ENOENT, "no")
        return self.entry(NAMES[name])

    @answering
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        if inode != ROOT:
            self.seen["getattr"] += 1
            self.hot.offer_attributes(inode, self.attributes(inode), 1000)
        return self.entry(inode)

    @answering
    async def open(self, inode: int, flags: int, ctx: object) -> pyfuse3.FileInfo:
        self.seen["open"] += 1
        self.handles += 1
        how = OpenFlags.PASSTHROUGH if inode == FILE else OpenFlags.DIRECT_IO
        answer = how, self.backing_id if inode == FILE else 0
        self.hot.offer_open(inode, *answer)
        channel.answer_open(self.handles, *answer)
        return pyfuse3.FileInfo(fh=self.handles)

    @answering
    async def read(self, fh: int, off: int, size: int) -> bytes:
        self.seen["read"] += 1
        self.hot.offer_contents(DIRECT, os.dup(self.fd))
        return os.pread(self.fd, size, off)

    @answering
    async def release(self, fh: int) -> None:
        self.seen["release"] += 1

    @answering
    async def flush(self, fh: int) -> None:
        raise pyfuse3.FUSEError(errno.ENOSYS)

    @answering
    async def getxattr(self, inode: int, name: bytes, ctx: object) -> bytes:
        if inode == ROOT and name == b"user.seen":
            figures = self.hot.figures()
            told = {"closed": self.closed, "nodes": figures.nodes, "opens": figures.opens}
            answered = {channel.Opcode(code).name: n for code, n in figures.answered.items()}
            return json.dumps({"seen": self.seen, "answered": answered, **told}).encode()
        self.seen["getxattr"] += 1
        if inode != ROOT:
            self.hot.offer_no_xattrs(inode, user=name.startswith(b"user."))
        raise OSError(errno.ENODATA, "none")

    @answering
    async def listxattr(self, inode: int, ctx: object) -> list[bytes]:
        self.seen["listxattr"] += 1
        return []

    @answering
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: object) -> None:
        match value:
            case b"withdraw":
                for node in NAMES.values():
                    self.hot.withdraw(node)
            case b"withdraw and tell":
                assert self.hot.withdraw(FILE, tell=True) == self.hot.opens(FILE)
            case b"closed":
                self.closed += self.hot.closed()
            case b"withdraw all":
                self.hot.withdraw_all()
            case _:
                raise OSError(errno.EINVAL, "no such order")


async def _serve(mountpoint: Path, backing: Path) -> None:
    connection = handover.connect(
        mountpoint, source="hot", wanted=handover.WANTED_PASSTHROUGH, timeout_s=20
    )
    operations = HotFiles(backing, os.dup(connection.fd))
    await session.serve(
        operations, connection.fd, connection.init, ready=lambda: print("ready", flush=True)
    )


if __name__ == "__main__":
    trio.run(_serve, Path(sys.argv[1]), Path(sys.argv[2]))
