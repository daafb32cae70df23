"""Handlers for the contents of files: open, create, read, write, sync, release.

Reads are tried without waiting, on the loop, and go to a thread when the data is not in memory.
Writes go to a thread when they are big, or when one to the same file was slow a moment ago (the
kernel makes writers wait while it writes back).
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import time
from collections.abc import Collection
from contextlib import suppress
from typing import cast

import pyfuse3

from snapfs.fuse import bounded, channel, mounts, privileges, replays, setid
from snapfs.fuse.answering import answering
from snapfs.fuse.attributes import View
from snapfs.fuse.channel import Opcode, OpenFlags, Request
from snapfs.fuse.copyup import CopyUps
from snapfs.fuse.directories import Directories
from snapfs.fuse.handles import FileHandle, Handles
from snapfs.fuse.handover import MAX_WRITE_BYTES
from snapfs.fuse.hot import PASSING, Happening, What
from snapfs.fuse.incarnations import number_of
from snapfs.fuse.inflight import IN_DOUBT, InFlight, Noting
from snapfs.fuse.inherited import InheritedRequests
from snapfs.fuse.lending import read_all
from snapfs.fuse.passing import Passing
from snapfs.fuse.places import Places
from snapfs.fuse.recovery import Recovery
from snapfs.fuse.refusing import RefusedPages
from snapfs.fuse.session import Operations
from snapfs.fuse.setid import SetIdWatch
from snapfs.fuse.threads import Threads, blocking
from snapfs.fuse.trees import Forest, Shown
from snapfs.overlay import Node, Tree, identity
from snapfs.overlay.usage import Before

INLINE_WRITE_BYTES = 128 * 1024
SLOW_WRITE_NS = 5_000_000
SLOW_FOR_NS = 1_000_000_000
INLINE_TRUNCATE_BYTES = 16 << 20
_RELEASE_IN = struct.Struct("<QIIQ")
_FSYNC_IN = struct.Struct("<QII")
_DATA_ONLY = 1 << 0
"""FUSE_FSYNC_FDATASYNC."""
_KEPT_FLAGS = os.O_ACCMODE | os.O_TRUNC | os.O_SYNC | os.O_DSYNC | os.O_NOATIME | os.O_APPEND
"""Flags of an open that mean something to a tree. The kernel resolves O_APPEND and O_DIRECT."""


class FileHandlers(Operations):
    """State that all handlers share, and those for what is in files."""

    def __init__(
        self,
        forest: Forest,
        view: View,
        *,
        redirects: bool = True,
        inflight: InFlight | None = None,
    ) -> None:
        """`inflight` takes notes for the next worker, if there can be one."""
        super().__init__()
        self._inflight = inflight
        self.forest = forest
        self.view = view
        self.redirects = redirects
        """Directories of lower layers may be renamed."""
        self.threads = Threads()
        self.files = Handles()
        self.passing = Passing(forest, self.hot)
        self.set_id_watch = SetIdWatch()
        self.refused_pages = RefusedPages(self.threads.notify)
        self._recovery = Recovery(forest)
        self.copy_ups = CopyUps(self.files, self.threads, self._copied)
        self.raw.update(InheritedRequests(self).handlers())
        self.raw[Opcode.RELEASE] = self._release_node
        self.raw[Opcode.FSYNC] = self._sync_node
        self.names = Directories(
            *(forest, view, self.threads, self.present, self.place),
            self.passing.reopening.looked_up,
        )
        self.places = Places(self.hot, forest, self.names.desk)
        forest.recalled = self.place
        ids = self.passing.ids
        record = None if inflight is None else inflight.of_fast_lane
        self.hot.passes(None if ids is None else ids.opened, self._heard, record)
        self.raw.update(self.names.handlers())
        self._in_memory: dict[int, bool] = {}
        self._buffer = memoryview(bytearray(MAX_WRITE_BYTES))
        """Of reads on the loop: the reply is sent before anything else runs."""

    async def recover(self, ino: int) -> bool:
        return await self._recovery.recover(ino)

    def once(self) -> Noting:
        """Return what there is to note of the present request, which must not happen twice."""
        return Noting(None, 0) if self._inflight is None else self._inflight.request()

    @answering
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        shown, node = self.forest.find(inode)
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        if not writable and not flags & os.O_TRUNC:
            if node.metacopy and self.passing.would_pin(inode):
                await self._complete(shown, node)
            self.passing.admit_reader(inode, node, ctx.pid, flags)
            return self._opened(
                FileHandle(shown, node, inode, flags=flags & _KEPT_FLAGS, pid=ctx.pid)
            )
        tree = await shown.begin()
        try:
            await self.copy_ups.ensure(shown, tree, node, data=not flags & os.O_TRUNC)
            if flags & os.O_SYNC == os.O_DSYNC:
                await self._keep_name(tree, node)
            self.passing.admit(inode, node)
            fd = self._open_once(tree, node, flags & _KEPT_FLAGS)
            handle = FileHandle(shown, node, inode, flags=0, fd=fd, writable=writable, pid=ctx.pid)
            try:
                self._check_grows(tree, handle, flags)
                self._check_set_id(tree, handle, truncated=bool(flags & os.O_TRUNC))
            except OSError:
                handle.close()
                raise
            return self._opened(handle)
        finally:
            shown.end()

    async def _complete(self, shown: Shown, node: Node) -> None:
        """Give a metadata-only copy its data, as far as there is room for it: who reads it would go
        on with the lower file, whatever others write later."""
        with suppress(OSError):
            tree = await shown.begin()
            try:
                await self.copy_ups.ensure(shown, tree, node)
            finally:
                shown.end()

    def _check_grows(self, tree: Tree, handle: FileHandle, flags: int) -> None:
        """Let an append-only file be appended to, and not be mapped: the kernel would map the
        backing file, past us, and who reads and writes may change any of it there."""
        handle.only_grows = handle.writable and tree.only_grows(handle.node)
        if handle.only_grows and flags & os.O_ACCMODE == os.O_RDWR and self.passing.ids is not None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def _open_once(self, tree: Tree, node: Node, flags: int) -> int:
        """Open a file; what is to be emptied by that is so once."""
        if not flags & os.O_TRUNC:
            return tree.open(node, flags)
        with self.once() as once:
            if once.earlier is not None and once.earlier is not IN_DOUBT:
                return tree.open(node, flags & ~os.O_TRUNC)
            fd = tree.open(node, flags)
            once.did(node.ino)
            return fd

    @answering
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        shown, parent = self.forest.find(parent_inode)
        uid, gid = self.view.caller(ctx)
        tree = await shown.begin_new()
        try:
            with self.once() as once:
                found = replays.made(once, tree, parent, name)
                if found is None:
                    node, fd = tree.create(
                        parent, name, mode, flags & _KEPT_FLAGS, uid=uid, gid=gid, umask=ctx.umask
                    )
                else:
                    node, fd = found, tree.open(found, flags & _KEPT_FLAGS & ~os.O_TRUNC)
            handle = FileHandle(
                shown,
                node,
                self.forest.nodeid(node),
                flags=0,
                fd=fd,
                writable=flags & os.O_ACCMODE != os.O_RDONLY,
                pid=ctx.pid,
            )
            entry = self.view.entry(tree.getattr(node))
            handle.set_id = privileges.has_set_id(entry.st_mode)
            info = self._opened(handle)
            self.places.place(shown, node)
            if not self.passing.is_lasting(node):
                entry.attr_timeout = 0
        finally:
            shown.end()
        self.forest.remember(node)
        return info, entry

    @answering
    async def read(self, fh: int, off: int, size: int) -> bytes:
        handle = self.files.get(fh)
        if handle.slow:
            return await blocking(self.threads.file_io, read_all, handle.fd, size, off)
        target = self._buffer[:size]
        try:
            done = os.preadv(handle.fd, [target], off, handle.read_flags)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                self._choose_reads(handle)
            elif error.errno != errno.EAGAIN:
                raise
            return await blocking(self.threads.file_io, read_all, handle.fd, size, off)
        if done == size or off + done >= os.fstat(handle.fd).st_size:
            return target[:done]  # type: ignore[return-value]  # any buffer will do
        head = bytes(target[:done])  # the rest is not in memory; the buffer is not ours meanwhile
        rest = await blocking(self.threads.file_io, read_all, handle.fd, size - done, off + done)
        return head + rest

    @answering
    async def write(
        self, fh: int, off: int, buf: bytes | memoryview, *, is_whole: bool | None = None
    ) -> int:
        """`is_whole`: it is an error when not all can be written; None where that is not known."""
        handle = self.files.get(fh)
        shown = handle.shown
        tree = await shown.begin()
        try:
            if handle.set_id:
                self._drop_set_id(tree, handle)
            if tree.allowance.bounded:
                return await self._write_bounded(tree, handle, off, buf)
            tree.usage.note(handle.node)
            return await self._write(
                handle, off, buf, not bounded.may_be_cut(off) if is_whole is None else is_whole
            )
        finally:
            shown.end()

    async def _write_bounded(
        self, tree: Tree, handle: FileHandle, off: int, buf: bytes | memoryview
    ) -> int:
        """Write what the quota allows."""
        size = len(buf)
        async with bounded.admitted(handle.shown, tree, handle.node, handle.fd, off, size) as fits:
            is_whole = not bounded.may_be_cut(off)
            if fits < size and is_whole:
                raise bounded.exceeded()
            return await self._write(handle, off, memoryview(buf)[:fits], is_whole)

    async def _write(
        self, handle: FileHandle, off: int, buf: bytes | memoryview, is_whole: bool
    ) -> int:
        if len(buf) > INLINE_WRITE_BYTES or handle.slow_until_ns:
            return await self._write_in_thread(handle, off, buf, is_whole)
        began_ns = time.monotonic_ns()
        done = _write_all(handle.fd, buf, off, is_whole)
        if time.monotonic_ns() - began_ns > SLOW_WRITE_NS:
            handle.slow_until_ns = began_ns + SLOW_FOR_NS
        return done

    async def _write_in_thread(
        self, handle: FileHandle, off: int, buf: bytes | memoryview, is_whole: bool
    ) -> int:
        if handle.slow_until_ns < time.monotonic_ns():
            handle.slow_until_ns = 0
        usage = handle.node.tree.usage
        usage.opened(handle.node)
        try:
            return await blocking(self.threads.file_io, _write_all, handle.fd, buf, off, is_whole)
        finally:
            usage.closed(handle.node)

    @answering
    async def flush(self, fh: int) -> None:
        """Never asked for again: a close needs no round trip, since writes are not held back."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    @answering
    async def fsync(self, fh: int, datasync: bool) -> None:
        handle = self.files.get(fh)
        await self._sync(handle.node, handle.fd, datasync=datasync)

    async def _sync_node(self, request: Request) -> bytes:
        """As `fsync`, with the node: what an earlier worker opened is still being written."""
        fh, flags, _ = _FSYNC_IN.unpack_from(request.body)
        handle = self.files.find(fh)
        if handle is not None and not handle.node.metacopy:
            await self._sync(handle.node, handle.fd, datasync=bool(flags & _DATA_ONLY))
            return b""
        shown, node = self.forest.find(request.nodeid)
        if node.metacopy:  # with the marks on directories by which it is found
            await blocking(self.threads.file_io, self.forest.syncfs)
        elif node.up:  # committed layers are durable already
            fd = shown.tree.open(node, os.O_RDONLY)
            try:
                await self._sync(node, fd, datasync=bool(flags & _DATA_ONLY))
            finally:
                os.close(fd)
        return b""

    async def _keep_name(self, tree: Tree, node: Node) -> None:
        """Make a copy's name durable before the kernel writes the file past us, and syncs its data
        alone with each write."""
        if node.up and node.owes_name:
            fd = tree.open(node, os.O_RDONLY)
            try:
                await self._sync(node, fd, datasync=True)
            finally:
                os.close(fd)

    async def _sync(self, node: Node, fd: int, *, datasync: bool) -> None:
        was_up, whole = node.up, node.owes_name or not datasync
        await blocking(self.threads.file_io, os.fsync if whole else os.fdatasync, fd)
        if was_up and whole:
            node.synced = True

    @answering
    async def release(self, fh: int) -> None:
        handle = self.files.pop(fh)
        if handle is not None:
            await self._release(handle, Noting(None, 0))

    async def _release_node(self, request: Request) -> bytes:
        """As `release`, with the node: it is known of what an earlier worker opened too."""
        fh, flags, _, _ = _RELEASE_IN.unpack_from(request.body)
        handle = self.files.pop(fh)
        with self.once() as once:
            if handle is not None:
                await self._release(handle, once)
            elif once.earlier is None or once.earlier is IN_DOUBT:
                writing = flags & os.O_ACCMODE != os.O_RDONLY
                await self._left(request.nodeid, fh, once, writing=writing)
        return b""

    async def _left(self, nodeid: int, fh: int, once: Noting, *, writing: bool) -> None:
        """Release what is counted by its node, by this worker or an earlier one."""
        node = self._known_node(nodeid)
        is_ours = fh == PASSING and not self.passing.is_inherited(nodeid)
        backing_id = self.passing.left(nodeid, writing=writing)
        if writing and is_ours and node is not None:
            self._writer_left(node)
        if backing_id and node is not None and not node.names():  # this frees the file's blocks
            once.did()  # others are counted before this one is answered
            await blocking(self.threads.file_io, self.passing.close_id, backing_id)
        else:
            self.passing.close_id(backing_id)

    def _known_node(self, nodeid: int) -> Node | None:
        try:
            return self.forest.inodes.get(number_of(nodeid))
        except KeyError:
            return None

    def forgot(self, nodeid: int, lookups: int) -> None:
        """The kernel let go of so many references to a node."""
        self.forest.forget(nodeid, lookups)

    def ended(self, nodeid: int) -> None:
        """A file has gone with all references to its node."""

    def _heard(self, happening: Happening) -> None:
        """Note what the fast lane did with a file that counts."""
        if happening.what == What.MADE:
            self._take_in(happening)
            return
        if happening.what in (What.COPIED, What.LEFT_DATA):
            self._take_up(happening, has_data=happening.what == What.COPIED)
            return
        if happening.what == What.PASSED:
            _, parent = self.forest.find(happening.other)
            parent.tree.usage.passed(happening.ino)
            return
        if happening.what == What.CLOSED:
            self.passing.tell_writer_left()
        node = self._known_node(happening.nodeid)
        if happening.what == What.REMOVED:
            self._removed(node, happening)
        elif happening.what == What.FORGOTTEN:
            self.forgot(happening.nodeid, happening.forgotten)
        elif node is not None:
            self._heard_of(node, happening)

    def _heard_of(self, node: Node, happening: Happening) -> None:
        before = _before(happening)
        tree = cast(Tree, node.tree)
        if happening.what == What.OPENED:
            tree.usage.opened(node, native=True, before=before)
        elif happening.what == What.CLOSED:
            self._writer_left(node)
        elif happening.what == What.CHANGED:
            tree.note_change(node, before)
        elif happening.what == What.MOVED:
            _, parent = self.forest.find(happening.other)
            tree.take_over(parent, happening.name, node)
        elif happening.what == What.HIDDEN:
            _, parent = self.forest.find(happening.other)
            tree.take_away(parent, happening.name, node)
        else:
            _, parent = self.forest.find(happening.other)
            tree.take_further(parent, happening.name, node)
            self.forest.remember(node)

    def _removed(self, node: Node | None, removed: Happening) -> None:
        """Book that a name went, and that the kernel has forgotten the node since, if it has."""
        is_over = False
        try:
            is_over = node is not None and self._lost_name(node, removed)
        finally:
            if removed.forgotten and not is_over:
                self.forgot(removed.nodeid, removed.forgotten)

    def _lost_name(self, node: Node, removed: Happening) -> bool:
        """Strike a name out; whether the node went with it."""
        _, parent = self.forest.find(removed.other)
        before = _before(removed)
        if removed.forgotten and self.forest.end(
            parent, removed.name, node, before, removed.forgotten
        ):
            self.ended(removed.nodeid)
            return True
        cast(Tree, node.tree).take_out(parent, removed.name, node, before)
        return False

    def _take_in(self, made: Happening) -> None:
        """Make the node of what the kernel was given before there was one."""
        _, parent = self.forest.find(made.other)
        tree = cast(Tree, parent.tree)
        self.forest.remember(tree.take_in(parent, made.name, made.nodeid, made.kind, made.ino))

    def _copied(self, shown: Shown, node: Node) -> None:
        """A file was copied up by a handler: those beside it may be without one."""
        if node.up:
            self.passing.copied_up(node)
        self.place(shown, node)
        if node.parent is not None:
            self.place(shown, node.parent)

    def _take_up(self, copied: Happening, *, has_data: bool) -> None:
        """Make the node of a file that was copied up before there was one, or let that of a
        directory know."""
        shown, parent = self.forest.find(copied.other)
        tree = cast(Tree, parent.tree)
        of = (parent, copied.name, copied.nodeid, copied.kind, copied.ino)
        node = tree.take_up(*of, has_data=has_data)
        if node.is_dir:
            self.place(shown, node)
        else:
            self.copy_ups.done += 1

    def _writer_left(self, node: Node) -> None:
        if node in self.set_id_watch:
            self._look_at_set_id(node)
        node.tree.usage.closed(node)

    async def _release(self, handle: FileHandle, once: Noting) -> None:
        node = handle.node
        backing_id = self.passing.leave(handle)
        if node in self.set_id_watch:
            self._look_at_set_id(node)
        try:
            if handle.writable and not node.names():  # this frees the file's blocks
                once.did()  # others are counted before this one is answered
                await blocking(self.threads.file_io, self._close, handle, backing_id)
            else:
                self._close(handle, backing_id)
        finally:
            if handle.writable:
                node.tree.usage.closed(node)
            self.forest.released(handle.shown, node.ino)

    def maybe_mapped(self, root: int) -> Collection[int]:
        """Return the nodes of a tree whose pages a shared mapping may have changed.

        The tree is named by the number of its root; nobody may have looked at it yet.
        """
        key = root >> identity.LOW_BITS
        ours = (it.nodeid for it in self.files if it.writable and not it.native)
        found = {it for it in ours if number_of(it) >> identity.LOW_BITS == key}
        ids = self.passing.ids
        return found if ids is None else found | {it.nodeid for it in ids.cached_writers(root)}

    def written_files(self) -> set[tuple[int, int]]:
        """Return st_dev and st_ino of all files that are open for writing through us."""
        found = (os.fstat(it.fd) for it in self.files if it.writable and not it.native)
        return {(it.st_dev, it.st_ino) for it in found}

    def _close(self, handle: FileHandle, backing_id: int) -> None:
        handle.close()
        self.passing.close_id(backing_id)

    def entry(self, shown: Shown, node: Node) -> pyfuse3.EntryAttributes:
        """Return the reply that describes a node to the kernel."""
        nodeid, lasting = self.present(shown, node)
        entry = self.view.entry(shown.tree.getattr(node))
        entry.st_ino = nodeid
        if not lasting:
            entry.attr_timeout = 0
        return entry

    def present(self, shown: Shown, node: Node) -> tuple[int, bool]:
        """Return the number by which a reply names a node, and whether its attributes may be
        cached."""
        if node in self.set_id_watch:
            self._look_at_set_id(node)
        return self.forest.nodeid(node), self.passing.is_lasting(node)

    def place(self, shown: Shown, node: Node) -> None:
        """Let what is asked of a node next be answered without us, where that can be."""
        self.places.place(shown, node)

    @property
    def open_count(self) -> int:
        """Opens that were not released yet."""
        ids = self.passing.ids
        return len(self.files) if ids is None else ids.opened.total

    def opened_past(self, shown: Shown, node: Node, fd: int, pid: int) -> tuple[int, int, int]:
        """Count an open for writing that is answered past pyfuse3; return its handle's number, and
        the flags and backing id of the reply. Owns `fd` once it returns."""
        handle = FileHandle(
            shown, node, self.forest.nodeid(node), flags=0, fd=fd, writable=True, pid=pid
        )
        return self._enter(handle)

    def _opened(self, handle: FileHandle) -> pyfuse3.FileInfo:
        """Count an open, or close its handle; return what pyfuse3 replies."""
        is_done = False
        try:
            number, flags, backing_id = self._enter(handle)
            is_done = True
        finally:
            if not is_done:
                handle.close()
        if handle.native:
            channel.answer_open(number, flags, backing_id)
        return pyfuse3.FileInfo(fh=number, keep_cache=bool(flags & OpenFlags.KEEP_CACHE))

    def _enter(self, handle: FileHandle) -> tuple[int, OpenFlags, int]:
        """Decide how an open goes on, and count it; return number, flags and backing id."""
        flags, backing_id = self.passing.enter(handle)
        if not handle.native:
            self._open_or_leave(handle)
        elif handle.counted_by_node or not handle.writable:
            handle.close()  # what was needed to make an id
        if handle.writable:
            handle.node.tree.usage.opened(handle.node, native=handle.native)
        if handle.counted_by_node:
            return PASSING, flags, backing_id
        handle.shown.handles += 1
        return self.files.add(handle), flags, backing_id

    def _open_or_leave(self, handle: FileHandle) -> None:
        """Open what is read and written through us; what cannot be opened is not counted."""
        try:
            handle.open()
        except OSError:
            with channel.unnumbered():  # sent again, it is to be counted
                self.passing.close_id(self.passing.leave(handle))
            raise

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
        handle.set_id = privileges.has_set_id(os.fstat(handle.fd).st_mode)
        if handle.set_id and truncated:
            self._drop_set_id(tree, handle)

    def _look_at_set_id(self, node: Node) -> None:
        """Take set-id bits from a file that was written past us since it got them."""
        self.set_id_watch.check(cast(Tree, node.tree), node)
        if not self.passing.is_written(node):
            self.set_id_watch.end(node)

    def _drop_set_id(self, tree: Tree, handle: FileHandle) -> None:
        """Take set-id bits from a file that an unprivileged process changes; tell the kernel."""
        mode = os.fstat(handle.fd).st_mode
        handle.set_id = privileges.has_set_id(mode)
        if not handle.set_id:
            return
        left = privileges.left_by_write(mode, tree.getattr(handle.node).gid, handle.pid)
        setid.leave(tree, handle.node, handle.nodeid, mode, left, handle.fd)
        handle.set_id = privileges.has_set_id(stat.S_IFREG | left)


def _before(happening: Happening) -> Before:
    return Before(happening.ino, happening.blocks, happening.nlink)


def _write_all(fd: int, buf: bytes | memoryview, off: int, is_whole: bool) -> int:
    """Write everything, or what fits before an error; raises OSError when nothing was written.

    With `is_whole` any error raises: the kernel drops what is not written of a mapping's pages.
    """
    done = os.pwrite(fd, buf, off)
    while done < len(buf):
        try:
            done += os.pwrite(fd, memoryview(buf)[done:], off + done)
        except OSError:
            if is_whole:
                raise
            return done
    return done
