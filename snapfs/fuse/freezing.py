"""Freezes of a worker's snapshots, and their ends.

INVARIANT: of a snapshot there is one freeze under way, which alone thaws the tree when it fails. A
thread that copies for it is waited for, also when it was given up: what it copied is put in its
place while nothing is changed. So a thaw ends a freeze that is under way by having it fail, and the
next freeze waits for that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import trio

from snapfs import processes
from snapfs.fuse import control
from snapfs.fuse.flushing import flush_dirty_pages, native_writers
from snapfs.fuse.lane import LaneForest
from snapfs.fuse.operations import OverlayOperations
from snapfs.model import SnapshotId
from snapfs.overlay import identity


class _Turn:
    """Who freezes a snapshot, and who waits for that."""

    __slots__ = ("lock", "scope")

    def __init__(self) -> None:
        self.lock = trio.Lock()
        self.scope = trio.CancelScope()
        """Of who has the lock."""


class Freezing:
    """Freezes snapshots for one supervisor at a time."""

    def __init__(
        self, forest: LaneForest, operations: OverlayOperations, paused: Iterable[SnapshotId]
    ) -> None:
        """`paused` are frozen already, for as long as the supervisor is there."""
        self._forest = forest
        self._operations = operations
        self._paused = set(paused)
        self._turns: dict[SnapshotId, _Turn] = {}

    async def freeze(self, wish: control.Freeze) -> control.Answer:
        """Obey; the tree is thawed unless the answer says that it is done."""
        snapshot_id = SnapshotId(wish.snapshot)
        text = f"snapshot {snapshot_id}: changes are still in flight; try again when it is idle"
        late = control.Answer(wish.id, error=text, late=True)
        before = self._operations.copy_ups.completed
        try:
            with trio.fail_after(wish.timeout_s):
                async with self._turn(snapshot_id) as scope:
                    with scope:
                        return await self._freeze(snapshot_id, wish)
        except trio.TooSlowError:
            is_further = self._operations.copy_ups.completed > before
            return control.Answer(wish.id, error=text, late=True, unfinished=is_further)
        except OSError as error:
            text = f"snapshot {snapshot_id}: {error}"
            return control.Answer(wish.id, error=text, errno=error.errno)
        return late

    def thaw(self, snapshot_id: SnapshotId) -> int | None:
        """Let changes begin again; return for how many nanoseconds they were held, if they were.

        A freeze that is under way is given up, and thaws when its thread has ended.
        """
        self._paused.discard(snapshot_id)
        turn = self._turns.get(snapshot_id)
        if turn is None:
            return self._forest.thaw(snapshot_id)
        turn.scope.cancel()
        return None

    def thaw_paused(self) -> None:
        """Thaw what was frozen for a supervisor that is gone; no freeze is under way any more."""
        for snapshot_id in self._paused:
            self._forest.thaw(snapshot_id)
        self._paused.clear()

    @asynccontextmanager
    async def _turn(self, snapshot_id: SnapshotId) -> AsyncIterator[trio.CancelScope]:
        turn = self._turns.setdefault(snapshot_id, _Turn())
        async with turn.lock:
            turn.scope = trio.CancelScope()
            try:
                yield turn.scope
            finally:
                if not turn.lock.statistics().tasks_waiting:
                    del self._turns[snapshot_id]

    async def _freeze(self, snapshot_id: SnapshotId, wish: control.Freeze) -> control.Answer:
        is_done = False
        try:
            if snapshot_id not in self._forest.frozen_ids:  # else it would wait for the thaw
                if await self._has_more_to_copy(snapshot_id, wish.timeout_s / 2):
                    text = f"snapshot {snapshot_id}: data is still being copied; try again"
                    return control.Answer(wish.id, error=text, late=True, unfinished=True)
                await self._flush(snapshot_id)
            await self._forest.freeze(snapshot_id)
            if writers := await self._writers(snapshot_id):
                text = f"open for writing: {writers}; close what is open, or stop who has it open"
                return control.Answer(wish.id, error=text, refused=True)
            await self._forest.settle(snapshot_id, self._operations.copy_ups.complete)
            await trio.lowlevel.checkpoint()  # a thread may have ended too late
            is_done = True
            if wish.lasting:
                self._paused.discard(snapshot_id)
            else:
                self._paused.add(snapshot_id)
        finally:
            if not is_done:  # also when the supervisor is gone
                self._forest.thaw(snapshot_id)
        return control.Answer(wish.id)

    async def _has_more_to_copy(self, snapshot_id: SnapshotId, timeout_s: float) -> bool:
        """Copy most of what was left below before changes are held; whether the time was too short
        for that, and not for any of it."""
        copy_ups = self._operations.copy_ups
        before = copy_ups.completed
        with trio.move_on_after(timeout_s) as copying:
            await self._forest.settle_ahead(snapshot_id, copy_ups.complete_ahead)
        return copying.cancelled_caught and copy_ups.completed > before

    async def _writers(self, snapshot_id: SnapshotId) -> str:
        """Name the files of a frozen snapshot that may be written past us; empty with none."""
        if not self._forest.notes_are_short:  # else the files themselves are asked
            writers = await native_writers(self._operations, identity.root(snapshot_id))
            if writers:
                return writers
        known = self._operations.written_files
        return processes.named(await self._forest.orphans(snapshot_id, known))

    async def _flush(self, snapshot_id: SnapshotId) -> None:
        """Write back what mappings have changed, of all files where it is not known of which."""
        everything = self._forest.notes_are_short
        files = await self._forest.all_files(snapshot_id) if everything else set()
        files.update(self._operations.maybe_mapped(identity.root(snapshot_id)))
        await flush_dirty_pages(self._operations, files)
