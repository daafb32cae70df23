"""Handlers for the contents of files: open, create, read, write, sync, release.

Reads are tried without waiting, on the loop, and go to a thread when the data is not in memory.
Writes go to a thread when they are big, or when one to the same file was slow a moment ago (the
kernel makes writers wait while it writes back).
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Collection

import pyfuse3

from snapfs.fuse import bounded, mounts, privileges
from snapfs.fuse.answering import answering
from snapfs.fuse.attributes import View
from snapfs.fuse.channel import OpenFlags
from snapfs.fuse.copyup import CopyUps
from snapfs.fuse.directories import Directories
from snapfs.fuse.handles import DirectoryHandle, FileHandle, Handles
from snapfs.fuse.handover import MAX_WRITE_BYTES
from snapfs.fuse.session import Operations
from snapfs.fuse.threads import Threads, blocking
from snapfs.fuse.trees import Forest, Shown
from snapfs.overlay import Node, SetAttr, Tree

INLINE_WRITE_BYTES = 128 * 1024
SLOW_WRITE_NS = 5_000_000
SLOW_FOR_NS = 1_000_000_000
INLINE_TRUNCATE_BYTES = 16 << 20
_KEPT_FLAGS = os.O_ACCMODE | os.O_TRUNC | os.O_SYNC | os.O_DSYNC | os.O_NOATIME | os.O_APPEND
"""Flags of an open that mean something to a tree. The kernel resolves O_APPEND and O_DIRECT."""


class FileHandlers(Operations):
    """State that all handlers share, and those for what is in files."""

    def __init__(self, forest: Forest, view: View, *, redirects: bool = True) -> None:
        super().__init__()
        self.forest = forest
        self.view = view
        self.redirects = redirects
        """Directories of lower layers may be renamed."""
        self.threads = Threads()
        self.files: Handles[FileHandle] = Handles()
        self.directories: Handles[DirectoryHandle] = Handles()
        self.copy_ups = CopyUps(self.files, self.threads)
        self.names = Directories(forest, view, self.threads)
        self.raw.update(self.names.handlers())
        self._in_memory: dict[int, bool] = {}
        self._buffer = memoryview(bytearray(MAX_WRITE_BYTES))
        """Of reads on the loop: the reply is sent before anything else runs."""

    @answering
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        shown, node = self.forest.find(inode)
        if flags & os.O_ACCMODE == os.O_RDONLY and not flags & os.O_TRUNC:
            fd = shown.tree.open(node, flags & _KEPT_FLAGS)
            return self._opened(shown, node, fd, writable=False, pid=ctx.pid)
        tree = await shown.begin()
        try:
            await self.copy_ups.ensure(shown, tree, node, data=not flags & os.O_TRUNC)
            fd = tree.open(node, flags & _KEPT_FLAGS)
        finally:
            shown.end()
        info = self._opened(shown, node, fd, writable=True, pid=ctx.pid)
        self._check_set_id(tree, self.files.get(info.fh), truncated=bool(flags & os.O_TRUNC))
        return info

    @answering
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        shown, parent = self.forest.find(parent_inode)
        uid, gid = self.view.caller(ctx)
        tree = await shown.begin()
        try:
            node, fd = tree.create(
                parent, name, mode, flags & _KEPT_FLAGS, uid=uid, gid=gid, umask=ctx.umask
            )
            entry = self.view.entry(tree.getattr(node))
        finally:
            shown.end()
        self.forest.remember(node)
        return self._opened(shown, node, fd, writable=True, pid=ctx.pid), entry

    @answering
    async def read(self, fh: int, off: int, size: int) -> bytes:
        handle = self.files.get(fh)
        if handle.slow:
            return await blocking(self.threads.file_io, os.pread, handle.fd, size, off)
        target = self._buffer[:size]
        try:
            done = os.preadv(handle.fd, [target], off, handle.read_flags)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                self._choose_reads(handle)
            elif error.errno != errno.EAGAIN:
                raise
            return await blocking(self.threads.file_io, os.pread, handle.fd, size, off)
        if done == size or off + done >= os.fstat(handle.fd).st_size:
            return target[:done]  # type: ignore[return-value]  # any buffer will do
        head = bytes(target[:done])  # the rest is not in memory; the buffer is not ours meanwhile
        rest = await blocking(self.threads.file_io, os.pread, handle.fd, size - done, off + done)
        return head + rest

    @answering
    async def write(self, fh: int, off: int, buf: bytes | memoryview) -> int:
        handle = self.files.get(fh)
        shown = handle.shown
        tree = await shown.begin()
        try:
            if handle.set_id:
                self._drop_set_id(tree, handle)
            if tree.allowance.bounded:
                return await self._write_bounded(tree, handle, off, buf)
            tree.usage.note(handle.node)
            return await self._write(handle, off, buf)
        finally:
            shown.end()

    async def _write_bounded(
        self, tree: Tree, handle: FileHandle, off: int, buf: bytes | memoryview
    ) -> int:
        """Write what the quota allows."""
        size = len(buf)
        async with bounded.admitted(handle.shown, tree, handle.node, handle.fd, off, size) as fits:
            if fits < size and not bounded.may_be_cut(off):
                raise bounded.exceeded()
            return await self._write(handle, off, memoryview(buf)[:fits])

    async def _write(self, handle: FileHandle, off: int, buf: bytes | memoryview) -> int:
        if len(buf) > INLINE_WRITE_BYTES or handle.slow_until_ns:
            return await self._write_in_thread(handle, off, buf)
        began_ns = time.monotonic_ns()
        done = _write_all(handle.fd, buf, off)
        if time.monotonic_ns() - began_ns > SLOW_WRITE_NS:
            handle.slow_until_ns = began_ns + SLOW_FOR_NS
        return done

    async def _write_in_thread(self, handle: FileHandle, off: int, buf: bytes | memoryview) -> int:
        if handle.slow_until_ns < time.monotonic_ns():
            handle.slow_until_ns = 0
        usage = handle.node.tree.usage
        usage.opened(handle.node)
        try:
            return await blocking(self.threads.file_io, _write_all, handle.fd, buf, off)
        finally:
            usage.closed(handle.node)

    @answering
    async def flush(self, fh: int) -> None:
        """Never asked for again: a close needs no round trip, since writes are not held back."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    @answering
    async def fsync(self, fh: int, datasync: bool) -> None:
        sync = os.fdatasync if datasync else os.fsync
        await blocking(self.threads.file_io, sync, self.files.get(fh).fd)

    @answering
    async def release(self, fh: int) -> None:
        handle = self.files.pop(fh)
        if handle is None:
            return
        try:
            if handle.writable and not handle.node.names():
                await blocking(self.threads.file_io, os.close, handle.fd)  # frees the file's blocks
            else:
                os.close(handle.fd)
        finally:
            if handle.writable:
                handle.node.tree.usage.closed(handle.node)
            self.forest.released(handle.shown, handle.node.ino)

    def maybe_mapped(self, shown: Shown) -> Collection[int]:
        """Return the nodes of a tree that may have a shared writable mapping."""
        return {it.node.ino for it in self.files if it.writable and it.shown is shown}

    def opened_past(self, shown: Shown, node: Node, fd: int, pid: int) -> tuple[int, int, int]:
        """Count an open for writing that is answered past pyfuse3; return its handle's number, and
        the flags and backing id of the reply. Owns `fd` once it returns."""
        info = self._opened(shown, node, fd, writable=True, pid=pid)
        return info.fh, OpenFlags.KEEP_CACHE, 0

    def _opened(
        self, shown: Shown, node: Node, fd: int, *, writable: bool, pid: int
    ) -> pyfuse3.FileInfo:
        handle = FileHandle(shown, node, fd, writable=writable, lower=not node.up, pid=pid)
        shown.handles += 1
        if writable:
            node.tree.usage.opened(node)
        return pyfuse3.FileInfo(fh=self.files.add(handle), keep_cache=True)

    def _choose_reads(self, handle: FileHandle) -> None:
        """Read on where the data is in memory always; where it is not, use threads."""
        device = os.fstat(handle.fd).st_dev
        if device not in self._in_memory:
            self._in_memory[device] = mounts.is_in_memory(device)
        handle.read_flags = 0
        handle.slow = not self._in_memory[device]

    async def truncate(self, tree: Tree, node: Node, size_bytes: int) -> None:
        """Cut a big file in a thread; small ones are left to the caller."""
        if not stat.S_ISREG(node.type) or tree.getattr(node).size < INLINE_TRUNCATE_BYTES:
            return
        fd = tree.open(node, os.O_WRONLY)
        try:
            await blocking(self.threads.file_io, os.ftruncate, fd, size_bytes)
        finally:
            os.close(fd)

    def _check_set_id(self, tree: Tree, handle: FileHandle, *, truncated: bool) -> None:
        handle.set_id = privileges.loses_set_id(os.fstat(handle.fd).st_mode)
        if handle.set_id and truncated:
            self._drop_set_id(tree, handle)

    def _drop_set_id(self, tree: Tree, handle: FileHandle) -> None:
        """Take set-id bits from a file that an unprivileged process changes; tell the kernel."""
        mode = os.fstat(handle.fd).st_mode
        if not privileges.loses_set_id(mode):
            handle.set_id = False
        elif not privileges.keeps_set_id(handle.pid):
            tree.setattr(handle.node, SetAttr(mode=privileges.without_set_id(mode)), handle.fd)
            handle.set_id = False
            pyfuse3.invalidate_inode(handle.node.ino, attr_only=True)


def _write_all(fd: int, buf: bytes | memoryview, off: int) -> int:
    """Write everything, or what fits before an error; raises when nothing was written."""
    done = os.pwrite(fd, buf, off)
    while done < len(buf):
        try:
            done += os.pwrite(fd, memoryview(buf)[done:], off + done)
        except OSError:
            return done
    return done
