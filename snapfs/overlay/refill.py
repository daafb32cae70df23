"""Puts into copies what a power cut kept from the disk: the lower files have it still.

A marked copy (unsynced.py) has all that the file system wrote to the disk; where it has a hole, or
ends early, nothing was written. There the lower file's data is what the copy had before anybody
changed it. So each block has then what a program wrote, or what the lower file has: no other than
on a local file system, for a program that did not sync. What a program synced is no hole.

A copy that lacks nothing is left alone, so this may be done again at any time while nobody has the
tree.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import unsynced, xattrs
from .layer import Layer, scan
from .sealing import open_sealed, open_together
from .syscalls import set_times_of

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OWN = "snapfs"
_PIECE_BYTES = 1 << 20
_CAPABILITY = "security.capability"


@dataclass(frozen=True, slots=True)
class Lacking:
    """A copy that may lack data of the lower file, and why that could not be put in."""

    path: str
    """Below the upper layer, or in the work directory."""
    why: str


def is_due(work: Path) -> bool:
    """Whether a work directory may have marks; costs one stat."""
    return os.path.lexists(work / _OWN / os.fsdecode(unsynced.SHARED))


def refill(
    upper: Path, work: Path, lowers: Sequence[Path], *, first: Callable[[], object] = bool
) -> list[Lacking]:
    """Put in what marked copies lack, make them durable, and take the marks away.

    `first` is called before the first change of a layer. A no-op without marks, and while somebody
    has the tree open: then the page cache has what the disk lacks, unless an earlier call failed.
    What is returned keeps its mark.
    Blocks; OSError when the layers cannot be read.
    """
    if not is_due(work):
        return []
    with contextlib.ExitStack() as stack:
        own = os.open(work / _OWN, _DIRECTORY)
        stack.callback(os.close, own)
        try:
            fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if _is_of_this_boot(own):
                return []
            return [Lacking("", "an earlier start could not do it, and the tree is in use now")]
        top, other = open_together(os.fsencode(upper), os.fsencode(work / _OWN))
        stack.callback(os.close, other)
        layers = [Layer(upper, top)]
        stack.callback(layers[0].close)
        for path in lowers:
            layers.append(Layer(path, open_sealed(os.fsencode(path))))
            stack.callback(layers[-1].close)
        return _Refill(own, layers[0], layers[1:], first).run()


class _Refill:
    """One look at a tree."""

    def __init__(
        self, own: int, upper: Layer, lowers: Sequence[Layer], first: Callable[[], object]
    ) -> None:
        self._own = own
        self._upper = upper
        self._lowers = lowers
        self._first: Callable[[], object] | None = first
        self._marks = {
            found[0]: (name, found[1])
            for name in map(os.fsencode, os.listdir(own))
            if (found := unsynced.parse(name)) is not None
        }
        self._sources: dict[int, tuple[Layer, bytes]] | None = None
        """Where lower files are, by number, once they were looked for."""

    def run(self) -> list[Lacking]:
        lacking = {}
        keeps_cache = _is_of_this_boot(self._own)
        for low, path, fd in self._copies():
            try:
                self._make_whole(low, fd, keeps_cache=keeps_cache)
            except OSError as error:
                lacking[low] = Lacking(os.fsdecode(path), error.strerror or str(error))
        for low, (name, _) in self._marks.items():
            if low not in lacking:
                unsynced.remove(self._own, name, last=False)
        if not lacking:
            unsynced.remove(self._own, unsynced.SHARED, last=True)
        return list(lacking.values())

    # The copies

    def _copies(self) -> Iterator[tuple[int, bytes, int]]:
        """Yield number, path and a descriptor, which is closed then, of each marked copy."""
        waiting = set(self._marks)
        for low in self._marks:
            with contextlib.suppress(FileNotFoundError):
                yield from self._one(waiting, b"l%x" % low, self._own, b"l%x" % low)
        prefixes = [b""]
        while waiting and prefixes:
            prefix = prefixes.pop()
            here = self._upper.proc(prefix[:-1] or b".")
            may_have = xattrs.get(here, xattrs.IMPURE) is not None
            for entry in list(scan(here)):
                path = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    prefixes.append(path + b"/")
                elif may_have and entry.is_file(follow_symlinks=False):
                    yield from self._one(waiting, path, *self._upper.at(path))

    def _one(
        self, waiting: set[int], shown: bytes, at: int, path: bytes
    ) -> Iterator[tuple[int, bytes, int]]:
        fd = os.open(path, _READ, dir_fd=at)
        try:
            low = unsynced.copied_from(fd)
            if low in waiting:
                waiting.remove(low)
                yield low, shown, fd
        finally:
            os.close(fd)

    # One copy

    def _make_whole(self, low: int, copy: int, *, keeps_cache: bool) -> None:
        """Put in what a copy lacks, and make it durable."""
        os.fsync(copy)
        if not keeps_cache:
            os.posix_fadvise(copy, 0, 0, os.POSIX_FADV_DONTNEED)
        size = self._marks[low][1]
        holes = list(holes_in(copy, size))
        if not holes:
            return
        with self._source(low) as source:
            if os.fstat(source).st_size != size:
                raise OSError(errno.EIO, "its lower file has another size than it had")
            parts = [part for hole in holes for part in data_in(source, *hole)]
            if parts or os.fstat(copy).st_size < size:
                self._fill(source, copy, parts, size)

    @contextlib.contextmanager
    def _source(self, low: int) -> Iterator[int]:
        """Open the lower file of a number."""
        if self._sources is None:
            self._sources = self._find_sources()
        if low not in self._sources:
            raise OSError(errno.ENOENT, "its lower file is not there")
        layer, path = self._sources[low]
        at, rest = layer.at(path)
        fd = os.open(rest, _READ, dir_fd=at)
        try:
            yield fd
        finally:
            os.close(fd)

    def _find_sources(self) -> dict[int, tuple[Layer, bytes]]:
        found: dict[int, tuple[Layer, bytes]] = {}
        for layer in self._lowers:
            prefixes = [b""] if layer.device == self._upper.device else []
            while prefixes and len(found) < len(self._marks):
                prefix = prefixes.pop()
                for entry in list(scan(layer.proc(prefix[:-1] or b"."))):
                    if entry.is_dir(follow_symlinks=False):
                        prefixes.append(prefix + entry.name + b"/")
                    elif entry.inode() in self._marks and entry.is_file(follow_symlinks=False):
                        found[entry.inode()] = layer, prefix + entry.name
        return found

    def _fill(self, source: int, copy: int, parts: list[tuple[int, int]], size_bytes: int) -> None:
        """Copy parts of the lower file, and keep what a write takes away: times, set-id bits and
        capabilities."""
        if self._first is not None:
            self._first()
            self._first = None
        before = os.fstat(copy)
        capability = _capability(copy)
        target = os.open(b"/proc/self/fd/%d" % copy, _WRITE & ~os.O_NOFOLLOW)
        try:
            if before.st_size < size_bytes:
                os.ftruncate(target, size_bytes)
            for start, end in parts:
                _copy(source, target, start, end)
            if capability is not None:
                os.setxattr(target, _CAPABILITY, capability)
            os.fchmod(target, stat.S_IMODE(before.st_mode))
            set_times_of(target, before.st_atime_ns, before.st_mtime_ns)
            os.fsync(target)
        finally:
            os.close(target)


def _is_of_this_boot(own: int) -> bool:
    """Whether the page cache may have what the disk lacks, as the machine did not stop.

    What it has of copies of an earlier boot was read from the disk since: holes, as zeros.
    """
    fd = os.open(unsynced.SHARED, _READ, dir_fd=own)
    try:
        return os.read(fd, 64) == unsynced.BOOT.read_bytes()
    finally:
        os.close(fd)


def holes_in(fd: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield the parts (from, to) of a file's first bytes for which there is no data, in order;
    what is behind its end is one."""
    end = os.fstat(fd).st_size
    at = 0
    for start, stop in data_in(fd, 0, min(end, size_bytes)):
        if start > at:
            yield at, start
        at = stop
    if at < size_bytes:
        yield at, size_bytes


def data_in(fd: int, at: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the parts (from, to) of a range for which a file has data, in order."""
    while at < end:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        if start >= end:
            return
        at = min(os.lseek(fd, start, os.SEEK_HOLE), end)
        yield start, at


def _copy(source: int, target: int, at: int, end: int) -> None:
    while at < end:
        data = os.pread(source, min(end - at, _PIECE_BYTES), at)
        if not data:
            raise OSError(errno.EIO, "its lower file became shorter")
        at += os.pwrite(target, data, at)


def _capability(fd: int) -> bytes | None:
    try:
        return os.getxattr(fd, _CAPABILITY)
    except OSError as error:
        if error.errno in xattrs.ABSENT:
            return None
        raise
