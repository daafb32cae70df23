"""Copies that are seen before their data is durable.

Where it may be told after a power cut which of a copy's data never reached the disk, a copy-up does
not wait for the disk: the lower file has that data still, and it is put in (refill.py). Meanwhile
the work directory has a mark for each such copy, another name of one empty file:

    tn                  the file of that name; in it is the boot during which it was made
    tn<low>.<size>      copy of the lower file of that number, which has so many bytes (hexadecimal)

INVARIANT a mark is made before the first name of its copy, and goes after the data is durable and
before anything takes data of the copy away (a cut, a hole): the file system's journal keeps that
order over a power cut. So what a marked copy lacks is what never reached the disk.

Releases that know nothing of marks remove them when they open the tree, as all that begins so.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, TypeAlias

from . import identity, xattrs
from .filecalls import begin_writing
from .node import GONE, Node

Way: TypeAlias = Literal["later", "cloned", "at once"]
"""When copied data is made durable: `later`; at once, but for what shares the lower file's blocks
(`cloned`); always at once."""

SHARED = b"tn"
BOOT = Path("/proc/sys/kernel/random/boot_id")
MOST_MARKS = 30_000
"""ext4 allows a file 65,000 names."""
_TRIES = 3
_JOURNALED = frozenset({"data=ordered", "data=journal"})


def way_of(device: int) -> Way:
    """Say what a file system allows, by the number of its device.

    ext4 with a journal and data=ordered (or data=journal) has holes or an earlier end where data is
    missing, never other data; xfs makes clones durable in order with the names that they get.
    """
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        name = Path("/sys/dev/block", number).resolve(strict=True).name
        if Path("/sys/fs/xfs", name).exists():
            return "cloned"
        options = set(Path("/proc/fs/ext4", name, "options").read_text().split())
        journals = [it for it in os.listdir("/proc/fs/jbd2") if it.startswith(f"{name}-")]
    except OSError:
        return "at once"
    in_memory = any(it.startswith("dax") and it != "dax=never" for it in options)
    return "later" if journals and options & _JOURNALED and not in_memory else "at once"


def name_of(low: int, size_bytes: int) -> bytes:
    """The name of a mark."""
    return b"%s%x.%x" % (SHARED, low, size_bytes)


def parse(name: bytes) -> tuple[int, int] | None:
    """Return number and size that a name in the work directory tells; None when it is no mark."""
    low, dot, size = name[len(SHARED) :].partition(b".")
    if not name.startswith(SHARED) or not dot:
        return None
    try:
        return int(low, 16), int(size, 16)
    except ValueError:
        return None


class Unsynced:
    """The marks of one tree. Not thread-safe, but for `flush`."""

    __slots__ = ("_device", "_lock", "_marks", "_way", "_work", "sync")

    def __init__(self, work: int, names: Iterable[bytes], *, device: int, sync: bool) -> None:
        """`work` is our directory; `names` the marks in it, which stay until the next start."""
        self._work = work
        self._device = device
        self.sync = sync
        """Copies are to be durable at all."""
        self._way: Way | None = None
        self._lock = -1
        """Held while there may be marks: nobody refills then."""
        self._marks: dict[int, Mark] = {}
        for name in names:
            found = parse(name)
            if found is not None:
                self._marks[found[0]] = Mark(name, found[1], None)
        if self._marks:
            self._hold(fcntl.LOCK_SH)

    @property
    def way(self) -> Way:
        """When copied data is made durable here."""
        if self._way is None:
            self._way = way_of(self._device)
        return self._way

    def takes(self, low: int) -> bool:
        """Whether the copy of a file may be made durable later."""
        return (
            self.sync
            and identity.is_main(low)
            and len(self._marks) < MOST_MARKS
            and self.way == "later"
            and self._hold(fcntl.LOCK_SH | fcntl.LOCK_NB)
        )

    def _hold(self, how: int) -> bool:
        """Keep others from refilling; False while they do and one would have to wait."""
        if self._lock >= 0:
            return True
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._work)
        try:
            fcntl.flock(fd, how)
        except BlockingIOError:
            os.close(fd)
            return False
        self._lock = fd
        return True

    def mark(self, low: int, size_bytes: int, node: Node) -> None:
        """Say that a copy is about to be seen whose data is not durable."""
        name = name_of(low, size_bytes)
        with contextlib.suppress(FileExistsError):
            try:
                self._link(name)
            except FileNotFoundError:
                self._make_shared()
                self._link(name)
        self._marks[low] = Mark(name, size_bytes, node)

    def _link(self, name: bytes) -> None:
        fd = self._work
        os.link(SHARED, name, src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)

    def _make_shared(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        fd = os.open(SHARED, flags, 0o600, dir_fd=self._work)
        try:
            os.write(fd, BOOT.read_bytes())
        finally:
            os.close(fd)

    def covers(self, low: int, size_bytes: int = 0) -> bool:
        """Whether a copy is marked, and would lack data that it should if it were cut to a size."""
        found = self._marks.get(low)
        return found is not None and size_bytes < found.size_bytes

    def drop(self, low: int) -> None:
        """Take a mark away: the data is durable, or there is no copy. A no-op without one."""
        found = self._marks.pop(low, None)
        if found is not None:
            remove(self._work, found.name, last=not self._marks)

    def __len__(self) -> int:
        return len(self._marks)

    # Making copies durable

    def pending(self, most: int) -> list[Pending]:
        """Open copies that were made since the tree was opened, `most` at a time."""
        found: list[Pending] = []
        for low, mark in list(self._marks.items()):
            if mark.node is not None and len(found) < most:
                if mark.node.stash == GONE:
                    self.drop(low)
                elif (fd := self._open(low, mark)) is not None:
                    found.append(Pending(low, mark, fd))
        return found

    def _open(self, low: int, mark: Mark) -> int | None:
        """Open a copy; one that is not where it should be has moved past us and is tried again."""
        node = mark.node
        if node is None:
            return None
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME | os.O_CLOEXEC
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(node.tree.real_path(node), flags)
            if copied_from(fd) == low:
                return fd
            os.close(fd)
        mark.tries += 1
        if mark.tries == _TRIES:
            mark.node = None
        return None

    def settled(self, done: Pending, error: OSError | None) -> None:
        """Take the mark of a copy away that `flush` has made durable, unless it failed."""
        if self._marks.get(done.low) is done.mark:
            if error is None:
                self.drop(done.low)
            else:  # the kernel does not try again: a later start looks at it
                done.mark.node = None

    def close(self) -> None:
        """Let go of the marks, which stay on disk. Idempotent."""
        self._marks = {}
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


class Mark:
    """A copy that may not be durable."""

    __slots__ = ("name", "node", "size_bytes", "tries")

    def __init__(self, name: bytes, size_bytes: int, node: Node | None) -> None:
        self.name = name
        self.size_bytes = size_bytes
        self.node = node
        """None for one of an earlier opening, or that failed: the next start looks at it."""
        self.tries = 0


class Pending:
    """An open copy, to be made durable."""

    __slots__ = ("fd", "low", "mark")

    def __init__(self, low: int, mark: Mark, fd: int) -> None:
        self.low, self.mark, self.fd = low, mark, fd


def flush(pending: list[Pending]) -> list[OSError | None]:
    """Make copies durable and close them; return the error of each. Blocks; safe in any thread.

    File by file: a syncfs would wait for what others wrote, and take away the one report of an
    error that a commit has to find (snapshots/durability.py).
    """
    errors: list[OSError | None] = []
    try:
        for it in pending:
            begin_writing(it.fd)
        for it in pending:
            try:
                os.fsync(it.fd)
                errors.append(None)
            except OSError as error:
                errors.append(error)
    finally:
        for it in pending:
            os.close(it.fd)
    return errors


def copied_from(fd: int) -> int | None:
    """Return the number that an open copy carries; None for any other file."""
    try:
        value = os.getxattr(fd, xattrs.INO)
    except OSError as error:
        if error.errno in xattrs.ABSENT:
            return None
        raise
    return int(value) if value.isdigit() else None


def remove(work: int, name: bytes, *, last: bool) -> None:
    """Remove a mark; with the `last` one goes the file that it is a name of."""
    for it in (name, SHARED) if last else (name,):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(it, dir_fd=work)
