"""The handlers that pyfuse3 calls: translate a request, ask the tree, translate the answer.

No rules live here: what a merged tree is, is in snapfs.overlay. What is here is the order of things
around it: a change passes the tree's gate, copies in a thread what it needs, then happens in one
step on the loop. Lookup counts go up exactly when a reply hands a node to the kernel.

What pyfuse3 has no words for is answered past it (extras.py).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pyfuse3
import structlog

from snapfs.fuse import attributes, extras, labels, privileges, replays, setid
from snapfs.fuse.answering import answering, recovering
from snapfs.fuse.attributes import View
from snapfs.fuse.channel import Body, RawHandler, Request
from snapfs.fuse.directories import is_dot, listed
from snapfs.fuse.files import FileHandlers
from snapfs.fuse.hot import PASSING
from snapfs.fuse.inflight import InFlight
from snapfs.fuse.threads import blocking
from snapfs.fuse.trees import Forest, Shown, StaleNode
from snapfs.overlay import Dir, Listed, Node, SetAttr, Tree, acl

log = structlog.get_logger(__name__)

_NOTHING = SetAttr()
"""What the kernel asks for before it writes a file itself that has set-id bits (setid.py); anybody
may ask for it, too: a chown of neither owner nor group, which does nothing."""


class OverlayOperations(FileHandlers):
    """Handlers for names and attributes, added to those for contents."""

    def __init__(
        self,
        forest: Forest,
        view: View,
        *,
        redirects: bool = True,
        inflight: InFlight | None = None,
    ) -> None:
        super().__init__(forest, view, redirects=redirects, inflight=inflight)
        self.raw.update(extras.handlers(self))
        self.raw = {code: self._finding(handler) for code, handler in self.raw.items()}

    @answering
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        shown, parent = self.forest.find(parent_inode)
        try:
            node = shown.tree.lookup(parent, name)
        except FileNotFoundError:
            if shown.caches_absence:
                return self.view.absent()
            raise
        return self._known(shown, node)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, count in inode_list:
            try:
                self.forgot(ino, count)
            except Exception:
                log.exception("fuse.forget_failed", inode=ino, count=count)

    @answering
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        shown, node = self.forest.find(inode)
        self.place(shown, node)
        return self.entry(shown, node)

    @answering
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        shown, node = self.forest.find(inode)
        wanted = self.view.wanted(attr, fields)
        if wanted == _NOTHING and not self.passing.is_written(node):
            return self.entry(shown, node)
        tree = await shown.begin()
        try:
            if wanted.size is None:
                await self.copy_ups.ensure_attributes(shown, tree, node)
                if wanted == _NOTHING:
                    wanted = setid.before_write(tree.getattr(node), ctx.pid)
            else:
                await self.copy_ups.ensure(shown, tree, node, data=wanted.size != 0)
                wanted = self._kill_set_id(tree, node, wanted, ctx)
                await self.truncate(tree, node, wanted.size or 0)
            if node in self.set_id_watch:
                self._look_at_set_id(node)
            with self._cutting(tree, node, wanted, fh) as fd:
                tree.setattr(node, wanted, fd)
            self._note_mode(node, wanted)
            if self.passing.is_written(node):
                self.set_id_watch.begin(tree, node, self.passing.writers_of(node))
            return self.entry(shown, node)
        finally:
            shown.end()

    @answering
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        shown, node = self.forest.find(inode)
        return shown.tree.readlink(node)

    @answering
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        shown, parent = self.forest.find(parent_inode)
        uid, gid = self.view.caller(ctx)
        tree = await shown.begin_new()
        try:
            with self.once() as once:
                node = replays.made(once, tree, parent, name) or tree.mknod(
                    parent, name, mode, rdev, uid=uid, gid=gid, umask=ctx.umask
                )
            return self._known(shown, node)
        finally:
            shown.end()

    @answering
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        shown, parent = self.forest.find(parent_inode)
        uid, gid = self.view.caller(ctx)
        tree = await shown.begin_new()
        try:
            with self.once() as once:
                node = replays.made(once, tree, parent, name) or tree.mkdir(
                    parent, name, mode, uid=uid, gid=gid, umask=ctx.umask
                )
            return self._known(shown, node)
        finally:
            shown.end()

    @answering
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        shown, parent = self.forest.find(parent_inode)
        uid, gid = self.view.caller(ctx)
        tree = await shown.begin_new()
        try:
            with self.once() as once:
                node = replays.made(once, tree, parent, name) or tree.symlink(
                    parent, name, target, uid=uid, gid=gid
                )
            return self._known(shown, node)
        finally:
            shown.end()

    @answering
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        shown, node = self.forest.find(inode)
        to, new_parent = self.forest.find(new_parent_inode)
        _same_tree(shown, to)
        tree = await shown.begin_new()
        try:
            await self.copy_ups.ensure(shown, tree, node)
            with self.once() as once:
                if replays.made(once, tree, new_parent, new_name) is None:
                    tree.link(node, new_parent, new_name)
            return self._known(shown, node)
        finally:
            shown.end()

    @answering
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        shown, parent = self.forest.find(parent_inode)
        tree = await shown.begin_removal(parent, name)
        try:
            with self.once() as once:
                if replays.removed(once, tree, parent, name):
                    return
                node = tree.lookup(parent, name)
                await self.copy_ups.settled(shown, node)
                tree.unlink(parent, name)
                self.passing.unlinked(node)
                self.place(shown, parent)
        finally:
            shown.end()

    @answering
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        shown, parent = self.forest.find(parent_inode)
        tree = await shown.begin_removal(parent, name)
        try:
            with self.once() as once:
                if not replays.removed(once, tree, parent, name):
                    tree.rmdir(parent, name)
                    self.place(shown, parent)
        finally:
            shown.end()

    @answering
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        shown, parent = self.forest.find(parent_inode_old)
        to, new_parent = self.forest.find(parent_inode_new)
        _same_tree(shown, to)
        tree = await shown.begin_without(parent, name_old)
        try:
            old, new = (parent, name_old), (new_parent, name_new)
            uid, gid = self.view.caller(ctx)
            with self.once() as once:
                if replays.moved(once, tree, old, new, flags):
                    replays.finish_move(tree, old, flags, uid=uid, gid=gid)
                    return
                await self._prepare_move(shown, tree, tree.lookup(*old))
                target = _lookup_or_none(tree, *new)
                if target is not None:
                    await self._prepare_target(shown, tree, target, flags)
                tree.rename(*old, *new, flags, uid=uid, gid=gid)
                if target is not None:
                    self.passing.unlinked(target)
        finally:
            shown.end()

    @answering
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        self.forest.find(inode)
        return inode  # a handle that the next worker knows, too

    @answering
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        shown, node = self.forest.find(fh)
        for entry in listed(shown.tree, node, start_id):
            if not self._list(shown, node, entry, token):
                return

    @answering
    async def releasedir(self, fh: int) -> None:
        """Nothing is held for who lists."""

    @answering
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        _, node = self.forest.find(fh)
        if not node.up:
            return  # committed layers are durable already
        at, path = node.tree.where(node)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)
        try:
            await blocking(self.threads.file_io, os.fsync, fd)
        finally:
            os.close(fd)

    @answering
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        return attributes.statvfs(await blocking(self.threads.file_io, self.forest.statfs))

    @answering
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        shown, node = self.forest.find(inode)
        try:
            return shown.tree.getxattr(node, name)
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
            number = labels.absence(name)
            raise OSError(number, os.strerror(number)) from None

    @answering
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        shown, node = self.forest.find(inode)
        names = shown.tree.listxattr(node)
        if any(map(_is_trusted, names)) and not privileges.sees_trusted(ctx.uid, ctx.pid):
            return [name for name in names if not _is_trusted(name)]
        return names

    @answering
    async def setxattr(
        self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext
    ) -> None:
        await self.set_attribute(inode, name, value, 0, uid=ctx.uid, pid=ctx.pid)

    async def set_attribute(
        self, inode: int, name: bytes, value: bytes, flags: int, *, uid: int, pid: int
    ) -> None:
        """Set an extended attribute (flags: os.XATTR_CREATE, os.XATTR_REPLACE)."""
        shown, node = self.forest.find(inode)
        tree = await shown.begin()
        try:
            await self.copy_ups.ensure_attributes(shown, tree, node)
            with self.once() as once:
                if not replays.attribute_set(once, tree, node, name, flags):
                    tree.setxattr(node, name, value, flags)
                    if name == acl.ACCESS:
                        self._kill_set_group(tree, node, uid, pid)
            self.place(shown, node)
        finally:
            shown.end()

    @answering
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        shown, node = self.forest.find(inode)
        tree = await shown.begin()
        try:
            if not node.is_above:
                tree.getxattr(node, name)  # for what is not there nothing is copied up
            await self.copy_ups.ensure_attributes(shown, tree, node)
            with self.once() as once:
                if not replays.attribute_removed(once, tree, node, name):
                    tree.removexattr(node, name)
        finally:
            shown.end()

    def _finding(self, handler: RawHandler) -> RawHandler:
        """Let a handler find nodes again that only an earlier worker knew, as `answering` does."""

        async def answer(request: Request) -> Body | None:
            try:
                return await handler(request)
            except StaleNode as error:
                return await recovering(self.recover, error, lambda: handler(request))

        return answer

    def _known(self, shown: Shown, node: Node) -> pyfuse3.EntryAttributes:
        """Return the reply that hands a node to the kernel, and count it."""
        entry = self.entry(shown, node)
        self.forest.remember(node)
        self.place(shown, node)
        return entry

    def _list(
        self, shown: Shown, directory: Node, entry: Listed, token: pyfuse3.ReaddirToken
    ) -> bool:
        """Add one entry to a listing; False when the reply is full. What is gone is left out."""
        if is_dot(entry):
            return bool(pyfuse3.readdir_reply(token, entry.name, _dot(entry), entry.place))
        try:
            node = shown.tree.lookup(directory, entry.name)
            reply = self.entry(shown, node)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                return True
            raise
        if not pyfuse3.readdir_reply(token, entry.name, reply, entry.place):
            return False
        self.forest.remember(node)
        return True

    def _kill_set_id(
        self, tree: Tree, node: Node, wanted: SetAttr, ctx: pyfuse3.RequestContext
    ) -> SetAttr:
        """Make a truncation take set-id bits when the caller has no right to keep them."""
        found = tree.getattr(node)
        if wanted.mode is not None or not privileges.has_set_id(found.mode):
            return wanted
        left = privileges.left_by_write(found.mode, found.gid, ctx.pid)
        if left == stat.S_IMODE(found.mode):
            return wanted
        return replace(wanted, mode=left)

    def _kill_set_group(self, tree: Tree, node: Node, uid: int, pid: int) -> None:
        """Make an ACL take the set-group bit when it is set by somebody outside the group."""
        found = tree.getattr(node)
        keeps = privileges.keeps_set_group(uid, pid, found.gid)
        if found.mode & stat.S_ISGID and not keeps:
            tree.setattr(node, SetAttr(mode=stat.S_IMODE(found.mode) & ~stat.S_ISGID))

    def _note_mode(self, node: Node, wanted: SetAttr) -> None:
        """Let open files know that a write may have to take set-id bits away."""
        if wanted.mode is not None and wanted.mode & (stat.S_ISUID | stat.S_ISGID):
            for handle in self.files.of_node(node.ino):
                handle.set_id = True

    @contextmanager
    def _cutting(
        self, tree: Tree, node: Node, wanted: SetAttr, fh: int | None
    ) -> Iterator[int | None]:
        """Lend a descriptor for a truncation by a handle; None where there is no such thing, as for
        one of an earlier worker, whose file is found by its node."""
        handle = None if fh is None or wanted.size is None else self.files.find(fh)
        if handle is not None and handle.writable:
            yield handle.fd
        elif fh == PASSING and wanted.size is not None:
            fd = tree.open_real(node, os.O_WRONLY)
            try:
                yield fd
            finally:
                os.close(fd)
        else:
            yield None

    async def _prepare_move(self, shown: Shown, tree: Tree, node: Node) -> None:
        """Copy up what a rename moves; a directory waits for copies below it, whose paths it
        changes."""
        if isinstance(node, Dir):
            if node.stack and not self.redirects:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            await self.copy_ups.settled(shown)
        else:
            await self.copy_ups.ensure(shown, tree, node)

    async def _prepare_target(self, shown: Shown, tree: Tree, node: Node, flags: int) -> None:
        if flags & pyfuse3.RENAME_EXCHANGE:
            await self._prepare_move(shown, tree, node)
        else:
            await self.copy_ups.settled(shown, node)


def _same_tree(one: Shown, other: Shown) -> None:
    if one is not other:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


def _lookup_or_none(tree: Tree, parent: Node, name: bytes) -> Node | None:
    try:
        return tree.lookup(parent, name)
    except FileNotFoundError:
        return None


def _dot(entry: Listed) -> pyfuse3.EntryAttributes:
    reply = pyfuse3.EntryAttributes()
    reply.st_mode = entry.type
    reply.st_ino = entry.ino
    return reply


def _is_trusted(name: bytes) -> bool:
    return name.startswith(b"trusted.")
