"""Requests in flight, noted where the next worker finds them: a memfd of fixed-size records.

A worker that dies has read requests that it did not answer; the kernel sends those again, with
`channel.RESENT` in their numbers. Most can simply be done again. What changes names cannot: a file
that was made already would be EEXIST, a removed one ENOENT. So such a request is noted before it
has an effect (`intend`), with the numbers of the nodes that it found, and again when the effect is
there and only the reply is left (`did`). `replays` says what becomes of one that comes again.

Records are four words: number of the request, two node numbers, state with a sum of all. That one
is written last and cleared first, so a process that is killed leaves a record whole or not at all.
A record with another sum is damaged: it is counted and struck out, and each request that comes
again and of which nothing is noted may then have happened (`IN_DOUBT`). One process
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
MOST_SLOTS = 1 << 20
"""More than can be in flight."""
_WORD = (1 << 64) - 1
_STATE_BITS = 0xFF
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


IN_DOUBT = Note(State.INTENDED, 0, 0)
"""For a request that comes again when what was noted of it may be lost."""


def summed(unique: int, first: int, second: int, state: int) -> int:
    """Return the word of a record's state, with the sum of all; the library has the same."""
    mixed = unique * 0x9E3779B97F4A7C15 + first * 0xC2B2AE3D27D4EB4F
    mixed += second * 0x165667B19E3779F9 + state * 0xD6E8FEB86659FD93
    return (mixed & _WORD & ~_STATE_BITS) | state


class InFlight:
    """The records of one connection. Does not own the descriptor; belongs to trio's thread."""

    def __init__(self, fd: int, number: Callable[[], int] = channel.unique) -> None:
        """`number` returns that of the present request, 0 when nobody knows it."""
        self._fd = fd
        self._number = number
        self._summed = channel.required().summed if channel.loaded() else summed
        found = os.fstat(fd).st_size // RECORD_BYTES
        self._slots = max(FIRST_SLOTS, min(found, MOST_SLOTS))
        self._words = self._map()
        self._earlier: dict[int, tuple[Note, int]] = {}
        """What was left, with its place, by number of the request; the oldest first."""
        self._free: deque[int] = deque()
        self._last = -1
        """Of the request that came to its end last; it may not be answered yet."""
        self.damaged = int(found > MOST_SLOTS)
        """How many records were, that were left."""
        for slot in range(_FAST_LANE + 1, self._slots):
            self._load(slot)
        self._move_fast_lane()
        self._earlier = dict(sorted(self._earlier.items()))  # numbers go up

    def _map(self) -> memoryview:
        os.ftruncate(self._fd, self._slots * RECORD_BYTES)
        return memoryview(mmap.mmap(self._fd, self._slots * RECORD_BYTES)).cast("Q")

    def _load(self, slot: int) -> None:
        note = self._read(slot)
        if note is None:
            self._clear(slot)
            return
        key, state = self._words[slot * _WORDS] & ~RESENT, note.state
        known = self._earlier.get(key)
        if known is None:
            self._earlier[key] = note, slot
        elif known[0].state < state:
            self._earlier[key] = note, slot
            self._clear(known[1])
        else:
            self._clear(slot)

    def _read(self, slot: int) -> Note | None:
        """Return what a record says; None when it is free, or damaged."""
        unique, first, second, word = self._words[slot * _WORDS : (slot + 1) * _WORDS]
        if not word:
            return None
        state = word & _STATE_BITS
        if state not in (State.INTENDED, State.DONE) or word != self._summed(
            unique, first, second, state
        ):
            self.damaged += 1
            return None
        return Note(State(state), first, second)

    def _move_fast_lane(self) -> None:
        """Keep what the fast lane of a dead worker noted, and free its place for this one's."""
        note = self._read(_FAST_LANE)
        if note is not None:
            self._load(self.put(self._words[0], note.first, note.second, note.state))
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
        """Return what a dead worker noted of a request; IN_DOUBT when that may be lost."""
        if not unique & RESENT:
            return None
        found = self._earlier.get(unique & ~RESENT)
        if found is None:
            return IN_DOUBT if self.damaged else None
        return found[0]

    def take(self, unique: int) -> int:
        """Return the place of what was noted earlier, which is freed by the answer from now on; -1
        when nothing was."""
        _, slot = self._earlier.pop(unique & ~RESENT, (None, -1))
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
        words[at + _STATE] = self._summed(unique, first, second, state)
        return slot

    def done(self, slot: int, first: int) -> int:
        """Note that the effect is there; `first` is the node that it was about, or 0.

        Returns the record's place from now on.
        """
        at = slot * _WORDS
        unique, known, second, _ = self._words[at : at + _WORDS]
        if first in (0, known):
            self._words[at + _STATE] = self._summed(unique, known, second, State.DONE)
            return slot
        moved = self.put(unique, first, second, State.DONE)  # killed here, both are there
        self._clear(slot)
        return moved

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
            note = self._read(slot)
            if note is not None:
                yield self._words[slot * _WORDS], note


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
            self._slot = self._journal.done(self._slot, first)
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
