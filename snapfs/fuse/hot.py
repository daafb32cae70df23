"""The fast lane: requests that the channel's library answers without the interpreter.

What it answers of names, attributes and first opens it knows from the trees' desks (_desk.pyi, and
places.py for what Python tells them). Opens of files that the kernel reads and writes by itself are
counted in what `passes` gives (backing.py), and share one number as their handle (`PASSING`): a
request with that number is about the node it names. What Python has to know of those for writing it
hears before it does anything else (`Happening`).

INVARIANT: what is answered is what the handlers would answer. Whoever is about to change what a
handler would say takes back what tells the library otherwise, in the same step of the loop.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import structlog

from snapfs.fuse import channel
from snapfs.fuse.features import Feature

if TYPE_CHECKING:
    from snapfs.fuse._channel import Opened

log = structlog.get_logger(__name__)

PASSING = 1 << 63
"""Handle of each open past us, of any worker."""


class What(enum.IntEnum):
    """What the fast lane did with a file or directory of the upper layer."""

    OPENED = 0
    """Opened it for writing."""
    CLOSED = 1
    """Counted a release of such an open."""
    CHANGED = 2
    """Changed its attributes."""
    MADE = 3
    """Made one in a directory, and gave it to the kernel."""
    REMOVED = 4
    """Took a name of one away, and kept it in the work directory if that was the only one."""
    FORGOTTEN = 5
    """Nothing: the kernel forgot what it had looked up of one."""
    MOVED = 6
    """Gave one another name, which was its only one; what that replaced was removed before."""
    LINKED = 7
    """Gave one a further name, and that to the kernel."""
    COPIED = 8
    """Copied a lower file up that had no node, or a directory."""
    PASSED = 9
    """Made a file, and deleted it when the kernel had forgotten it."""
    HIDDEN = 10
    """Took the only name of a lower file away, by a whiteout that is a link to the shared one."""
    LEFT_DATA = 11
    """As COPIED, but for the data of the file."""


class Happening(NamedTuple):
    """Something that Python has to know of."""

    nodeid: int
    what: int
    ino: int
    blocks: int
    nlink: int
    """Of the file in the layer, just before it was opened, changed or removed; of what was made or
    copied, its number only."""
    other: int
    """Node of the directory of what was made, removed, moved, linked, copied, passed or hidden."""
    forgotten: int
    """How many lookups the kernel took back; of what was removed, since then."""
    kind: int
    """Type of what was made or copied: S_IFMT bits."""
    name: bytes
    """Of what was made, removed, moved, linked, copied or hidden."""


class Hot:
    """The fast lane of a session; does nothing while it is not running."""

    def __init__(self) -> None:
        self._library: ModuleType | None = None
        self._opened: Opened | None = None
        self._record: memoryview | None = None
        self.without_opens = False
        """The kernel opens files by itself: they are read and written by their nodes, from the
        session's begin."""
        self._hear: Callable[[Happening], None] = _ignore

    def passes(
        self, opened: Opened | None, hear: Callable[[Happening], None], record: memoryview | None
    ) -> None:
        """Let opens be answered and counted in `opened`, from the session's begin, if there is one;
        `hear` is told of changes in the same step, before any other code runs. A request that must
        happen once is noted in `record`, if a worker may come that looks there (inflight.py)."""
        self._opened = opened
        self._hear = hear
        self._record = record

    def allow_passing(self, *, on: bool) -> None:
        """Say whether files that are not open may be opened there."""
        if self._library is not None:
            self._library.hot_allow_passing(on)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Answer requests meanwhile. The channel is in use and pyfuse3's session exists."""
        library = channel.required()
        library.hot_start(self._opened, self._listen, self._record, self.without_opens)
        self._library = library
        try:
            yield
        finally:
            self._listen()
            self._library = None
            library.hot_stop()

    def _listen(self) -> None:
        """Hear all that has happened. Nothing that goes wrong may cost the request in hand."""
        while self._library is not None and (events := self._library.hot_events()):
            for event in events:
                try:
                    self._hear(Happening._make(event))
                except Exception:
                    log.exception("fuse.hot_event_failed", node=event[0])

    @property
    def on(self) -> bool:
        return self._library is not None

    @property
    def feature(self) -> Feature:
        return Feature("fast lane", "" if self.on else channel.why_not() or "no session runs")

    def answered(self) -> Mapping[str, int]:
        """Return how many requests were answered since the session began, by operation."""
        return {name: answered for name, (answered, _) in self._figures() if answered}

    def left(self) -> Mapping[str, int]:
        """Return how many requests were left to Python since the session began, by operation."""
        return {name: left for name, (_, left) in self._figures() if left}

    def _figures(self) -> Iterator[tuple[str, tuple[int, int]]]:
        found = {} if self._library is None else self._library.hot_figures()
        for code, counts in found.items():
            yield _name_of(code), counts

    def ended(self) -> int:
        """Return how many files have come and gone since the session began, without a node."""
        return 0 if self._library is None else self._library.hot_ended()


def _name_of(opcode: int) -> str:
    """A later kernel may ask for what has no name here; Python refuses it."""
    try:
        return channel.Opcode(opcode).name
    except ValueError:
        return str(opcode)


def _ignore(happening: Happening) -> None:
    pass
