"""Content on disk: blobs by digest, and what is being written.

    <root>/content/blobs/ALGORITHM/HEX     mode 0444; written once, never changed
    <root>/content/ingest/N/data           being written; N is a number of the store's

A blob is in its place only after its bytes are durable. Nothing here knows of namespaces or rows.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from snapfs.metadata.words import is_digest, shown
from snapfs.model import DataLoss

CHUNK_BYTES = 1 << 20
BLOB_MODE = 0o444


class Blobs:
    """The directory of a root's content."""

    def __init__(self, directory: Path) -> None:
        self._blobs = directory / "blobs"
        self._ingests = directory / "ingest"
        for each in (self._blobs, self._ingests):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Return where a blob is or would be; the digest must have been checked."""
        return blob_path(self._blobs.parent, digest)

    def open(self, digest: str) -> int:
        """Return a descriptor to read a blob by; raises DataLoss when its file is not there."""
        try:
            return os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise self.gone(digest) from None

    def gone(self, digest: str) -> DataLoss:
        """Return what says that the file of a blob is not there."""
        return DataLoss(f"content {digest}: its file {self.path(digest)} is gone; fetch it again")

    def size(self, digest: str) -> int | None:
        """Return the size of a blob's file, or None when there is none."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            return None

    def ingest(self, directory: str) -> Path:
        """Return the file that an ingest writes to."""
        return self._ingests / directory / "data"

    def begin(self, directory: str) -> int:
        """Return a descriptor to write an ingest by, at its end; made when it is not there."""
        path = self.ingest(directory)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def publish(self, directory: str, fd: int, digest: str) -> None:
        """Make what an ingest wrote the blob `digest`, durably.

        After an OSError the ingest must not be published again: its bytes may be lost.
        """
        os.fchmod(fd, BLOB_MODE)
        os.fsync(fd)
        path = self.path(digest)
        if not path.parent.is_dir():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            sync_directory(self._blobs)
        os.rename(self.ingest(directory), path)
        sync_directory(path.parent)
        self.discard(directory)

    def copy(self, digest: str, directory: str) -> int:
        """Begin an ingest with what a blob holds; return its descriptor, at the end."""
        fd = self.begin(directory)
        try:
            source = self.open(digest)
            try:
                left = os.fstat(source).st_size
                while left:
                    left -= os.copy_file_range(source, fd, left) or _short(digest)
            finally:
                os.close(source)
        except OSError:
            os.close(fd)
            raise
        return fd

    def discard(self, directory: str) -> None:
        """Remove what an ingest wrote; a no-op when it is gone."""
        shutil.rmtree(self._ingests / directory, ignore_errors=False, onerror=_unless_gone)

    def remove(self, digest: str) -> None:
        """Remove a blob, durably; a no-op when it is gone."""
        path = self.path(digest)
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            sync_directory(path.parent)

    def digests(self) -> Iterator[str]:
        """Yield the digests of all files that are blobs by their name."""
        for algorithm in sorted(self._blobs.iterdir()):
            for path in sorted(algorithm.iterdir()):
                digest = f"{algorithm.name}:{path.name}"
                if is_digest(digest):
                    yield digest

    def ingests(self) -> Iterator[str]:
        """Yield the directories of all ingests."""
        yield from sorted(entry.name for entry in os.scandir(self._ingests))


def blob_path(content: Path, digest: str) -> Path:
    """Return where a blob is or would be below a root's `content`."""
    algorithm, _, encoded = digest.partition(":")
    return content / "blobs" / algorithm / encoded


def hasher(digest: str) -> hashlib._Hash:
    """Return what computes digests of the algorithm that `digest` is of."""
    return hashlib.new(digest.partition(":")[0], usedforsecurity=False)


def feed(hash_: hashlib._Hash, fd: int, size_bytes: int) -> None:
    """Add the first bytes of a file to a digest; raises DataLoss when it is shorter."""
    at = 0
    while at < size_bytes:
        data = os.pread(fd, min(CHUNK_BYTES, size_bytes - at), at)
        if not data:
            raise DataLoss(f"a file of content ends at {at} of {size_bytes} bytes")
        hash_.update(data)
        at += len(data)


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _short(digest: str) -> int:
    raise DataLoss(f"content {shown(digest)}: its file is shorter than it was; fetch it again")


def _unless_gone(_function: object, path: str, info: tuple[type, BaseException, object]) -> None:
    error = info[1]
    if not (isinstance(error, OSError) and error.errno == errno.ENOENT):
        raise error
