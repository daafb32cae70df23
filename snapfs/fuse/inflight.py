"""Requests in flight, noted where the next worker finds them: a memfd of fixed-size records.

A worker that dies has read requests that it did not answer; the kernel sends those again, with
`channel.RESENT` in their numbers. Most can simply be done again. What changes names cannot: a file
that was made already would be EEXIST, a removed one ENOENT. So such a request is noted before it
has an effect (`intend`), with the numbers of the nodes that it found, and again when the effect is
there and only the reply is left (`did`). `replays` says what becomes of one that comes again.

Records are four words: number of the request, two node numbers, state. The state is written last
and cleared first, so a process that is killed leaves a record whole or not at all. One process
writes; the next one reads what that left, once. A record that was left stays until its request is
answered, however long that waits (at a gate, for a copy), or until the table is full, the oldest
first. One that stays longer does no harm: the kernel uses no number twice on a connection.
"""

from __future__ import annotations

import enum
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from snapfs.fuse import channel
from snapfs.fuse.channel import RESENT

RECORD_BYTES = 32
_WORDS = RECORD_BYTES // 8
_UNIQUE, _FIRST, _SECOND, _STATE = range(_WORDS)
FIRST_SLOTS = 1024
_FAST_LANE = 0
"""Slot of the fast lane's request, which is one at a time (channel_src/passes.c)."""


class State(enum.IntEnum):
    FREE = 0
    INTENDED = 1
    """It may have happened, or not."""
    DONE = 2


@dataclass(frozen=True, slots=True)
class Note:
    """What a dead worker noted of a request."""

    state: State
    first: int
    second: int
    """Node numbers, 0 for none; what they mean is the operation's affair (replays.py)."""


class InFlight:
    """The records of one connection. Does not own the descriptor; belongs to trio's thread."""

    def __init__(self, fd: int, number: Callable[[], int] = channel.unique) -> None:
        """`number` returns that of the present request, 0 when nobody knows it."""
        self._fd = fd
        self._number = number
        self._slots = max(FIRST_SLOTS, os.fstat(fd).st_size // RECORD_BYTES)
        self._words = self._map()
        self._earlier: dict[int, tuple[Note, int]] = {}
        """What was left, with its place, by number of the request; the oldest first."""
        self._free: deque[int] = deque()
        self._last = -1
        """Of the request that came to its end last; it may not be answered yet."""
        for slot in range(_FAST_LANE + 1, self._slots):
            self._load(slot)
        self._move_fast_lane()
        self._earlier = dict(sorted(self._earlier.items()))  # numbers go up

    def _map(self) -> memoryview:
        os.ftruncate(self._fd, self._slots * RECORD_BYTES)
        return memoryview(mmap.mmap(self._fd, self._slots * RECORD_BYTES)).cast("Q")

    def _load(self, slot: int) -> None:
        unique, first, second, state = self._words[slot * _WORDS : (slot + 1) * _WORDS]
        if not state:
            self._free.append(slot)
            return
        key, note = unique & ~RESENT, Note(State(state), first, second)
        known = self._earlier.get(key)
        if known is None:
            self._earlier[key] = note, slot
        elif known[0].state < state:
            self._earlier[key] = note, slot
            self._clear(known[1])
        else:
            self._clear(slot)

    def _move_fast_lane(self) -> None:
        """Keep what the fast lane of a dead worker noted, and free its place for this one's."""
        unique, first, second, state = self._words[:_WORDS]
        if state:
            self._load(self.put(unique, first, second, State(state)))
            self._words[_STATE] = State.FREE

    @property
    def of_fast_lane(self) -> memoryview:
        """The record in which the fast lane notes the request that it has in hand."""
        return self._words[:_WORDS].cast("B")

    def __len__(self) -> int:
        """Number of records in use, but for the fast lane's."""
        return self._slots - 1 - len(self._free)

    def request(self) -> Noting:
        """Return what is to be noted of the present request, and what was."""
        return Noting(self, self._number())

    def earlier(self, unique: int) -> Note | None:
        """Return what a dead worker noted of a request."""
        if not unique & RESENT:
            return None
        found = self._earlier.get(unique & ~RESENT)
        return None if found is None else found[0]

    def take(self, unique: int) -> int:
        """Return the place of what was noted earlier; it is freed by the answer from now on."""
        _, slot = self._earlier.pop(unique & ~RESENT)
        return slot

    def put(self, unique: int, first: int, second: int, state: State) -> int:
        """Write a record and return its place; the next worker finds it from now on."""
        if not self._free:
            self._make_room()
        words = self._words
        slot = self._free.popleft()
        at = slot * _WORDS
        words[at] = unique
        words[at + _FIRST] = first
        words[at + _SECOND] = second
        words[at + _STATE] = state
        return slot

    def done(self, slot: int, first: int) -> None:
        """Note that the effect is there; `first` is the node that it was about, or 0."""
        at = slot * _WORDS
        if first:
            self._words[at + _FIRST] = first
        self._words[at + _STATE] = State.DONE

    def answered(self, slot: int) -> None:
        """Free a record once another comes to its end: this one's reply follows in the same step
        of the loop, and nothing else can come between."""
        last, self._last = self._last, slot
        if last >= 0:
            self._words[last * _WORDS + _STATE] = 0
            self._free.append(last)

    def _clear(self, slot: int) -> None:
        self._words[slot * _WORDS + _STATE] = State.FREE
        self._free.append(slot)

    def _make_room(self) -> None:
        if self._earlier:
            self._clear(self.take(next(iter(self._earlier))))
        else:
            self._grow()

    def _grow(self) -> None:
        old, self._slots = self._slots, self._slots * 2
        self._words = self._map()
        self._free.extend(range(old, self._slots))

    def records(self) -> Iterator[tuple[int, Note]]:
        """Yield request number and note of each record in use."""
        for slot in range(self._slots):
            unique, first, second, state = self._words[slot * _WORDS : (slot + 1) * _WORDS]
            if state:
                yield unique, Note(State(state), first, second)


class Noting:
    """One request that must happen once; a context that ends with its answer."""

    __slots__ = ("_journal", "_slot", "_unique", "earlier")

    def __init__(self, journal: InFlight | None, unique: int) -> None:
        """Without a journal nothing is noted: no worker comes after this one."""
        self._journal = journal
        self._unique = unique
        self._slot = -1
        self.earlier = None if journal is None else journal.earlier(unique)
        """What a dead worker noted; None when it had not begun, or there was none."""
        if journal is not None and self.earlier is not None:
            self._slot = journal.take(unique)

    def intend(self, first: int = 0, second: int = 0) -> None:
        """Note the request before it has an effect."""
        if self._unique and self._slot < 0 and self._journal is not None:
            self._slot = self._journal.put(self._unique, first, second, State.INTENDED)

    def did(self, first: int = 0) -> None:
        """Note that the effect is there."""
        if self._journal is None or not self._unique:
            return
        if self._slot >= 0:
            self._journal.done(self._slot, first)
        else:
            self._slot = self._journal.put(self._unique, first, 0, State.DONE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._slot >= 0 and self._journal is not None:
            self._journal.answered(self._slot)
