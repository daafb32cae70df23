"""How each open of a regular file goes: to the backing file, past us, or through us.

* A lower file is read through its own backing id, never written.
* An upper file is read and written through one id of its own.
* Writes that must be seen (set-id bits, a quota, an append-only file) come to us, while reads, exec
  and mappings of the same node go on natively: FOPEN_DIRECT_IO with FOPEN_PASSTHROUGH and the
  node's id.
* Where there is no id to be had, the node is open through the page cache, as without passthrough.

Whatever a node was opened as first holds until its last release (backing.py). An open that comes by
the number a file had before it was copied up, while readers of that are left, is told ESTALE: the
kernel then looks the name up again by itself and finds the second number (incarnations.py). One
that comes by no name goes on with the lower file, as those readers do (reopening.py).
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import pyfuse3
import structlog
import trio

from snapfs.fuse import channel
from snapfs.fuse.backing import BackingIds, Entry, Kind
from snapfs.fuse.channel import INCARNATION, OpenFlags
from snapfs.fuse.handles import FileHandle
from snapfs.fuse.hot import Hot
from snapfs.fuse.reopening import Reopening
from snapfs.fuse.trees import Forest
from snapfs.overlay import Node

_LACKS = {
    errno.ELOOP: "the root's file system is stacked itself (ELOOP), as overlays and snapshots are; "
    "put the root on a disk's file system",
    errno.EOPNOTSUPP: "lower layers have no read-only mount of their own",
}
"""What refusals say of more than one file, by their error."""

log = structlog.get_logger(__name__)


class Passing:
    """Decides and counts the opens of one session."""

    def __init__(self, forest: Forest, hot: Hot) -> None:
        self._forest = forest
        self._hot = hot
        self.ids: BackingIds | None = forest.backing
        self.reason = "" if self.ids is not None else "it was not asked for"
        """Why nothing is passed through; empty when it is."""
        self._lack = ""
        """Why files were not, for good, that could be as far as the mount goes."""
        self.reopening = Reopening(None if self.ids is None else self.ids.opened)
        self.writer_left = trio.Event()
        """Set, and replaced, whenever somebody closes a file that could be written."""

    @property
    def why_not(self) -> str:
        """Say why all files, or some, are not passed through; empty when all are."""
        return self.reason or self._lack

    def try_out(self, path: Path) -> None:
        """Learn whether the kernel passes files of a file system, by an existing one of it."""
        if self.ids is None:
            return
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.ids.try_out(fd)
        except OSError as error:
            self._note_refusal(error)
        finally:
            os.close(fd)

    def admit_reader(self, nodeid: int, node: Node, thread: int, flags: int) -> None:
        """As `admit`, but for an open that comes by no name: it reads what others read there."""
        if not self.reads_past_copy(nodeid, node):
            self.reopening.opened(thread)
        elif not self.reopening.is_past_names(thread, nodeid, flags):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def admit(self, nodeid: int, node: Node) -> None:
        """Refuse an open by the old number of a file whose lower one is still being read."""
        if self.reads_past_copy(nodeid, node):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def enter(self, handle: FileHandle) -> tuple[OpenFlags, int]:
        """Count an open; return the flags and the backing id of its reply.

        Raises OSError; the open has then not happened.
        """
        if self.ids is None or not handle.shown.is_merged:
            return OpenFlags.KEEP_CACHE, 0
        entry = self._entry(self.ids, handle)
        handle.native = entry.kind != Kind.CACHED
        if not handle.native:
            return OpenFlags.KEEP_CACHE if entry.opens > 1 else OpenFlags(0), 0
        flags = OpenFlags.PASSTHROUGH
        if handle.writable:
            if handle.set_id or handle.only_grows or not handle.shown.native_writes:
                flags |= OpenFlags.DIRECT_IO
            if handle.node.nlookup:  # else the kernel has nothing cached
                self._distrust_cached(handle.nodeid)
        if _is_lasting(handle, entry):
            self.ids.offer(handle.nodeid)
        # Of an earlier worker's, who opened what can be told by the handles only.
        handle.counted_by_node = not entry.inherited and OpenFlags.DIRECT_IO not in flags
        return flags, entry.backing_id

    def leave(self, handle: FileHandle) -> int:
        """Count a release; return the id that is to be closed with `BackingIds.close_id`, or 0."""
        if self.ids is None or not handle.shown.is_merged:
            return 0
        if handle.writable:
            self.tell_writer_left()
        keep = bool(handle.node.names()) and not handle.shown.dropped
        return self.ids.leave(handle.nodeid, writing=handle.writable, keep=keep)

    def left(self, nodeid: int, *, writing: bool) -> int:
        """Count a release of which only the node's number is known: of what is counted by node,
        or was opened by an earlier worker. Returns the id that is to be closed, or 0."""
        if self.ids is None:
            return 0
        if writing:
            self.tell_writer_left()
        try:
            shown, node = self._forest.find(nodeid)
            keep = bool(node.names()) and not shown.dropped
        except OSError:
            keep = False
        return self.ids.leave(nodeid, writing=writing, keep=keep)

    def tell_writer_left(self) -> None:
        """Let who waits for writers to leave look again."""
        self.writer_left.set()
        self.writer_left = trio.Event()

    def is_written(self, node: Node) -> bool:
        """Whether somebody may write to a file past us."""
        opened = None if self.ids is None else self.ids.get(self._forest.nodeid(node))
        return opened is not None and opened.kind == Kind.UPPER and opened.writers > 0

    def writers_of(self, node: Node) -> list[int] | None:
        """Return the processes that opened a file for writing past us; None: not all are known."""
        return [] if self.ids is None else self.ids.writers_of(self._forest.nodeid(node))

    def reads_past_copy(self, nodeid: int, node: Node) -> bool:
        """Whether the kernel reads the lower file by a number although the node has a copy now."""
        if self.ids is None or not node.up:
            return False
        opened = self.ids.get(nodeid)
        return opened is not None and opened.kind == Kind.LOWER

    def would_pin(self, nodeid: int) -> bool:
        """Whether who opens a lower file for reading goes on with that, past us."""
        if self.ids is None or self.why_not or not channel.loaded():
            return False
        opened = self.ids.get(nodeid)
        return opened is None or opened.kind == Kind.LOWER

    def is_inherited(self, nodeid: int) -> bool:
        """Whether opens that only an earlier worker knew of may be among a node's."""
        return self.ids is not None and self.ids.is_inherited(nodeid)

    def is_native(self, nodeid: int) -> bool:
        """Whether a node is open past us."""
        opened = None if self.ids is None else self.ids.get(nodeid)
        return opened is not None and opened.kind != Kind.CACHED

    def close_id(self, backing_id: int) -> None:
        """Close what `leave` returned; safe in any thread."""
        if self.ids is not None:
            self.ids.close_id(backing_id)

    def copied_up(self, node: Node) -> None:
        """The lower file has a copy now: forget what the kernel has cached of the old number."""
        if self.ids is None:
            return
        self.ids.discard(node.ino)
        if self._forest.nodeid(node) != node.ino:
            self._distrust_cached(node.ino)

    def unlinked(self, node: Node) -> None:
        """A name went; with the last one, let go of a file that nobody has open."""
        if self.ids is not None and not node.names():
            self.ids.discard(node.ino)
            self.ids.discard(node.ino | INCARNATION)

    def is_lasting(self, node: Node) -> bool:
        """Whether the kernel may keep a node's attributes.

        Mappings change a file's times and blocks with nobody told; of a file with two numbers the
        kernel has two sets.
        """
        return not (self.is_written(node) or self._forest.is_double(node))

    def writers(self, root: int) -> list[Entry]:
        """Return the nodes of a tree into which the kernel may write without us.

        The tree is named by its root's number: it may be one that this worker has not shown yet.
        """
        return [] if self.ids is None else self.ids.writers(root)

    def _entry(self, ids: BackingIds, handle: FileHandle) -> Entry:
        if self.reads_past_copy(handle.nodeid, handle.node):
            handle.lower = True
            entry = ids.enter_again(handle.nodeid)
            self.reopening.opened(handle.pid)
            return entry
        opened = ids.get(handle.nodeid)
        kind = Kind(opened.kind) if opened is not None else self._wish(handle)
        if kind is not Kind.CACHED:
            try:
                return self._count(ids, handle, kind)
            except OSError as error:
                if opened is not None:
                    raise
                self._note_refusal(error)
        return self._count(ids, handle, Kind.CACHED)

    def _count(self, ids: BackingIds, handle: FileHandle, kind: Kind) -> Entry:
        return ids.enter(handle.nodeid, kind, handle.open, writing=handle.writable, pid=handle.pid)

    def _wish(self, handle: FileHandle) -> Kind:
        if self.reason or not channel.loaded():
            return Kind.CACHED
        if not handle.node.up:
            return Kind.CACHED if _may_be_a_log(handle.node) else Kind.LOWER
        return Kind.UPPER if handle.shown.native_writes else Kind.CACHED

    def _note_refusal(self, error: OSError) -> None:
        """Ask no more where the kernel has said no for good; EPERM: it was not negotiated."""
        if error.errno == errno.EPERM:
            self.reason = "the kernel did not grant it to this mount"
            self._hot.allow_passing(on=False)
        lack = _LACKS.get(error.errno or 0, "")
        if not lack or lack != self._lack:
            log.info("fuse.not_passed_through", error=str(error), for_good=bool(self.reason))
        self._lack = lack or self._lack

    def _distrust_cached(self, nodeid: int) -> None:
        with contextlib.suppress(FileNotFoundError):  # the kernel has nothing cached
            pyfuse3.invalidate_inode(nodeid, attr_only=True)


def _may_be_a_log(node: Node) -> bool:
    """Whether a lower file may be one that is followed while it gets its next lines: who reads it
    through us sees these, and who reads it past us does not. One that is empty, and may get its
    first, is not worth the latter; else the name tells."""
    if node.tree.upper is None:
        return False
    path = node.tree.where(node)[1]
    is_named_so = path.endswith(b".log") or path.startswith(b"var/log/")
    return is_named_so or node.tree.getattr(node).size == 0


def _is_lasting(handle: FileHandle, entry: Entry) -> bool:
    """Whether the next open for reading is answered like this one, until that is withdrawn."""
    if handle.shown.dropped or not handle.node.names():
        return False
    return entry.kind == Kind.UPPER or not handle.node.is_above
