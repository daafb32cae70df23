"""Copy-ups in threads: one at a time for a node, others wait for it, nobody else notices.

A copy takes as long as the file is big, so it runs off the loop, unless it waits for nothing; only
its last step, which makes the copy visible, is always done on the loop. Descriptors that read the
lower file are moved to the copy then, so that a reader sees what a writer writes, as on any local
file system. Those that the kernel reads past us keep the lower file, as with kernel overlayfs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import trio

from snapfs.fuse.handles import Handles
from snapfs.fuse.threads import Threads, blocking
from snapfs.fuse.trees import Shown
from snapfs.overlay import CopyUp, Node, Tree

FEW = 16
"""Metadata-only copies that a freeze may find; more are completed before it begins."""


class CopyUps:
    """Runs and awaits the copies of a session."""

    def __init__(
        self, files: Handles, threads: Threads, copied: Callable[[Shown, Node], None]
    ) -> None:
        """`copied` is told of each file that has a copy now."""
        self._files = files
        self._threads = threads
        self._copied = copied
        self.under_way = 0
        self.done = 0
        self.completed = 0
        """Of these, metadata-only copies that got their data for a freeze."""

    async def ensure(self, shown: Shown, tree: Tree, node: Node, *, data: bool = True) -> None:
        """Return when a node can be changed in place; the caller is inside the tree's gate.

        Without `data` the copy is empty: for callers that are about to truncate.
        """
        while tree.needs_copy_up(node):
            running = shown.copying.get(node.ino)
            if running is None:
                await self._copy(shown, tree, node, data=data)
            else:
                await running.wait()

    async def ensure_attributes(self, shown: Shown, tree: Tree, node: Node) -> None:
        """As `ensure`, for a change of attributes: the data may stay where it is."""
        while tree.needs_copy_up(node):
            running = shown.copying.get(node.ino)
            if running is not None:
                await running.wait()
            elif node.metacopy:
                return
            elif tree.leave_data(node):
                shown.left_data()
                self._copied(shown, node)
                self.done += 1
                return
            else:
                await self._copy(shown, tree, node, data=True)

    async def complete_ahead(self, shown: Shown, tree: Tree) -> None:
        """Copy most data that was left below while everything goes on, so that `complete` finds
        little. Raises OSError; what was completed until then stays so."""
        count, before = await self._complete_beside_changes(shown, tree), sys.maxsize
        while FEW < count < before // 2:
            count, before = await self._complete_beside_changes(shown, tree), count
        if tree.has_metacopies:  # and leave little to sync
            await self._complete(shown, tree, ())

    async def _complete_beside_changes(self, shown: Shown, tree: Tree) -> int:
        """Complete what is found in one walk, and return how much that was."""
        count = 0
        with closing(tree.metacopies()) as found:
            for nodes in found:
                await trio.lowlevel.checkpoint()
                if nodes:
                    count += await self._complete_held(shown, nodes)
        return count

    async def _complete_held(self, shown: Shown, nodes: Sequence[Node]) -> int:
        """Complete files whose changes wait meanwhile; return how many there still were."""
        tree = await shown.begin()
        try:
            left = []
            for node in nodes:
                if node.ino in shown.copying and node.parent is not None:
                    tree.note_left(node.parent)  # that copy may come to nothing
                elif node.metacopy and node.parent is not None:
                    left.append(node)
            if left:
                with self._copying(shown, left):
                    await self._complete(shown, tree, left)
            return len(left)
        finally:
            shown.end()

    async def complete(self, shown: Shown, tree: Tree) -> None:
        """Copy all data that was left below; nothing may be changed meanwhile, and reading goes on.

        Raises OSError; what was completed until then stays so.
        """
        while tree.has_metacopies:
            with closing(tree.metacopies()) as found:
                for nodes in found:
                    await trio.lowlevel.checkpoint()
                    if nodes:
                        await self._complete(shown, tree, nodes)
            await self._complete(shown, tree, ())  # all names are durable before the mark goes
            tree.all_complete()

    async def _complete(self, shown: Shown, tree: Tree, nodes: Sequence[Node]) -> None:
        batch = tree.start_completion(nodes)
        try:
            await blocking(self._threads.copy_up, batch.run)
            for job in batch.jobs:
                self._publish(tree, job.node, job)
                self._copied(shown, job.node)
                self.done += 1
                self.completed += 1
        finally:
            batch.end()

    async def settled(self, shown: Shown, node: Node | None = None) -> None:
        """Return when no copy of `node`, or of the whole tree, is under way."""
        while shown.copying:
            running = (
                next(iter(shown.copying.values())) if node is None else shown.copying.get(node.ino)
            )
            if running is None:
                return
            await running.wait()

    async def _copy(self, shown: Shown, tree: Tree, node: Node, *, data: bool) -> None:
        with self._copying(shown, [node]):
            await self._run(tree, node, data=data)
            self._copied(shown, node)
            self.done += 1

    @contextmanager
    def _copying(self, shown: Shown, nodes: Sequence[Node]) -> Iterator[None]:
        """Let others who would copy or change these files wait for the end of the block."""
        finished = trio.Event()
        shown.copying.update((node.ino, finished) for node in nodes)
        self.under_way += len(nodes)
        try:
            yield
        finally:
            self.under_way -= len(nodes)
            for node in nodes:
                del shown.copying[node.ino]
            finished.set()

    async def _run(self, tree: Tree, node: Node, *, data: bool) -> None:
        job = tree.start_copy_up(node, data=data)
        published = False
        try:
            with tree.allowance.reserving(job.takes_bytes, 1):
                if job.is_quick():
                    job.run()
                else:
                    await blocking(self._threads.copy_up, job.run)
            self._publish(tree, node, job)
            published = True
        finally:
            if not published:
                tree.abort_copy_up(job)

    def _publish(self, tree: Tree, node: Node, job: CopyUp) -> None:
        """Put the copy in its place and move readers to it, whose descriptors can take over one
        that was opened before: for want of another nothing is published."""
        readers = [it for it in self._files.of_node(node.ino) if it.lower and it.has_fd]
        if not readers:
            return tree.finish_copy_up(job)
        fd = tree.open(node, os.O_RDONLY) if node.up else job.open()
        try:
            tree.finish_copy_up(job)
            for handle in readers:
                os.dup2(fd, handle.fd, inheritable=False)
                handle.lower = False
        finally:
            os.close(fd)
        return None
