"""How much more a tree may take: what a quota allows beyond the usage and what is under way.

A request is let in when what it may need at most fits, so the quota is passed by less than one
request: by what a file system adds for itself (blocks of its own indexes). Removing is never
refused, unless it takes more than it gives: the whiteout of a file that only the lower layers have.
What was removed and is still open counts until it is closed.

INVARIANT: `_reserved` and `_reserved_inodes` are the sums of the reservations that are held.
All of this belongs to the tree's thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator

from snapfs.model import Quota, Usage

from .extents import unallocated
from .types import BLOCK_BYTES
from .usage import UsageCount

ENTRY_BYTES = 4096
"""What a new name may take: a block of its directory, or of its own."""
LOOK_AGAIN_NS = 100_000_000
"""Between two looks at every file that may have moved, before requests are refused."""

UNBOUNDED = Quota()


class Allowance:
    """The quota of one tree, and what is left of it."""

    def __init__(self, count: UsageCount) -> None:
        self._count = count
        self.quota = UNBOUNDED
        self._reserved = 0
        self._reserved_inodes = 0
        self._looked_ns = 0
        self._suspended = False

    @property
    def bounded(self) -> bool:
        return self.quota != UNBOUNDED

    @property
    def awaits_count(self) -> bool:
        """Nothing can be allowed before the tree was counted."""
        return self.quota != UNBOUNDED and not self._count.known

    @property
    def reserved(self) -> bool:
        """Requests are under way whose needs are known, but not yet what they took."""
        return bool(self._reserved or self._reserved_inodes)

    @property
    def exceeded(self) -> bool:
        """More is taken than the quota allows: by what a file system took for itself."""
        used = self.used() if self.quota.size_bytes is not None else None
        return used is not None and used.size_bytes > (self.quota.size_bytes or 0)

    def used(self, *, exactly: bool = False) -> Usage | None:
        """Return what counts against the quota: the layer, and what was removed and is still used.

        None while the tree is being counted. Blocks that moved by themselves are seen `exactly`.
        """
        found = self._count.usage() if exactly else self._count.recent()
        if found is None:
            return None
        held = self._count.held_blocks * BLOCK_BYTES
        return Usage(found.size_bytes + held, found.inodes + self._count.held_inodes)

    def check(self, size_bytes: int, inodes: int = 0) -> None:
        """Raise OSError(EDQUOT) unless so much more may be taken."""
        if not self.bounded or self._suspended:
            return
        if not self._fits(size_bytes, inodes, self.used()) and not (
            self._may_look() and self._fits(size_bytes, inodes, self.used(exactly=True))
        ):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    @property
    def waits_for_removed(self) -> bool:
        """There is no room for an entry, and there may be when removed files are let go of."""
        used = self.used()  # which is what looks at whether anything is held
        return self._count.held_inodes > 0 and not self._fits(ENTRY_BYTES, 1, used)

    def _fits(self, size_bytes: int, inodes: int, used: Usage | None) -> bool:
        if used is None:
            return True
        limit, most = self.quota.size_bytes, self.quota.inodes
        if inodes and most is not None and used.inodes + self._reserved_inodes + inodes > most:
            return False
        if not size_bytes or limit is None:
            return True
        return used.size_bytes + self._reserved + size_bytes <= limit

    def _may_look(self) -> bool:
        now_ns = time.monotonic_ns()
        if now_ns - self._looked_ns < LOOK_AGAIN_NS:
            return False
        self._looked_ns = now_ns
        return True

    @contextlib.contextmanager
    def reserving(self, size_bytes: int, inodes: int = 0) -> Iterator[None]:
        """Count a need, that was checked, as taken for the block: it may be met in another
        thread."""
        self._reserved += size_bytes
        self._reserved_inodes += inodes
        try:
            yield
        finally:
            self._reserved -= size_bytes
            self._reserved_inodes -= inodes

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Refuse nothing in the block: what it does is owed."""
        self._suspended = True
        try:
            yield
        finally:
            self._suspended = False

    def room_bytes(self) -> int | None:
        """Return how many bytes are left; None without a limit, or while the tree is counted."""
        limit = self.quota.size_bytes
        used = None if limit is None else self.used()
        if limit is None or used is None:
            return None
        left = limit - used.size_bytes - self._reserved
        if left < ENTRY_BYTES and self._may_look():
            used = self.used(exactly=True) or used
            left = limit - used.size_bytes - self._reserved
        return max(0, left)

    def fitting(self, fd: int, offset_bytes: int, length_bytes: int) -> tuple[int, int]:
        """Return how much of a write fits, from its start, and what it takes at most, in bytes.

        Where the file has blocks already a write takes nothing, as in ext4 and xfs.
        """
        room = self.room_bytes()
        if room is None:
            return length_bytes, 0
        block = os.fstat(fd).st_blksize
        if length_bytes + 2 * block <= room:
            return length_bytes, length_bytes + 2 * block
        end = offset_bytes + length_bytes
        start = offset_bytes - offset_bytes % block
        needed = 0
        for hole, hole_end in unallocated(fd, start, end + -end % block):
            if needed + hole_end - hole > room:
                fits = hole + (room - needed) // block * block
                return max(0, min(fits, end) - offset_bytes), room
            needed += hole_end - hole
        return length_bytes, needed

    def statfs(self, real: os.statvfs_result) -> os.statvfs_result:
        """Return the figures of a file system with the quota's size and what is left of it.

        A disk with less room than that limits what is available, not what is free: df(1) takes the
        rest of the size for used.
        """
        used = self.used()
        if not self.bounded or used is None:
            return real
        figures = list(real)
        unit = real.f_frsize or real.f_bsize
        if self.quota.size_bytes is not None:
            left = max(0, self.quota.size_bytes - used.size_bytes) // unit
            figures[2] = self.quota.size_bytes // unit
            figures[3], figures[4] = left, min(real.f_bavail, left)
        if self.quota.inodes is not None:
            free = max(0, self.quota.inodes - used.inodes)
            figures[5] = self.quota.inodes
            figures[6], figures[7] = (min(it, free) if real.f_files else free for it in real[6:8])
        return os.statvfs_result(figures)
