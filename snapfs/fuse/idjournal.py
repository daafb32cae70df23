"""What is open in which way, written where the next worker finds it: a memfd of fixed-size records.

One record for each entry of `backing.BackingIds`. A record is written by one pwrite(2) and lies in
one page, so a process that is killed leaves the old or the new one. Little-endian, 64 bytes:

    node id u64 | inode u64 | device u64 | backing id u32 | opens u32 | writers u32 | kind u32 |
    request u64 | 0

A record of kind 0 is free. One process writes; the next one reads what that left, once.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

RECORD_BYTES = 64
_RECORD = struct.Struct("<QQQIIIIQ16x")
_FREE = bytes(RECORD_BYTES)
_READ_BYTES = 1 << 20


class Record(NamedTuple):
    """One entry as it is written; see backing.Entry for what the fields mean."""

    nodeid: int
    ino: int
    device: int
    backing_id: int
    opens: int
    writers: int
    kind: int
    request: int = 0


class Journal:
    """The records of one connection. Does not own the descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._free: list[int] = []
        self._slots = os.fstat(fd).st_size // RECORD_BYTES

    def load(self) -> Iterator[tuple[int, Record]]:
        """Yield the slot and record of each entry that was left; to be called once, at first."""
        for at in range(0, self._slots * RECORD_BYTES, _READ_BYTES):
            block = os.pread(self._fd, _READ_BYTES, at)
            for start in range(0, len(block) - RECORD_BYTES + 1, RECORD_BYTES):
                record = Record._make(_RECORD.unpack_from(block, start))
                slot = (at + start) // RECORD_BYTES
                if record.kind:
                    yield slot, record
                else:
                    self._free.append(slot)

    def new_slot(self) -> int:
        """Return a place for a record."""
        if self._free:
            return self._free.pop()
        self._slots += 1
        return self._slots - 1

    def put(self, slot: int, record: Record) -> None:
        """Write a record; the next worker finds it from now on."""
        os.pwrite(self._fd, _RECORD.pack(*record), slot * RECORD_BYTES)

    def clear(self, slot: int) -> None:
        """Free a record's place."""
        os.pwrite(self._fd, _FREE, slot * RECORD_BYTES)
        self._free.append(slot)
