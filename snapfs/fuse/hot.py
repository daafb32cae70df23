"""The fast lane: requests that the channel's library answers without the interpreter.

Python says of a node what may be answered for it (`offer_*`), the library answers until that is
taken back. Nothing has to be offered: what is not, Python is asked.

INVARIANT: what is on offer is what the handlers would answer. Whoever is about to change what a
handler would say of a node calls `withdraw` first, in the same step of the loop as the change; only
a handler that answers the same question offers it (again). A FORGET takes everything back by
itself.

Opens that are answered there share one number as their handle (`handle`); a request with that
number is about the node it names, opened for reading only.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType

from snapfs.fuse import channel
from snapfs.fuse.features import Feature
from snapfs.overlay import Attributes

_ATTR = struct.Struct("<QQQqqqIIIIIIIIII")
_NS = 1_000_000_000


class Offer(enum.IntFlag):
    """What can be on offer for a node."""

    OPEN = 1
    ATTRIBUTES = 2
    NO_SECURITY_XATTRS = 4
    NO_USER_XATTRS = 8
    CONTENTS = 16
    ALL = 31


@dataclass(frozen=True, slots=True)
class Figures:
    """What the fast lane has done since the session began."""

    nodes: int = 0
    opens: int = 0
    answered: Mapping[int, int] = field(default_factory=dict)
    """By opcode."""

    @property
    def by_name(self) -> dict[str, int]:
        return {channel.Opcode(code).name: count for code, count in self.answered.items()}


class Hot:
    """The fast lane of a session; does nothing while it is not running."""

    def __init__(self) -> None:
        self._library: ModuleType | None = None
        self.handle = 0
        """Number of all handles that were given out there; 0 when there are none."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Answer requests meanwhile. The channel is in use and pyfuse3's session exists."""
        library = channel.required()
        self.handle = library.hot_start()
        self._library = library
        try:
            yield
        finally:
            self._library = None
            library.hot_stop()

    @property
    def on(self) -> bool:
        return self._library is not None

    @property
    def feature(self) -> Feature:
        return Feature("fast lane", "" if self.on else channel.why_not() or "no session runs")

    def offer_open(self, nodeid: int, open_flags: int, backing_id: int) -> None:
        """Let read-only opens of a node be answered with OpenFlags and a backing id."""
        if self._library is not None:
            self._library.hot_offer_open(nodeid, open_flags, backing_id)

    def offer_attributes(self, nodeid: int, attributes: Attributes, timeout_s: float) -> None:
        """Let GETATTR be answered with attributes as they are shown."""
        if self._library is not None:
            self._library.hot_offer_attributes(nodeid, int(timeout_s), pack(attributes))

    def offer_no_xattrs(self, nodeid: int, *, user: bool) -> None:
        """Let a node be known to have no extended attribute that is shown: `security.` ones are
        answered so, or with `user` those; a list is empty."""
        if self._library is not None:
            offer = Offer.NO_USER_XATTRS if user else Offer.NO_SECURITY_XATTRS
            self._library.hot_offer_no_xattrs(nodeid, offer)

    def offer_contents(self, nodeid: int, fd: int) -> bool:
        """Let reads be answered from a descriptor while the data is in memory.

        Takes ownership of `fd` when it returns True. Who offers keeps count: one descriptor a node.
        """
        if self._library is None:
            return False
        self._library.hot_offer_contents(nodeid, fd)
        return True

    def withdraw(self, nodeid: int, offers: Offer = Offer.ALL, *, tell: bool = False) -> int:
        """Take offers back, at once and for good; returns how often the node is still open by an
        OPEN that was answered there. `tell` makes `closed` name it after the last RELEASE."""
        if self._library is None:
            return 0
        return self._library.hot_withdraw(nodeid, offers, tell)  # type: ignore[no-any-return]

    def withdraw_all(self) -> None:
        """Take everything back; files that are open stay so."""
        if self._library is not None:
            self._library.hot_withdraw_all()

    def opens(self, nodeid: int) -> int:
        """Return how often a node is open by an OPEN that was answered there."""
        return 0 if self._library is None else self._library.hot_opens(nodeid)

    def closed(self) -> list[int]:
        """Return nodes, withdrawn with `tell`, whose last handle is gone; each once."""
        return [] if self._library is None else self._library.hot_closed()

    def figures(self) -> Figures:
        return Figures() if self._library is None else Figures(*self._library.hot_figures())


def pack(attributes: Attributes) -> bytes:
    """Return attributes as they go over the wire (fuse_attr)."""
    atime_s, atime_ns = divmod(attributes.atime_ns, _NS)
    mtime_s, mtime_ns = divmod(attributes.mtime_ns, _NS)
    ctime_s, ctime_ns = divmod(attributes.ctime_ns, _NS)
    return _ATTR.pack(
        attributes.ino & ~channel.INCARNATION,
        attributes.size,
        attributes.blocks,
        atime_s,
        mtime_s,
        ctime_s,
        atime_ns,
        mtime_ns,
        ctime_ns,
        attributes.mode,
        attributes.nlink,
        attributes.uid,
        attributes.gid,
        attributes.rdev,
        attributes.blksize,
        0,
    )
