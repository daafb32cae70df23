"""Metadata-only copies: a change of attributes copies no data, until somebody wants to change that.

Such a copy is a hole of its file's size with owner, mode, times and attributes, marked as kernel
overlayfs marks it (metacopy.py). It is made in no time, takes no room but for its inode, and need
not be synced. Whoever changes the data, links or renames the file completes it first: by a copy-up
that takes its place, with the data from below and all else as it has it. So it has one name, the
one that its data has in the layers below.

No layer is committed, or read by anybody else, before it was completed (`metacopies`).

INVARIANT: a layer in which a file is such a copy of ours has METACOPIES on its root.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence

from . import identity, protection, xattrs
from ._copies import Source
from .copyup import CopyUp, abort, copy_up, directory_up, finish_or_discard, keep_times, place
from .core import MergedTree
from .filecalls import syncfs_of
from .layer import refuse, scan
from .node import Dir, Node
from .quota import ENTRY_BYTES

BATCH = 128
BATCH_BYTES = 64 << 20
"""Copies, and their data, that are completed with one sync; one more may be bigger than that."""


def attributes_up(tree: MergedTree, node: Node) -> None:
    """Copy up what a change of attributes needs."""
    if node.metacopy and node not in tree.completing:
        return
    if not leave_data(tree, node):
        copy_up(tree, node)


def leave_data(tree: MergedTree, node: Node) -> bool:
    """Make a metadata-only copy of a lower file, if the tree makes such; False when the file is to
    be copied whole: it has other names, nothing in it, protection, or its data elsewhere."""
    is_wanted = tree.spec.metacopy and not node.is_above and stat.S_ISREG(node.type)
    if not is_wanted or node.parent is None or not identity.lasts(node.ino & identity.LOW_MASK):
        return False
    source = Source(*tree.where(node))
    try:
        if source.nlink != 1 or not source.size_bytes or source.is_metacopy:
            return False
        if protection.of_source(tree, node, source.attributes):
            return False
        _make(tree, node, node.parent, source)
    finally:
        source.close()
    return True


def _make(tree: MergedTree, node: Node, parent: Dir, source: Source) -> None:
    tree.allowance.check(ENTRY_BYTES, 1)
    directory_up(tree, parent)
    _announce(tree)
    temp = tree.work.temp()
    try:
        source.copy_metadata(tree.work.layer.fd, temp, b"%d" % (node.ino & identity.LOW_MASK))
        times = place(tree, temp, parent, node.name)
    except OSError:
        tree.work.discard(temp)
        raise
    node.metacopy = True
    tree.inodes.changed(node.ino)
    tree.usage.new(node)
    keep_times(tree, parent, times)


def _announce(tree: MergedTree) -> None:
    """Mark the upper layer before the first such copy is in it, on disk too."""
    if tree.has_metacopies:
        return
    root = tree.upper_layer.proc(b".")
    tree.usage.note(tree.root)
    xattrs.put(root, xattrs.METACOPIES, b"y")
    if tree.work.sync:
        tree.fsync_dir(tree.root)
    tree.has_metacopies = True


class Completion:
    """Copies of the data of several metadata-only copies, made durable together."""

    def __init__(self, tree: MergedTree, nodes: Sequence[Node]) -> None:
        """The quota holds nobody up: who changed these files has been told that it is done."""
        self._tree = tree
        self.jobs: list[CopyUp] = []
        self._fd = os.open(tree.work.proc(b"."), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with tree.allowance.suspended():
                for node in nodes:
                    self.jobs.append(CopyUp(tree, node, data=True, syncs=False))
        except BaseException:
            self.end()
            raise

    def run(self) -> None:
        """Make the copies. Blocks; safe in any thread."""
        for job in self.jobs:
            job.run()
        if self._tree.work.sync:
            syncfs_of(self._fd)

    def end(self) -> None:
        """Clean up what was not published; `run` has ended. Idempotent."""
        for job in self.jobs:
            abort(self._tree, job)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def complete(tree: MergedTree) -> None:
    """Complete all metadata-only copies of the upper layer now."""
    for nodes in metacopies(tree):
        batch = Completion(tree, nodes)
        try:
            batch.run()
            for job in batch.jobs:
                finish_or_discard(tree, job)
        finally:
            batch.end()


def metacopies(tree: MergedTree) -> Iterator[list[Node]]:
    """Go through the upper layer for metadata-only copies, which the caller completes; free when
    there never was any.

    Yields a few at a time, and none after a directory without. Nothing may be changed meanwhile but
    by the caller. Who comes to the end has completed all.
    """
    if tree.upper is None or not tree.has_metacopies:
        return
    waiting = [tree.root]
    while waiting:
        found: list[Node] = []
        left_bytes = BATCH_BYTES
        for node in _in_directory(tree, waiting.pop(), waiting):
            found.append(node)
            left_bytes -= tree.getattr(node).size
            if len(found) == BATCH or left_bytes <= 0:
                yield found
                found, left_bytes = [], BATCH_BYTES
        yield found
    tree.usage.note(tree.root)
    xattrs.drop(tree.upper_layer.proc(b"."), xattrs.METACOPIES)
    tree.has_metacopies = False


def _in_directory(tree: MergedTree, here: Dir, below: list[Dir]) -> Iterator[Node]:
    """Yield the metadata-only copies in a directory of the upper layer; add those in it to `below`.

    One of ours whose data is nowhere is an error: OSError(EIO).
    """
    for entry in list(scan(tree.real_path(here))):
        if entry.is_dir(follow_symlinks=False):
            node = tree.lookup(here, entry.name)
            if isinstance(node, Dir):
                below.append(node)
        elif here.impure and entry.is_file(follow_symlinks=False):
            path = tree.upper_layer.proc(here.prefix() + entry.name)
            if xattrs.get(path, xattrs.METACOPY) is None:
                continue
            node = tree.lookup(here, entry.name)
            if node.metacopy:
                yield node
            elif node.copied:
                raise refuse(errno.EIO, entry.name)
