"""Open files, by the numbers that the kernel sends back with each request.

INVARIANT: numbers start at a random point in each process and are never reused, so a handle of a
dead worker is not found here rather than taken for another file.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from snapfs.fuse.trees import Shown
from snapfs.overlay import Node


class FileHandle:
    """One open(2) of a regular file.

    Owns a descriptor of it, which stays the same number across a copy-up; one that only reads past
    us gets one when somebody asks for it.
    """

    __slots__ = (
        "_fd",
        "_flags",
        "counted_by_node",
        "lower",
        "native",
        "node",
        "nodeid",
        "only_grows",
        "pid",
        "read_flags",
        "set_id",
        "shown",
        "slow",
        "slow_until_ns",
        "writable",
    )

    def __init__(
        self,
        shown: Shown,
        node: Node,
        nodeid: int,
        *,
        flags: int,
        pid: int,
        fd: int = -1,
        writable: bool = False,
    ) -> None:
        """A reader's `fd` is opened with `flags` when it is needed; a writer brings its own."""
        self.shown = shown
        self.node = node
        self.nodeid = nodeid
        """The number by which the kernel opened it."""
        self._fd = fd
        self._flags = flags
        self.writable = writable
        self.lower = not node.up
        """What is read by it is what its node was before it was copied up."""
        self.native = False
        """The kernel goes to the backing file past us (passing.py)."""
        self.counted_by_node = False
        """Nothing has to be known of this open but its node: it needs no number of its own."""
        self.pid = pid
        """Who opened it; asked for its rights when it writes to a set-id file."""
        self.set_id = False
        """A write may have to take set-id bits away."""
        self.only_grows = False
        """The file was append-only when it was opened for writing: nothing else is taken."""
        self.slow = False
        """Reads may wait and cannot be told not to."""
        self.read_flags = os.RWF_NOWAIT
        self.slow_until_ns = 0
        """Until then (monotonic) writes go to a thread."""

    @property
    def fd(self) -> int:
        """A descriptor of the file as the node has it now."""
        return self.open()

    def open(self) -> int:
        """Return the descriptor, opened if need be."""
        if self._fd < 0:
            self._fd = self.shown.tree.open(self.node, self._flags)
        return self._fd

    @property
    def reads_past_copy(self) -> bool:
        """Whether the kernel reads the lower file by it although the node has a copy now."""
        return self.native and self.lower and self.node.up

    @property
    def has_fd(self) -> bool:
        return self._fd >= 0

    def reopen(self, fd: int) -> None:
        """Go on with another descriptor, under the number of the one before; owns `fd`."""
        if self._fd < 0:
            self._fd = fd
            return
        os.dup2(fd, self._fd, inheritable=False)
        os.close(fd)

    def close(self) -> None:
        """Close the descriptor, if there is one. Blocks for a big removed file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Handles:
    """The table of open files."""

    def __init__(self) -> None:
        self._next = int.from_bytes(os.urandom(4), "little") << 31 | 1
        self._open: dict[int, FileHandle] = {}
        self._of_node: dict[int, set[int]] = {}

    def add(self, handle: FileHandle, number: int | None = None) -> int:
        """Keep a handle and return its number: a new one, or that which a dead worker gave out."""
        if number is None:
            number = self._next
            self._next += 1
        self._open[number] = handle
        self._of_node.setdefault(handle.node.ino, set()).add(number)
        return number

    def get(self, number: int) -> FileHandle:
        """Return a handle; ESTALE for one that a dead worker gave out."""
        try:
            return self._open[number]
        except KeyError:
            raise OSError(errno.ESTALE, "opened by an earlier worker") from None

    def find(self, number: int) -> FileHandle | None:
        """Return a handle; None for 0 and for one that a dead worker gave out."""
        return self._open.get(number)

    def pop(self, number: int) -> FileHandle | None:
        """Take a handle out of the table."""
        handle = self._open.pop(number, None)
        if handle is not None:
            siblings = self._of_node[handle.node.ino]
            siblings.discard(number)
            if not siblings:
                del self._of_node[handle.node.ino]
        return handle

    def of_node(self, ino: int) -> list[FileHandle]:
        """Return the open handles of one node."""
        return [self._open[number] for number in self._of_node.get(ino, ())]

    def __iter__(self) -> Iterator[FileHandle]:
        return iter(list(self._open.values()))

    def __len__(self) -> int:
        return len(self._open)
