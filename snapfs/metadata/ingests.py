"""Writing content: a reference that can be written in pieces, over many days, and committed once.

A `Writer` is what one writer of a reference holds. Its offset and digest are those of the bytes
written so far; after a crash what reached the disk is kept, and the next writer goes on from there.
A *virtual* ingest is of content that another namespace has already: there is nothing to write; the
first write all the same begins with a copy of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from snapfs.closing import Closing
from snapfs.metadata.blobs import Blobs, feed, hasher
from snapfs.metadata.objects import Content, Ingest
from snapfs.metadata.words import check_digest, shown
from snapfs.model import FailedPrecondition, InvalidArgument, Labels

DEFAULT_ALGORITHM = "sha256"


@dataclass(frozen=True, slots=True)
class Wish:
    """What a commit asks for; 0 and "" ask for nothing."""

    size_bytes: int = 0
    digest: str = ""
    labels: Labels | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where an ingest stands when a writer opens it."""

    ref: str
    directory: str
    """Below the store's `ingest`; one that a virtual ingest would use as well."""
    expected: str
    total_bytes: int
    started_ns: int
    virtual: bool


class Writer(Closing):
    """One reference being written. Not thread-safe; closing it keeps what was written."""

    def __init__(
        self,
        place: Place,
        blobs: Blobs,
        *,
        publish: Callable[[Writer, str, int, Labels], Content],
        materialise: Callable[[Writer], None],
        release: Callable[[], None],
        clock_ns: Callable[[], int],
    ) -> None:
        self.place = place
        self.virtual = place.virtual
        self._blobs = blobs
        self._publish = publish
        self._materialise = materialise
        self._release = release
        self._clock_ns = clock_ns
        self._closed = False
        self._fd = -1
        self._hash = hasher(place.expected or DEFAULT_ALGORITHM)
        self.offset_bytes = 0
        self.updated_ns = clock_ns()
        if self.virtual:
            self.offset_bytes = blobs.size(place.expected) or 0
        else:
            self._open(blobs.begin(place.directory))

    @property
    def fd(self) -> int:
        return self._fd

    def digest(self) -> str:
        """Return the digest of what was written so far."""
        if self.virtual:
            return self.place.expected
        return f"{self._hash.name}:{self._hash.hexdigest()}"

    def status(self) -> Ingest:
        place = self.place
        return Ingest(
            ref=place.ref,
            offset_bytes=self.offset_bytes,
            total_bytes=self.offset_bytes if self.virtual else place.total_bytes,
            expected=place.expected,
            started_ns=place.started_ns,
            updated_ns=self.updated_ns,
        )

    def write(self, data: bytes) -> int:
        """Write at the offset; all of it, or an OSError and the offset is where it was."""
        self._check_open()
        self._become_real()
        at = self.offset_bytes
        view = memoryview(data)
        while view:
            done = os.pwrite(self._fd, view, at)
            at += done
            view = view[done:]
        self._hash.update(data)
        self.offset_bytes = at
        self.updated_ns = self._clock_ns()
        return len(data)

    def truncate(self, size_bytes: int) -> None:
        """Go back to a size that is not above the offset."""
        self._check_open()
        if not 0 <= size_bytes <= self.offset_bytes:
            raise InvalidArgument(
                f"ingest {shown(self.place.ref)} has {self.offset_bytes} bytes; "
                f"it cannot be cut to {size_bytes}"
            )
        self._become_real()
        os.ftruncate(self._fd, size_bytes)
        self._hash = hasher(self._hash.name + ":")
        feed(self._hash, self._fd, size_bytes)
        self.offset_bytes = size_bytes
        self.updated_ns = self._clock_ns()

    def commit(self, wish: Wish | None = None) -> Content:
        """Make what was written content of the namespace, durable when it returns.

        Raises FailedPrecondition for another size or digest than wished or expected, and the
        ingest stays usable; AlreadyExists when the namespace has this content, and the ingest is
        dropped; DataLoss or ResourceExhausted when the disk did not take what was written, and the
        ingest is dropped.
        """
        self._check_open()
        wish = wish or Wish()
        digest = self._check(wish)
        if not self.virtual and os.fstat(self._fd).st_size != self.offset_bytes:
            os.ftruncate(self._fd, self.offset_bytes)  # what a write that failed left
        content = self._publish(self, digest, self.offset_bytes, wish.labels or {})
        self.close()
        return content

    def close(self) -> None:
        """Stop writing; what was written stays, for the next writer of the reference."""
        if not self._closed:
            self._closed = True
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
            self._release()

    def _check(self, wish: Wish) -> str:
        digest = self.digest()
        if wish.digest and wish.digest.partition(":")[0] != self._hash.name:
            digest = self._other_digest(wish.digest)
        what = f"ingest {shown(self.place.ref)}"
        if wish.size_bytes and wish.size_bytes != self.offset_bytes:
            raise FailedPrecondition(
                f"{what} has {self.offset_bytes} bytes, not {wish.size_bytes}; write the rest"
            )
        wanted = wish.digest or self.place.expected
        if wanted and wanted != digest:
            raise FailedPrecondition(f"{what} has digest {digest}, not {wanted}")
        return digest

    def _other_digest(self, wanted: str) -> str:
        """Return the digest by another algorithm than the one that was computed all along."""
        check_digest(wanted)
        hash_ = hasher(wanted)
        fd = self._blobs.open(self.place.expected) if self.virtual else self._fd
        try:
            feed(hash_, fd, self.offset_bytes)
        finally:
            if self.virtual:
                os.close(fd)
        return f"{hash_.name}:{hash_.hexdigest()}"

    def _become_real(self) -> None:
        """Give a virtual ingest bytes of its own."""
        if self.virtual:
            fd = self._blobs.copy(self.place.expected, self.place.directory)
            self._materialise(self)
            self.virtual = False
            self._open(fd)

    def _open(self, fd: int) -> None:
        self._fd = fd
        self.offset_bytes = os.fstat(fd).st_size
        feed(self._hash, fd, self.offset_bytes)

    def _check_open(self) -> None:
        if self._closed:
            raise FailedPrecondition(
                f"ingest {shown(self.place.ref)}: this writer is closed; open it again"
            )
