"""Making a layer directory out of a manifest and chunks; again, after being cut short, goes on.

There is no journal: what is in its place and has the right digest need not come again. So a process
may die at any point, and so may the host. Nothing here is durable, or right for others to see,
before `finish` has returned: it reads the directory anew and compares it with the manifest.

The order: names and files are made, each file from what lies below it where there is such a file;
chunks that other layers hold are copied from there; what is still missing is asked for and put;
then holes, owners, attributes, modes and times are set, of directories last.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from snapfs.model import DataLoss, FailedPrecondition
from snapfs.overlay.syscalls import copy_data
from snapfs.transfer import manifest, packing, places, scanning, sparse
from snapfs.transfer.manifest import Chunk, Digest, Entry
from snapfs.transfer.packing import Packed
from snapfs.transfer.places import Place


class Spot(NamedTuple):
    """Where a chunk belongs."""

    path: bytes
    chunk: Chunk


class Rebuilding:
    """One layer that comes into being. Not thread-safe; close it."""

    def __init__(self, layer: Path, source: Path, below: Sequence[Path]) -> None:
        """`source` is the file of the manifest, `below` the layers under this one, parent first."""
        self._layer = layer
        self._source = source
        self._below_paths = below
        self._below = [Place(path) for path in below]
        self._place = Place(layer)
        self._missing: dict[bytes, list[Spot]] = {}
        self._file: tuple[bytes, int] | None = None

    def lay_out(self) -> None:
        """Make every name, and of each file what a layer below has of it. Raises OSError."""
        for entry in self.entries():
            if not entry.path:
                continue
            if entry.link:
                self._link(entry)
            elif stat.S_ISDIR(entry.mode):
                self._make_directory(entry.path)
            elif entry.is_file:
                self._make_file(entry)
            else:
                self._make_other(entry)

    def find_missing(self) -> int:
        """Find which chunks are not in their places; return how many different ones there are."""
        self._missing = {}
        for entry in self.entries():
            if not entry.chunks:
                continue
            fd = self._open(entry.path)
            for chunk in entry.chunks:
                spots = self._missing.get(chunk.digest)
                if spots is not None:
                    spots.append(Spot(entry.path, chunk))
                elif not packing.matches(chunk, os.pread(fd, chunk.size_bytes, chunk.offset)):
                    self._missing[chunk.digest] = [Spot(entry.path, chunk)]
        return len(self._missing)

    @property
    def missing(self) -> list[bytes]:
        """Digests of the chunks that are still to be put, in the order of their places."""
        return list(self._missing)

    def fill(self, find: Callable[[frozenset[bytes]], Iterator[tuple[bytes, bytes]]]) -> None:
        """Put what `find` yields, digest and data, of the chunks that are missing."""
        if self._missing:
            for digest, data in find(frozenset(self._missing)):
                spots = self._missing.get(digest)
                if spots is not None and packing.matches(spots[0].chunk, data):
                    self._put(digest, data)

    def put(self, packed: Packed) -> int:
        """Unpack a chunk that was asked for and write it; return its size, 0 when it was there.

        Raises DataLoss when it is not what it claims to be; then nothing was written.
        """
        spots = self._missing.get(packed.digest)
        if spots is None:
            return 0
        base = self._base(spots[0], packed.base - 1) if packed.base else b""
        self._put(packed.digest, packing.unpack(spots[0].chunk, packed.data, base))
        return spots[0].chunk.size_bytes

    def finish(self, digest: Digest) -> None:
        """Set all that is not data, then read everything anew and compare.

        Raises DataLoss when the directory is not what the manifest names, FailedPrecondition when
        chunks are missing.
        """
        if self._missing:
            raise FailedPrecondition(f"{len(self._missing)} chunks of a layer are still missing")
        self._close_file()
        self._set_all()
        self._verify(digest)

    def entries(self) -> Iterator[Entry]:
        """Yield the entries of the manifest."""
        with self._source.open("rb") as file:
            yield from manifest.read(file)

    def close(self) -> None:
        """Close what is open; what was made stays."""
        self._close_file()
        self._place.close()
        for place in self._below:
            place.close()

    # Names and files

    def _make_directory(self, path: bytes) -> None:
        directory, name = self._place.parent(path)
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=directory)

    def _link(self, entry: Entry) -> None:
        """Links have two parents, of which a Place keeps one open."""
        above, name = self._place.parent(entry.link)
        source = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        try:
            directory, name = self._place.parent(entry.path)
            with suppress(FileExistsError):
                os.link(b"/proc/self/fd/%d" % source, name, dst_dir_fd=directory)
        finally:
            os.close(source)

    def _make_other(self, entry: Entry) -> None:
        directory, name = self._place.parent(entry.path)
        with suppress(FileExistsError):
            if stat.S_ISLNK(entry.mode):
                os.symlink(entry.target, name, dir_fd=directory)
            else:
                os.mknod(name, stat.S_IFMT(entry.mode) | 0o600, entry.rdev, dir_fd=directory)

    def _make_file(self, entry: Entry) -> None:
        """Make a file of the right size; a new one begins as what a layer below has.

        One that is there may have been left in the middle of that.
        """
        is_new = not self._place.has(entry.path)
        flags = os.O_CREAT | os.O_EXCL if is_new else 0
        fd = self._place.open(entry.path, os.O_RDWR | flags)
        try:
            if is_new and entry.chunks:
                self._begin_with_base(entry, fd)
            os.ftruncate(fd, entry.size_bytes)
        finally:
            os.close(fd)

    def _begin_with_base(self, entry: Entry, fd: int) -> None:
        found = places.find_base(self._below, entry.path)
        if found is None:
            return
        _, base = found
        try:
            copy_data(base, fd, min(entry.size_bytes, os.fstat(base).st_size))
        finally:
            os.close(base)

    # Data

    def _open(self, path: bytes) -> int:
        """Return the descriptor of a file of the layer, kept until another is asked for."""
        if self._file is None or self._file[0] != path:
            self._close_file()
            self._file = path, self._place.open(path, os.O_RDWR)
        return self._file[1]

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file[1])
            self._file = None

    def _base(self, spot: Spot, layer: int) -> bytes:
        found = None
        if 0 <= layer < len(self._below):
            found = self._below[layer].find(spot.path)
        if found is None:
            raise DataLoss("a chunk came packed against a file that is not here; transfer it again")
        try:
            offset, count = packing.base_range(spot.chunk)
            return os.pread(found, count, offset)
        finally:
            os.close(found)

    def _put(self, digest: bytes, data: bytes) -> None:
        for path, chunk in self._missing[digest]:
            sparse.write(self._open(path), chunk.offset, data)
        del self._missing[digest]

    # What is not data

    def _set_all(self) -> None:
        """Set everything else; of directories last, the innermost first."""
        directories = []
        for entry in self.entries():
            if stat.S_ISDIR(entry.mode):
                directories.append(entry)
            elif not entry.link:
                self._set(entry)
        for entry in reversed(directories):
            self._set(entry)

    def _set(self, entry: Entry) -> None:
        if entry.is_file:
            fd = self._place.open(entry.path, os.O_RDWR)
        elif entry.path:
            directory, name = self._place.parent(entry.path)
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        else:
            fd = os.dup(self._place.directory(b""))
        try:
            if entry.is_file:
                _clear_holes(fd, entry)
            _set_attributes(fd, entry)
        finally:
            os.close(fd)

    def _verify(self, wanted: Digest) -> None:
        writer = manifest.Writer(cast("BinaryIO", _Nowhere()))
        for entry in scanning.scan(self._layer):
            writer.add(entry)
        if writer.digest != wanted:
            raise DataLoss(
                f"layer {wanted.hex()[:16]} came out otherwise than it was sent (here it is "
                f"{writer.digest.hex()[:16]}); does this file system keep all attributes?"
            )


class _Nowhere(io.RawIOBase):
    """Takes what is written and keeps nothing of it."""

    def write(self, data: object, /) -> int:
        return 0


def _clear_holes(fd: int, entry: Entry) -> None:
    """Make zeros of what no chunk says."""
    at = 0
    for chunk in entry.chunks:
        if chunk.offset > at:
            sparse.clear(fd, at, chunk.offset - at)
        at = chunk.offset + chunk.size_bytes
    if entry.size_bytes > at:
        sparse.clear(fd, at, entry.size_bytes - at)


def _set_attributes(fd: int, entry: Entry) -> None:
    """Owner first: a change of it takes set-id bits and capabilities away."""
    path = b"/proc/self/fd/%d" % fd
    os.chown(path, entry.uid, entry.gid)
    wanted = dict(entry.xattrs)
    for name in map(os.fsencode, os.listxattr(path)):
        if name not in wanted and name not in manifest.LOCAL_XATTRS:
            os.removexattr(path, name)
    for name, value in entry.xattrs:
        os.setxattr(path, name, value)
    if not stat.S_ISLNK(entry.mode):
        os.chmod(path, stat.S_IMODE(entry.mode))
    os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns))
