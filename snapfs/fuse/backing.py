"""Backing ids: which file the kernel reads and writes by itself, for each node that is open.

The kernel lets one node be open in one way at a time: with one backing id, or through its page
cache. Anything else is EIO to the user. So there is one counted entry for each node id, made at the
first open and kept until the last release; who opens in between gets the same. An entry that is not
open any more is kept for the next open (`IDLE_KEPT` of them), unless its file lost its last name.

INVARIANT: every entry is in the journal with its present counts before the kernel is told of the
open, so that a later worker goes on with it; a new id for a node that is still open would be EIO.
INVARIANT: the file behind a LOWER id was opened through a read-only mount (overlay.is_sealed), so
the kernel refuses to open it again for writing; and no LOWER entry is entered for writing here.

An id holds its file; nobody needs a descriptor. Everything runs on trio's thread but `close_id`.
"""

from __future__ import annotations

import enum
import errno
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import structlog

from snapfs.fuse import channel
from snapfs.fuse.channel import RESENT
from snapfs.fuse.handover import Connection
from snapfs.fuse.idjournal import Journal, Record
from snapfs.overlay import is_sealed

IDLE_KEPT = 1024

log = structlog.get_logger(__name__)


def ids_of(connection: Connection) -> BackingIds | None:
    """Return the ids of a mount, with those of an earlier worker; None without the channel."""
    return BackingIds(connection.fd, Journal(connection.journal)) if channel.loaded() else None


class Kind(enum.IntEnum):
    """How a node is open."""

    LOWER = 1
    """Backed by a file of a committed layer: for reading only."""
    UPPER = 2
    """Backed by a file of the snapshot's own layer."""
    CACHED = 3
    """Through the kernel's page cache and us; no backing id."""


@dataclass(slots=True, eq=False)
class Entry:
    """One node id that is open, or whose id is kept for the next open."""

    nodeid: int
    kind: Kind
    backing_id: int
    """0 for CACHED."""
    device: int
    ino: int
    """st_dev and st_ino of the file behind the id, which cannot become another's meanwhile."""
    slot: int
    opens: int = 0
    writers: int = 0
    """Those of `opens` that may write."""
    inherited: bool = False
    """Made by an earlier worker, not used by this one yet."""
    request: int = 0
    """Number of the request that was counted last; sent again, it is not counted again."""


class BackingIds:
    """The entries of one connection."""

    def __init__(
        self,
        fd: int,
        journal: Journal,
        *,
        idle_kept: int = IDLE_KEPT,
        number: Callable[[], int] = channel.unique,
    ) -> None:
        """`fd` is a descriptor of the connection; it stays the caller's. `number` returns that of
        the present request."""
        self._fd = fd
        self._number = number
        self._journal = journal
        self._idle_kept = idle_kept
        self._entries: dict[int, Entry] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        for slot, record in journal.load():
            self._inherit(slot, record)

    def _inherit(self, slot: int, record: Record) -> None:
        self._entries[record.nodeid] = Entry(
            record.nodeid,
            Kind(record.kind),
            record.backing_id,
            record.device,
            record.ino,
            slot,
            record.opens,
            record.writers,
            inherited=True,
            request=record.request,
        )
        if not record.opens:
            self._idle[record.nodeid] = None

    def __len__(self) -> int:
        """Number of entries, idle ones too."""
        return len(self._entries)

    def get(self, nodeid: int) -> Entry | None:
        """Return the entry of a node that is open, however it is."""
        entry = self._entries.get(nodeid)
        return entry if entry is not None and entry.opens else None

    def is_inherited(self, nodeid: int) -> bool:
        """Whether opens that only an earlier worker knew of may be among a node's."""
        entry = self.get(nodeid)
        return entry is not None and entry.inherited

    def writers(self) -> Iterator[Entry]:
        """Yield the entries through which the kernel may write without us."""
        return (it for it in self._entries.values() if it.writers and it.kind is Kind.UPPER)

    def enter(
        self, nodeid: int, kind: Kind, open_file: Callable[[], int], *, writing: bool
    ) -> Entry:
        """Count an open of a node; `open_file` gives a descriptor when an id has to be made.

        Raises OSError: what BACKING_OPEN says, or EPERM for an open that must never be.
        """
        if kind is Kind.LOWER and writing:
            raise OSError(errno.EPERM, "a file of a committed layer is never opened for writing")
        entry = self._entries.get(nodeid)
        if entry is not None and not entry.opens and entry.kind is not kind:
            self.discard(nodeid)
            entry = None
        if entry is not None and entry.inherited and not _is_file_of(entry, open_file):
            if entry.opens:
                raise OSError(errno.ESTALE, "an earlier worker had another file open as this node")
            self.discard(nodeid)
            entry = None
        if entry is None:
            entry = self._make(nodeid, kind, open_file)
        elif entry.kind is not kind:
            raise OSError(
                errno.EBUSY, f"node {nodeid} is open as {entry.kind.name}, not {kind.name}"
            )
        if not self._is_counted(entry):
            entry.opens += 1
            entry.writers += writing
        self._idle.pop(nodeid, None)
        self._write(entry)
        return entry

    def leave(self, nodeid: int, *, writing: bool, keep: bool) -> int:
        """Count a release; return the id that is to be closed with `close_id` now, or 0.

        `keep` keeps an id without opens for the next one.
        """
        entry = self._entries.get(nodeid)
        if entry is None or not entry.opens:
            return 0  # an earlier worker's, and forgotten since
        if self._is_counted(entry):
            return 0
        entry.opens -= 1
        entry.writers -= min(writing, entry.writers)
        if entry.opens:
            self._write(entry)
            return 0
        entry.writers = 0
        if not keep or entry.kind is Kind.CACHED:
            return self._remove(entry)
        entry.inherited = False
        self._write(entry)
        self._idle[nodeid] = None
        if len(self._idle) > self._idle_kept:
            self.discard(next(iter(self._idle)))
        return 0

    def _is_counted(self, entry: Entry) -> bool:
        """Whether the present request was counted by a worker that died before it answered; if not,
        it is now. Between the count and the answer nothing else is counted for the node."""
        number = self._number()
        known, entry.request = entry.request, number & ~RESENT
        return bool(number & RESENT) and known == entry.request

    def discard(self, nodeid: int) -> None:
        """Let go of a node's file if the node is not open."""
        if nodeid in self._idle:
            self.close_id(self._remove(self._entries[nodeid]))

    def forgotten(self, nodeid: int) -> None:
        """The kernel let go of a node: nothing can be open any more."""
        entry = self._entries.get(nodeid)
        if entry is not None:
            self.close_id(self._remove(entry))

    def discard_all(self, wanted: Callable[[int], bool]) -> None:
        """Let go of the files of all nodes that are not open and whose id is `wanted`."""
        for nodeid in [it for it in self._idle if wanted(it)]:
            self.discard(nodeid)

    def close_id(self, backing_id: int) -> None:
        """Close an id, which frees a removed file's blocks: may take long; safe in any thread."""
        if not backing_id:
            return
        try:
            channel.backing_close(self._fd, backing_id)
        except OSError as error:  # the kernel knows no such id: nothing is held
            log.error("backing.close_failed", backing_id=backing_id, error=str(error))

    def _make(self, nodeid: int, kind: Kind, open_file: Callable[[], int]) -> Entry:
        if kind is Kind.CACHED:
            return self._add(Entry(nodeid, kind, 0, 0, 0, self._journal.new_slot()))
        fd = open_file()
        if kind is Kind.LOWER and not is_sealed(fd):
            raise OSError(errno.EOPNOTSUPP, "this layer has no read-only mount of its own")
        found = os.fstat(fd)
        backing_id = channel.backing_open(self._fd, fd)
        return self._add(
            Entry(nodeid, kind, backing_id, found.st_dev, found.st_ino, self._journal.new_slot())
        )

    def _add(self, entry: Entry) -> Entry:
        self._entries[entry.nodeid] = entry
        return entry

    def _remove(self, entry: Entry) -> int:
        """Strike an entry out; a crash before the id is closed leaves it to the mount's end."""
        del self._entries[entry.nodeid]
        self._idle.pop(entry.nodeid, None)
        self._journal.clear(entry.slot)
        return entry.backing_id

    def _write(self, entry: Entry) -> None:
        self._journal.put(
            entry.slot,
            Record(
                entry.nodeid,
                entry.ino,
                entry.device,
                entry.backing_id,
                entry.opens,
                entry.writers,
                entry.kind,
                entry.request,
            ),
        )


def _is_file_of(entry: Entry, open_file: Callable[[], int]) -> bool:
    """Whether an id that was found is of the file that the node has now."""
    if entry.kind is Kind.CACHED:
        return True
    found = os.fstat(open_file())
    return (found.st_dev, found.st_ino) == (entry.device, entry.ino)
