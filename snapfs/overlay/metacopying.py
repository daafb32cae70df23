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
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress

from . import identity, protection, xattrs
from ._copies import Source
from .copyup import CopyUp, abort, copy_up, directory_up, finish_or_discard, keep_times, place
from .core import MergedTree
from .filecalls import syncfs_of
from .layer import refuse, scan
from .node import Dir, Node
from .ordering import Order
from .quota import ENTRY_BYTES

BATCH = 128
BATCH_BYTES = 64 << 20
"""Copies, and their data, that are completed with one sync; one more may be bigger than that."""
MOST_BYTES = 256 << 20
"""Of a file whose data is left below: whoever waits for it gets further every few seconds."""
MOST_NOTED = 4096
"""Directories with such copies that are kept in memory."""
TURN = 1024
"""Entries that are looked at in one step."""


def attributes_up(tree: MergedTree, node: Node) -> None:
    """Copy up what a change of attributes needs."""
    if node.metacopy and node not in tree.completing:
        return
    if not leave_data(tree, node):
        copy_up(tree, node)


def leave_data(tree: MergedTree, node: Node) -> bool:
    """Make a metadata-only copy of a lower file, if the tree makes such; False when the file is to
    be copied whole: it has other names, nothing in it or very much, protection, or its data
    elsewhere."""
    is_wanted = tree.makes_metacopies and not node.is_above and stat.S_ISREG(node.type)
    if not is_wanted or node.parent is None or not identity.lasts(node.ino & identity.LOW_MASK):
        return False
    source = Source(*tree.where(node))
    try:
        if source.nlink != 1 or not 0 < source.size_bytes <= MOST_BYTES or source.is_metacopy:
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
    note_left(tree, parent)
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
    if tree.work.order is not Order.NOTHING:
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
                    self.jobs.append(CopyUp(tree, node, data=True, order=Order.NOTHING))
        except BaseException:
            self.end()
            raise

    def run(self) -> None:
        """Make the copies. Blocks; safe in any thread."""
        for job in self.jobs:
            job.run()
        if self._tree.work.order is not Order.NOTHING:
            syncfs_of(self._fd)

    def end(self) -> None:
        """Clean up what was not published; `run` has ended. Idempotent."""
        for job in self.jobs:
            abort(self._tree, job)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def complete(tree: MergedTree) -> None:
    """Complete all metadata-only copies of the upper layer now; free when there are none."""
    if tree.upper is None or not tree.has_metacopies:
        return
    with closing(metacopies(tree)) as found:
        for nodes in found:
            _complete(tree, nodes)
    _complete(tree, ())  # all that was renamed is durable before the mark goes
    all_complete(tree)


def _complete(tree: MergedTree, nodes: Sequence[Node]) -> None:
    batch = Completion(tree, nodes)
    try:
        batch.run()
        for job in batch.jobs:
            finish_or_discard(tree, job)
    finally:
        batch.end()


def metacopies(tree: MergedTree) -> Generator[list[Node]]:
    """Go through the upper layer for metadata-only copies, which the caller completes; free when
    there never was any. To be closed by who does not come to the end.

    Yields a few or none at a time. Changes made meanwhile are no error, and copies may be missed
    for them, to be found the next time. Where there were none, who comes to the end has completed
    all (`all_complete`).
    """
    if tree.upper is None or not tree.has_metacopies:
        return
    nodes = _anywhere(tree) if tree.left_in is None else _where_noted(tree, tree.left_in)
    found: list[Node] = []
    left_bytes = BATCH_BYTES
    try:
        for node in nodes:
            if node is None:
                yield []
                continue
            found.append(node)
            left_bytes -= tree.getattr(node).size
            if len(found) == BATCH or left_bytes <= 0:
                yield found
                found, left_bytes = [], BATCH_BYTES
        yield found
        found = []
    finally:
        nodes.close()
        for node in found:
            if node.metacopy and node.parent is not None:
                note_left(tree, node.parent)


def _anywhere(tree: MergedTree) -> Generator[Node | None]:
    """Walk the whole layer; what is left from now on is noted, if no directory moves meanwhile."""
    tree.left_in, moves, is_done = set(), tree.epoch, False
    waiting = [tree.root]
    try:
        while waiting:
            yield from _in_directory(tree, waiting.pop(), waiting)
        is_done = tree.epoch == moves
    finally:
        if not is_done:
            tree.left_in = None


def _where_noted(tree: MergedTree, noted: set[Dir]) -> Generator[Node | None]:
    for here in list(noted):
        is_done = False
        noted.discard(here)  # noted again by who leaves data from now on
        try:
            yield from _in_directory(tree, here, None)
            is_done = True
        finally:
            if not is_done:
                noted.add(here)


def note_left(tree: MergedTree, parent: Dir) -> None:
    """Note that a directory may have a metadata-only copy."""
    if tree.left_in is not None:
        tree.left_in.add(parent)
        if len(tree.left_in) > MOST_NOTED:
            tree.left_in = None


def all_complete(tree: MergedTree) -> None:
    """Take the mark off an upper layer without such copies; its names are durable. A no-op where
    some were made since the walk that found no more."""
    if tree.left_in != set():
        return
    tree.usage.note(tree.root)
    xattrs.drop(tree.upper_layer.proc(b"."), xattrs.METACOPIES)
    tree.has_metacopies, tree.left_in = False, set()


def _in_directory(tree: MergedTree, here: Dir, below: list[Dir] | None) -> Generator[Node | None]:
    """Yield the metadata-only copies in a directory of the upper layer, and None now and then; add
    the directories in it to `below`, if that is wanted."""
    for number, entry in enumerate(_entries(tree, here), 1):
        if entry.is_dir(follow_symlinks=False):
            if below is not None:
                below.extend(_directory(tree, here, entry.name))
        elif node := _metacopy(tree, here, entry):
            yield node
        if not number % TURN:
            yield None
    yield None


def _entries(tree: MergedTree, here: Dir) -> list[os.DirEntry[bytes]]:
    try:
        return [] if here.dead else list(scan(tree.real_path(here)))
    except FileNotFoundError:
        return []


def _directory(tree: MergedTree, here: Dir, name: bytes) -> Iterator[Dir]:
    with suppress(FileNotFoundError):
        node = tree.lookup(here, name)
        if isinstance(node, Dir):
            yield node


def _metacopy(tree: MergedTree, here: Dir, entry: os.DirEntry[bytes]) -> Node | None:
    """Return the node of an entry, if it is a metadata-only copy.

    One whose data is nowhere is an error: OSError(EIO).
    """
    if not here.impure or not entry.is_file(follow_symlinks=False):
        return None
    try:
        path = tree.upper_layer.proc(here.prefix() + entry.name)
        if xattrs.get(path, xattrs.METACOPY) is None:
            return None
        node = tree.lookup(here, entry.name)
    except FileNotFoundError:
        return None
    if node.metacopy:
        return node
    if node.copied and xattrs.get(tree.real_path(node), xattrs.METACOPY) is not None:
        raise refuse(errno.EIO, entry.name)
    return None
