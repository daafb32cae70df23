"""Keeps the usage of a worker's trees known: begun at an opening, left behind at a close.

A tree goes on from what its last clean close has left, begins at nothing when its layer is empty,
and is else counted in a thread while it is used. Files that have been quiet for a whole interval
are synced together and let go, so that an answer does not cost more from day to day. What a closed
tree leaves is written once the layer is durable; when the tree is opened meanwhile, it is not.

Everything but the functions given to threads runs on trio's thread.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from snapfs.fuse.threads import Result
from snapfs.model import Usage
from snapfs.overlay import Tree
from snapfs.overlay.quiet import not_written
from snapfs.overlay.types import BLOCK_BYTES
from snapfs.overlay.usage import Resting
from snapfs.snapshots import counted
from snapfs.snapshots.durability import give_back, settle_blocks
from snapfs.snapshots.usage import blocks_by_inode

REST_INTERVAL_S = 30.0
"""As long as the kernel itself keeps dirty data (dirty_expire_centisecs): little is left to do."""
REST_FROM = 256
"""So many quiet files are worth a sync; looking at fewer costs about a millisecond."""
LEAVE_DELAY_S = 1.0
"""Between a close and its sync: many trees are removed by then, or closed with it."""
LEAVE_FILES = 20_000
"""A tree with more files that are not synced leaves no count."""
COUNT_AGAIN_S = 0.5
COUNTED_S = 300.0
"""For the count that changes of a tree with a quota wait for."""
RELIEVE_EVERY_S = 0.05

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Left:
    """A closed tree's count, to be written."""

    work: Path
    size_bytes: int
    inodes: int
    sum_blocks: int
    sum_inodes: int
    moving: tuple[tuple[bytes, int], ...]
    """Files whose blocks may still move: path, and blocks as counted."""


async def aside(
    limiter: trio.CapacityLimiter, call: Callable[..., Result], *args: object
) -> Result:
    """Run a call in a thread that the end of the worker does not wait for: it owns what it uses."""
    return await trio.to_thread.run_sync(call, *args, limiter=limiter, abandon_on_cancel=True)


class Counting:
    """The usage counts of one worker."""

    def __init__(self, storage: Path, is_written_unseen: Callable[[Tree], bool]) -> None:
        """`storage` is a directory of the file system that all layers lie on.

        While `is_written_unseen` says that files which no node is noted for are written, a tree is
        not counted: a walk answers, and the count begins when they are closed.
        """
        self._is_written_unseen = is_written_unseen
        self._storage = storage
        self._limiter = trio.CapacityLimiter(1)
        self._open: dict[Tree, tuple[Path, Path]] = {}
        """The trees that are followed, with upper and work directory."""
        self._wanted: dict[Tree, None] = {}
        self._left: dict[Path, _Left] = {}
        self._wake = trio.Event()
        self._counted = trio.Event()
        self._relieved_s = -RELIEVE_EVERY_S
        self._gives_back = True
        self._quiet: dict[Tree, dict[int, int]] = {}
        """Files that were at rest at the last look, with the changes they had seen."""

    def opened(self, tree: Tree, upper: Path, work: Path) -> None:
        """Begin to follow a tree before it takes its first change; OSError, and it is not."""
        self._left.pop(work, None)
        self._open[tree] = (upper, work)
        sums = counted.take(work)
        if sums is not None:
            tree.usage.take(sums.sum_blocks, sums.sum_inodes)
        elif not os.listdir(upper):
            tree.usage.begin()
            tree.usage.finish(blocks_by_inode(upper))
        else:
            self._want(tree)

    def closing(self, tree: Tree, *, lasting: bool) -> None:
        """Take what a tree that is about to be closed leaves; nothing unless it is `lasting`."""
        places = self._open.pop(tree, None)
        self._wanted.pop(tree, None)
        self._quiet.pop(tree, None)
        if places is None or not lasting or tree.usage.in_use or self._is_written_unseen(tree):
            return
        left = _farewell(tree, *places)
        if left is not None:
            self._left[left.work] = left
            self._wake.set()

    def usage(self, tree: Tree) -> Usage | None:
        """Return a tree's usage; None while it is being counted."""
        if self._is_written_unseen(tree):
            tree.usage.spoil()
            return None
        found = tree.usage.usage()
        if found is None:
            self._want(tree)
        return found

    async def until_counted(self, tree: Tree) -> None:
        """Return when a tree's usage is known; OSError when it does not come to that."""
        deadline_s = trio.current_time() + COUNTED_S
        while not tree.usage.known:
            self._begin(tree)
            with trio.move_on_at(deadline_s) as waiting:
                await self._counted.wait()
            if waiting.cancelled_caught:
                raise OSError(errno.EIO, "the tree of a snapshot with a quota is not counted")

    async def relieve(self) -> None:
        """Have the file system give back what it took in advance, where it takes any."""
        if self._gives_back:
            await trio.sleep_until(self._relieved_s + RELIEVE_EVERY_S)
            self._relieved_s = trio.current_time()
            self._gives_back = await aside(self._limiter, give_back, self._storage)

    async def run(self) -> None:
        """Count, let rest and write, for as long as the worker lives."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._rest_again_and_again)
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                await self._count_wanted()
                if self._left:
                    await trio.sleep(LEAVE_DELAY_S)
                    await self._write_left()

    def _want(self, tree: Tree) -> None:
        if not self._is_written_unseen(tree):
            self._begin(tree)

    def _begin(self, tree: Tree) -> None:
        if not tree.usage.counting:
            tree.usage.begin()
        self._wanted[tree] = None
        self._wake.set()

    async def _count_wanted(self) -> None:
        while self._wanted:
            tree = next(iter(self._wanted))
            try:
                await self._count(tree)
            except OSError as error:
                self._wanted.pop(tree, None)
                log.warning("usage.count_failed", snapshot=tree.spec.number, error=str(error))

    async def _count(self, tree: Tree) -> None:
        """Count a tree, again when it changed in a way that a walk under way cannot follow."""
        upper, _ = self._open[tree]
        if not tree.usage.counting:
            tree.usage.begin()
        began = tree.usage.generation
        await aside(self._limiter, settle_blocks, self._storage)  # what was written before `begin`
        table = await aside(self._limiter, blocks_by_inode, upper)
        if tree not in self._open:
            return
        if tree.usage.generation == began and tree.usage.finish(table):
            self._wanted.pop(tree, None)
            self._counted.set()
            self._counted = trio.Event()
            log.debug("usage.counted", snapshot=tree.spec.number, inodes=len(table))
        else:
            await trio.sleep(COUNT_AGAIN_S)

    async def _rest_again_and_again(self) -> None:
        while True:
            await trio.sleep(REST_INTERVAL_S)
            try:
                await self._let_rest()
            except OSError as error:
                log.error("usage.sync_failed", error=str(error))
            for tree in self._open:
                if not tree.usage.known:
                    self._want(tree)

    async def _let_rest(self) -> None:
        """Let go of files that nobody has changed since the last time."""
        plan: dict[Tree, list[Resting]] = {}
        for tree in self._open:
            resting = tree.usage.resting()
            before = self._quiet.get(tree, {})
            self._quiet[tree] = {it.node.ino: it.changes for it in resting}
            quiet = [it for it in resting if before.get(it.node.ino) == it.changes]
            if len(quiet) >= REST_FROM:
                plan[tree] = quiet
        if not plan:
            return
        calm = {
            tree: await aside(self._limiter, not_written, files) for tree, files in plan.items()
        }
        await aside(self._limiter, settle_blocks, self._storage)
        for tree, files in calm.items():
            if tree in self._open:
                tree.usage.rest(files)

    async def _write_left(self) -> None:
        orders = list(self._left.values())
        if not orders:
            return
        try:
            await aside(self._limiter, settle_blocks, self._storage)
        except OSError as error:
            log.error("usage.sync_failed", error=str(error))
            self._left.clear()
            return
        for order in orders:
            if self._left.get(order.work) is order:
                await self._write(order)

    async def _write(self, order: _Left) -> None:
        """Write one record, unless its tree is opened or removed meanwhile."""
        try:
            await aside(self._limiter, _draft, order)
            if self._left.get(order.work) is order:
                counted.publish(order.work)
        except OSError as error:
            log.debug("usage.not_left", work=str(order.work), error=str(error))
        finally:
            if self._left.get(order.work) is order:
                del self._left[order.work]


def _farewell(tree: Tree, upper: Path, work: Path) -> _Left | None:
    found, moving = tree.usage.usage(), tree.usage.moving()
    if found is None or moving is None or len(moving) > LEAVE_FILES:
        return None
    paths = tuple((os.path.join(os.fsencode(upper), path), blocks) for path, blocks in moving)
    return _Left(work, found.size_bytes, found.inodes, *tree.usage.sums(), paths)


def _draft(order: _Left) -> None:
    """Look again at files that were written lately, now that they are synced."""
    more = sum(os.lstat(path).st_blocks - blocks for path, blocks in order.moving)
    counted.draft(
        order.work,
        counted.Sums(
            size_bytes=order.size_bytes + more * BLOCK_BYTES,
            inodes=order.inodes,
            sum_blocks=order.sum_blocks + more,
            sum_inodes=order.sum_inodes,
        ),
    )
