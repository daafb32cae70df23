"""Backing ids: which file the kernel reads and writes by itself, for each node that is open.

The kernel lets one node be open in one way at a time: with one backing id, or through its page
cache. Anything else is EIO to the user. So there is one counted entry for each node id, made at the
first open and kept until the last release; who opens in between gets the same. An entry that is not
open any more is kept for the next open (`IDLE_KEPT` of them), unless its file lost its last name.

The entries are records of the connection's journal (opened.c), which the fast lane counts in too:
there is no other count. What is said of one here holds until the loop's next turn.

INVARIANT: every entry is in the journal with its present counts before the kernel is told of the
open, so that a later worker goes on with it; a new id for a node that is still open would be EIO.
INVARIANT: the file behind a LOWER id was opened through a read-only mount (overlay.is_sealed), so
the kernel refuses to open it again for writing; and no LOWER entry is entered for writing here.
INVARIANT: an entry is on offer (`offer`) while any open for reading would be answered with its id,
and the id is worth keeping. Whoever ends that calls `withdraw` in the same step of the loop.

An id holds its file; nobody needs a descriptor. Everything runs on trio's thread but `close_id`.
"""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import structlog

from snapfs.fuse import channel
from snapfs.fuse.handover import Connection
from snapfs.overlay import identity, is_sealed

if TYPE_CHECKING:
    from snapfs.fuse._channel import Opened

IDLE_KEPT = 8192
"""More than the files of a usual image. One costs the kernel about half a KiB, and holds the inode
of its file in memory, which containers of one image share."""

_TREE_BITS = ~identity.LOW_MASK & ~channel.INCARNATION & (1 << 64) - 1
"""What the numbers of a tree's nodes have in common with its root's."""

log = structlog.get_logger(__name__)


def ids_of(connection: Connection) -> BackingIds | None:
    """Return the ids of a mount, with those of an earlier worker; None without the channel."""
    return BackingIds(connection.fd, connection.journal) if channel.loaded() else None


class Kind(enum.IntEnum):
    """How a node is open."""

    LOWER = 1
    """Backed by a file of a committed layer: for reading only."""
    UPPER = 2
    """Backed by a file of the snapshot's own layer."""
    CACHED = 3
    """Through the kernel's page cache and us; no backing id."""


class Entry(NamedTuple):
    """One node id that is open, or whose id is kept for the next open."""

    nodeid: int
    kind: int
    backing_id: int
    """0 for CACHED."""
    device: int
    ino: int
    """st_dev and st_ino of the file behind the id, which cannot become another's meanwhile."""
    opens: int
    writers: int
    """Those of `opens` that may write."""
    inherited: bool
    """Made by an earlier worker, and not closed since."""


class BackingIds:
    """The entries of one connection. Needs the channel's library."""

    def __init__(
        self,
        fd: int,
        journal: int,
        *,
        idle_kept: int = IDLE_KEPT,
        number: Callable[[], int] = channel.unique,
    ) -> None:
        """`fd` is a descriptor of the connection, `journal` its memfd; they stay the caller's.
        `number` returns that of the present request: one that is sent again is not counted again.
        """
        self._fd = fd
        self._number = number
        self.opened: Opened = channel.required().Opened(journal, idle_kept)

    def __len__(self) -> int:
        """Number of entries, idle ones too."""
        return len(self.opened)

    def get(self, nodeid: int) -> Entry | None:
        """Return the entry of a node that is open, however it is."""
        entry = self._find(nodeid)
        return entry if entry is not None and entry.opens else None

    def _find(self, nodeid: int) -> Entry | None:
        found = self.opened.find(nodeid)
        return None if found is None else Entry._make(found)

    def is_inherited(self, nodeid: int) -> bool:
        """Whether opens that only an earlier worker knew of may be among a node's."""
        entry = self.get(nodeid)
        return entry is not None and entry.inherited

    def writers(self, tree: int) -> list[Entry]:
        """Return the entries of a tree through which the kernel may write without us.

        The tree is named by the number of its root.
        """
        return [it for it in self._of(tree, written=True) if it.kind == Kind.UPPER]

    def cached_writers(self, tree: int) -> list[Entry]:
        """Return the entries of a tree through which writes come to us, from the kernel's cache."""
        return [it for it in self._of(tree, written=True) if it.kind == Kind.CACHED]

    def writers_of(self, nodeid: int) -> list[int] | None:
        """Return the processes that opened a node for writing; None when not all are known."""
        return self.opened.writers_of(nodeid)

    def enter(
        self,
        nodeid: int,
        kind: Kind,
        open_file: Callable[[], int],
        *,
        writing: bool,
        pid: int = 0,
    ) -> Entry:
        """Count an open of a node; `open_file` gives a descriptor when an id has to be made.

        Raises OSError: what BACKING_OPEN says, or EPERM for an open that must never be.
        """
        if kind is Kind.LOWER and writing:
            raise OSError(errno.EPERM, "a file of a committed layer is never opened for writing")
        entry = self._find(nodeid)
        if entry is not None and not entry.opens and entry.kind != kind:
            self.discard(nodeid)
            entry = None
        if entry is not None and entry.inherited and not _is_file_of(entry, open_file):
            if entry.opens:
                raise OSError(errno.ESTALE, "an earlier worker had another file open as this node")
            self.discard(nodeid)
            entry = None
        if entry is None:
            self._make(nodeid, kind, open_file)
        elif entry.kind != kind:
            raise OSError(
                errno.EBUSY, f"node {nodeid} is open as {Kind(entry.kind).name}, not {kind.name}"
            )
        self.opened.enter(nodeid, writing, pid, self._number())
        return Entry._make(self.opened.find(nodeid))  # type: ignore[arg-type]  # it is there

    def enter_again(self, nodeid: int) -> Entry:
        """Count another open for reading of a node that is open, whatever file it has now."""
        self.opened.enter(nodeid, False, 0, self._number())
        return Entry._make(self.opened.find(nodeid))  # type: ignore[arg-type]  # it is there

    def leave(self, nodeid: int, *, writing: bool, keep: bool) -> int:
        """Count a release; return the id that is to be closed with `close_id` now, or 0.

        `keep` keeps an id without opens for the next one.
        """
        entry = self.get(nodeid)
        if entry is None:
            return 0  # an earlier worker's, and forgotten since
        if not self.opened.leave(nodeid, writing, self._number()) or entry.opens > 1:
            return 0
        if not keep or entry.kind == Kind.CACHED:
            return self.opened.remove(nodeid)
        going = self.opened.keep(nodeid)
        if going is not None:
            self.close_id(self.opened.remove(going))
        return 0

    def try_out(self, fd: int) -> None:
        """Have the kernel take a file, and give it back; OSError says why it does not."""
        self.close_id(channel.backing_open(self._fd, fd))

    def offer(self, nodeid: int) -> None:
        """Let opens for reading be answered with a node's id in the fast lane, and keep the id."""
        self.opened.offer(nodeid)

    def withdraw(self, nodeid: int) -> None:
        """Answer opens of a node there no more, and do not keep its id for others."""
        self.opened.withdraw(nodeid)

    def discard(self, nodeid: int) -> None:
        """Let go of a node's file, at once if the node is not open."""
        self.withdraw(nodeid)
        entry = self._find(nodeid)
        if entry is not None and not entry.opens:
            self.close_id(self.opened.remove(nodeid))

    def forgotten(self, nodeid: int) -> None:
        """The kernel let go of a node: nothing can be open any more."""
        if self._find(nodeid) is not None:
            self.close_id(self.opened.remove(nodeid))

    def discard_all(self, tree: int) -> None:
        """Let go of the files of a tree's nodes, of those that are not open at once.

        The tree is named by the number of its root.
        """
        for entry in self._of(tree):
            self.discard(entry.nodeid)

    def close_id(self, backing_id: int) -> None:
        """Close an id, which frees a removed file's blocks: may take long; safe in any thread."""
        if not backing_id:
            return
        try:
            channel.backing_close(self._fd, backing_id)
        except OSError as error:  # the kernel knows no such id: nothing is held
            log.error("backing.close_failed", backing_id=backing_id, error=str(error))

    def _of(self, tree: int, *, written: bool = False) -> Iterator[Entry]:
        return map(Entry._make, self.opened.all(_TREE_BITS, tree & _TREE_BITS, written))

    def _make(self, nodeid: int, kind: Kind, open_file: Callable[[], int]) -> None:
        if kind is Kind.CACHED:
            self.opened.add(nodeid, kind, 0, 0, 0)
            return
        fd = open_file()
        if kind is Kind.LOWER and not is_sealed(fd):
            raise OSError(errno.EOPNOTSUPP, "this layer has no read-only mount of its own")
        found = os.fstat(fd)
        backing_id = channel.backing_open(self._fd, fd)
        self.opened.add(nodeid, kind, backing_id, found.st_dev, found.st_ino)


def _is_file_of(entry: Entry, open_file: Callable[[], int]) -> bool:
    """Whether an id that was found is of the file that the node has now."""
    if entry.kind == Kind.CACHED:
        return True
    found = os.fstat(open_file())
    return (found.st_dev, found.st_ino) == (entry.device, entry.ino)
