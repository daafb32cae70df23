"""What an upper layer takes on disk, kept by the changes that pass through its tree.

The answer is what a walk over the layer would give (`du`: st_blocks of each distinct inode, the
root included), at a cost that depends on what changed lately and not on the number of files.

A file's blocks move without us: space is allocated when data is written back, preallocated space
is taken back, the kernel writes a file in our place. So a change is not followed by arithmetic but
by a note: before a file changes, what it counts for is remembered (`note`), and when somebody asks,
each noted file is looked at again. A file stays noted while it may move: as long as somebody has it
open for writing, and until its data was synced after that (`resting`, `rest`).

INVARIANT: `_blocks` and `_inodes` are the sums over all files of what each is counted with; for a
file that is not noted that is what stat(2) says of it.
Whiteouts that are links to the work directory's shared one are one file, looked at when asked.

While the layer is counted anew (`begin`, a sync, a walk, `finish`), noted files count for nothing
before the end, and the walk's figures for them are left out. What cannot be followed makes the
count unknown (`spoil`) until it was counted again. All of this belongs to the tree's thread.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from snapfs.model import Usage

from .layer import is_whiteout, scan
from .node import GONE, Dir, Node
from .types import BLOCK_BYTES

if TYPE_CHECKING:
    from .core import MergedTree


class Noted:
    """One file that may change, and what the sums hold for it."""

    __slots__ = ("blocks", "changes", "fd", "held_blocks", "held_inodes", "inodes")

    def __init__(self, blocks: int = 0, inodes: int = 0) -> None:
        self.blocks = blocks
        self.inodes = inodes
        self.held_blocks = 0
        self.held_inodes = 0
        """What it takes in the work directory: removed, but still in use."""
        self.changes = 0
        """Goes up with each change, so that a sync is known to have come after the last."""
        self.fd = -1
        """O_PATH, once it has only names that no node knows."""


class Before(NamedTuple):
    """What stat(2) said of a file before somebody could write to it."""

    st_ino: int
    st_blocks: int
    st_nlink: int


@dataclass(frozen=True, slots=True)
class Resting:
    """A noted file that nobody has open for writing, to be let go once it is synced."""

    node: Node
    path: bytes
    changes: int
    native: bool
    """Still mapped, maybe: to be let go only when nobody can write to it (F_SETLEASE tells)."""


class UsageCount:
    """The usage of one tree's upper layer."""

    def __init__(self, tree: MergedTree) -> None:
        self._tree = tree
        self._following = False
        self._counting = False
        self._blocks = 0
        self._inodes = 0
        self.held_blocks = 0
        self.held_inodes = 0
        self._noted: dict[Node, Noted] = {}
        self._writers: dict[Node, int] = {}
        self._native: set[Node] = set()
        """Written by the kernel in our place, and maybe mapped still; kept whatever is spoiled."""
        self._nameless: dict[int, Noted] = {}
        """Noted files without a node, by real inode number."""
        self._touched: set[int] = set()
        """Real inode numbers of what was noted during a count, which is to leave them out."""
        self._whiteouts: set[int] = set()
        """Whiteouts made during a count, which the sums hold."""
        self.generation = 0
        """Counts the counts: a walk belongs to the one that it was made for."""
        self._fresh: set[Node] = set()
        """Noted or changed since the last look."""

    # State

    @property
    def known(self) -> bool:
        """The sums are true; if not, a walk has to answer."""
        return self._following and not self._counting

    @property
    def counting(self) -> bool:
        """A count was begun and not finished."""
        return self._counting

    @property
    def noted(self) -> int:
        """How many files are looked at for an answer."""
        return len(self._noted) + len(self._nameless)

    @property
    def in_use(self) -> bool:
        """Somebody has a file open for writing."""
        return bool(self._writers)

    def nodes(self) -> frozenset[Node]:
        """Return the nodes that are noted."""
        return frozenset(self._noted)

    def take(self, blocks: int, inodes: int) -> None:
        """Begin to follow changes, from what an earlier count left (`sums`)."""
        self._clear()
        self._following, self._counting = True, False
        self._blocks, self._inodes = blocks, inodes

    def begin(self) -> None:
        """Begin to follow changes, and a count: a sync and a walk are to follow, then `finish`.

        Without the sync, blocks of files that were written before move later, and unseen.
        """
        self._clear()
        self.generation += 1
        self._following = self._counting = True
        for node in self._writers.keys() | self._native:
            self.note(node)

    def finish(self, blocks_of: Mapping[int, int]) -> bool:
        """Take in a walk's figures, by real inode number; False when it has to be done again."""
        if not self._counting:
            return False
        left_out = self._touched
        shared = self._shared_whiteout()
        if shared is not None:
            left_out.add(shared.st_ino)
        for ino, blocks in blocks_of.items():
            if ino not in left_out:
                self._blocks += blocks
                self._inodes += 1
        self._counting = False
        self._touched = set()
        self._whiteouts.clear()
        return True

    def spoil(self) -> None:
        """Something happened that notes do not cover: the layer must be counted again."""
        if self._following:
            self._clear()

    def _clear(self) -> None:
        for entry in self._nameless.values():
            os.close(entry.fd)
        self._following = self._counting = False
        self._blocks = self._inodes = self.held_blocks = self.held_inodes = 0
        self._noted, self._nameless, self._fresh = {}, {}, set()
        self._touched, self._whiteouts = set(), set()

    # Changes

    def note(self, node: Node, before: Before | None = None) -> None:
        """Say that a file of the upper layer is about to change; free when it is noted already.

        With `before` it may have changed already: that is what it was.
        """
        if not self._following or not node.is_above:
            return
        self._fresh.add(node)
        entry = self._noted.get(node)
        if entry is not None:
            entry.changes += 1
            return
        real = before or self._stat(node)
        if real is None:
            return
        self._noted[node] = self._entry(node, real)

    def _entry(self, node: Node, real: os.stat_result | Before) -> Noted:
        """Begin an entry with what the sums hold for the file."""
        if real.st_ino in self._nameless:
            entry = self._nameless.pop(real.st_ino)
            os.close(entry.fd)
            entry.fd = -1
            return entry
        if self._counting:
            self._touched.add(real.st_ino)
            return Noted()
        return Noted(real.st_blocks, 1) if _names(node, real) else Noted()

    def new(self, node: Node, real_ino: int | None = None) -> None:
        """Say that a file has just come into the upper layer, which counts for nothing yet; its
        real inode number spares a look at it."""
        if not self._following:
            return
        self._fresh.add(node)
        if node in self._noted:
            return
        if self._counting and real_ino is not None:
            self._touched.add(real_ino)
        elif self._counting and (real := self._stat(node)) is not None:
            self._touched.add(real.st_ino)
        self._noted[node] = Noted()

    def passed(self, real_ino: int) -> None:
        """Say that there was a file in the upper layer, which is gone again."""
        if self._counting:
            self._touched.add(real_ino)

    def lost(self, node: Node, before: Before) -> None:
        """Say that a file has lost its only name, when it was `before` that, and is gone: `note`
        and `losing` in one."""
        self.note(node, before)
        self._fresh.discard(node)
        entry = self._noted.pop(node, None)
        if entry is not None:
            self._native.discard(node)
            self._hold(entry, 0, 0)
            self._count(entry, 0, 0)

    def opened(self, node: Node, *, native: bool = False, before: Before | None = None) -> None:
        """Say that a file can be written from now on, with `native` by the kernel in our place.

        To be called once for each `closed`, before the first write or with what the file was
        `before` that, and then before anything else is said of it.
        """
        self._writers[node] = self._writers.get(node, 0) + 1
        self.note(node, before)
        if native:
            self._native.add(node)

    def closed(self, node: Node) -> None:
        """Say that one who could write a file is gone."""
        left = self._writers.get(node, 0) - 1
        if left > 0:
            self._writers[node] = left
        else:
            self._writers.pop(node, None)
        self.note(node)

    @contextlib.contextmanager
    def losing(self, node: Node) -> Iterator[None]:
        """Say that the block takes away the last way to a file; an OSError in it, that it did not.

        Names may stay that nobody knows.
        """
        self._lose(node)
        try:
            yield
        except OSError:
            self.new(node)
            raise

    def _lose(self, node: Node) -> None:
        self._fresh.discard(node)
        entry = self._noted.pop(node, None)
        if entry is None:
            return
        self._native.discard(node)
        self._hold(entry, 0, 0)
        real = self._stat(node)
        if real is None or isinstance(node, Dir) or real.st_nlink == 1:
            self._count(entry, 0, 0)
            return
        fd, path = self._tree.where(node)
        entry.fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        entry.changes = 1  # cleared when a sync begins
        self._nameless[real.st_ino] = entry

    def moved(self) -> None:
        """Say that a directory changed its place: a walk under way may miss what is in it."""
        if self._counting:
            self.spoil()

    def whiteout_made(self, real: os.stat_result | Before) -> None:
        """Say that a whiteout is a file of its own, as a rename leaves it, or is no longer the
        shared one: `real` is what lstat said of it."""
        if not self._following:
            return
        self._blocks += real.st_blocks
        self._inodes += 1
        if self._counting:
            self._touched.add(real.st_ino)
            self._whiteouts.add(real.st_ino)

    def whiteout_gone(self, real: os.stat_result) -> None:
        """Say that a whiteout went, which `real` is what lstat said of."""
        if not self._following:
            return
        if real.st_nlink > 1:
            shared = self._shared_whiteout()
            if shared is None or shared.st_ino != real.st_ino:
                self.spoil()  # one of several names of a former shared one
            return
        if self._counting and real.st_ino not in self._whiteouts:
            self._touched.add(real.st_ino)
            return
        self._whiteouts.discard(real.st_ino)
        self._blocks -= real.st_blocks
        self._inodes -= 1

    # Answers

    def usage(self) -> Usage | None:
        """Return what a walk would find now; None when the sums are not known.

        Costs one stat for each noted file; those that cannot move by themselves are let go.
        """
        if not self.known:
            return None
        for node in list(self._noted):
            self._look(node)
            if node.type != stat.S_IFREG:
                self._let_go(node)
        for entry in self._nameless.values():
            self._count(entry, os.fstat(entry.fd).st_blocks, 1)
        self._fresh.clear()
        return self._total() if self.known else None

    def recent(self) -> Usage | None:
        """As usage, but look only at what was changed through us since the last look."""
        if not self.known:
            return None
        for node in self._fresh:
            self._look(node)
        self._fresh.clear()
        return self._total()

    def sums(self) -> tuple[int, int]:
        """Return the blocks and inodes, as of the last look, that a later `take` goes on from."""
        return self._blocks, self._inodes

    def _total(self) -> Usage:
        shared = self._shared_whiteout()
        whiteouts = 1 if shared is not None and shared.st_nlink > 1 else 0
        blocks = self._blocks + (shared.st_blocks if shared is not None and whiteouts else 0)
        return Usage(blocks * BLOCK_BYTES, self._inodes + whiteouts)

    def _look(self, node: Node) -> None:
        """Count a noted file with what it takes now."""
        entry = self._noted.get(node)
        if entry is None:
            return
        real = self._stat(node)
        if real is None:
            self._count(entry, 0, 0)
            self._hold(entry, 0, 0)
        elif _names(node, real):
            self._count(entry, real.st_blocks, 1)
            self._hold(entry, 0, 0)
        else:
            self._count(entry, 0, 0)
            self._hold(entry, real.st_blocks, 1)

    def _stat(self, node: Node) -> os.stat_result | None:
        """Return what stat(2) says of a node's file in the upper layer; None when it is gone."""
        if node.stash == GONE:
            return None
        try:
            fd, path = self._tree.where(node)
            return os.stat(path, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _count(self, entry: Noted, blocks: int, inodes: int) -> None:
        self._blocks += blocks - entry.blocks
        self._inodes += inodes - entry.inodes
        entry.blocks, entry.inodes = blocks, inodes

    def _hold(self, entry: Noted, blocks: int, inodes: int) -> None:
        self.held_blocks += blocks - entry.held_blocks
        self.held_inodes += inodes - entry.held_inodes
        entry.held_blocks, entry.held_inodes = blocks, inodes

    def _let_go(self, node: Node) -> None:
        if not self._noted[node].held_inodes:
            del self._noted[node]

    def _shared_whiteout(self) -> os.stat_result | None:
        return self._tree.work.shared_whiteout()

    # Letting go

    def moving(self) -> list[tuple[bytes, int]] | None:
        """Return files whose blocks may still move: path in the upper layer, blocks as counted.

        All that there are, right after `usage`; None when one has no path of its own there.
        """
        files = [(node, entry) for node, entry in self._noted.items() if entry.inodes]
        if self._nameless or any(it.stash is not None or it.parent is None for it, _ in files):
            return None
        return [(self._tree.upper_path(node), entry.blocks) for node, entry in files]

    def resting(self) -> list[Resting]:
        """Return the files that a sync from now on makes quiet; hand them to `rest` after it."""
        if not self.known:
            return []
        for entry in self._nameless.values():
            entry.changes = 0
        return [
            Resting(node, self._tree.real_path(node), entry.changes, node in self._native)
            for node, entry in self._noted.items()
            if node not in self._writers and not entry.held_inodes and node.stash != GONE
        ]

    def rest(self, synced: list[Resting]) -> None:
        """Let go of files that were synced, and are as they were before that."""
        if not self.known:
            return
        for item in synced:
            entry = self._noted.get(item.node)
            if entry is None or entry.changes != item.changes or item.node in self._writers:
                continue
            self._look(item.node)
            self._let_go(item.node)
            self._native.discard(item.node)
        for ino, entry in list(self._nameless.items()):
            if not entry.changes:
                self._count(entry, os.fstat(entry.fd).st_blocks, 1)
                os.close(entry.fd)
                del self._nameless[ino]

    def close(self) -> None:
        """Stop following. Idempotent."""
        self._clear()


def _names(node: Node, real: os.stat_result | Before) -> int:
    """How many names a file has in the upper layer; the work directory has one more at most."""
    if isinstance(node, Dir):
        return 0 if node.dead or node.stash is not None else 1
    return real.st_nlink - (node.stash is not None)


def whiteouts_in(path: bytes) -> Iterator[os.stat_result]:
    """Yield what lstat says of each whiteout in a directory."""
    for entry in scan(path):
        with contextlib.suppress(FileNotFoundError):
            real = entry.stat(follow_symlinks=False)
            if is_whiteout(real):
                yield real
