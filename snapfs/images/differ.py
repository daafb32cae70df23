"""Layers of what mounts show, for who has no images of ours: containerd's diff service.

    compare   the mounts are those that the snapshotter gave for two snapshots, of which one stands
              on the other; the layer is read from its own marks, so it costs the change and not
              the tree
    apply     an archive is unpacked into what the mounts show

Where layers are read from and written to is the caller's: our content, or containerd's. What cannot
be done so is NotImplementedYet, and containerd asks its next differ, which walks both trees.
"""

from __future__ import annotations

import errno
import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from snapfs.fuse import attach
from snapfs.images import packing, sources
from snapfs.images.limits import Limits
from snapfs.images.packing import Packed
from snapfs.images.standing import Layers, standing
from snapfs.images.unpacking import Hashing
from snapfs.images.untar import Counter, unpack
from snapfs.metadata.blobs import hasher
from snapfs.metadata.words import check_digest
from snapfs.model import (
    Active,
    AlreadyExists,
    Committed,
    FailedPrecondition,
    Labels,
    Mount,
    NotFound,
    NotImplementedYet,
    Snapshot,
    SnapshotId,
    View,
)
from snapfs.snapshots import Snapshotter, mounts, records
from snapfs.snapshots.faults import refusing

COPY_BYTES = 1 << 20
UNCOMPRESSED = "containerd.io/uncompressed"
"""Label of packed content: the digest of what it is packed of."""


class LayerWriter(Protocol):
    """A blob being written. Closing it without a commit leaves nothing that stays."""

    def write(self, data: bytes, /) -> int: ...

    def commit(self, size_bytes: int, digest: str, labels: Labels) -> None:
        """Make what was written content; AlreadyExists when it is there."""

    def close(self) -> None: ...


class Contents(Protocol):
    """Where layers come from and go to, in one namespace."""

    def writer(self, ref: str) -> LayerWriter: ...

    def label(self, digest: str, key: str, value: str) -> None:
        """Set a label of content that is there, if it has none of this name."""

    def open(self, digest: str, size_bytes: int) -> BinaryIO:
        """Open content as a file that can be read twice, or raise NotFound.

        Raises FailedPrecondition when it has more bytes; not all who offer content look.
        """

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How a layer is to be written."""

    media_type: str = packing.TAR_GZIP
    ref: str = ""
    labels: Labels = field(default_factory=dict)
    latest_s: int | None = None
    """SOURCE_DATE_EPOCH."""


class Differ:
    """Compares and applies for one snapshotter. Thread-safe."""

    def __init__(self, snapshotter: Snapshotter, *, limits: Limits | None = None) -> None:
        self._snapshotter = snapshotter
        self._limits = limits or Limits()

    def compare(
        self, contents: Contents, left: Sequence[Mount], right: Sequence[Mount], asked: Asked
    ) -> Packed:
        """Write the layer that leads from what `left` shows to what `right` shows.

        An active snapshot is held still while its layer is listed (standing.py), and not for the
        packing, nor for whom the layer is sent to. Raises NotImplementedYet when
        the mounts are not of snapshots of ours, when more than one layer lies between the two, and
        when files of an active one are open for writing or there is no room for its copy.
        """
        below, above = self.shown(left), self.shown(right)
        top, *others = _ids(above) or (None,)
        if top is None or tuple(others) != _ids(below):
            raise NotImplementedYet(
                f"snapshot {above.name!r} is not one layer above {below.name!r}"
            )
        what = f"write the layer of snapshot {records.shown(above.name)}"
        with refusing(what), tempfile.TemporaryFile(dir=self._snapshotter.root) as file:
            with self._layers(above) as (upper, lowers):
                packed = packing.pack(
                    upper, lowers, file, media_type=asked.media_type, latest_s=asked.latest_s
                )
            if self._by_id(top) is None:  # what was read may have been half erased
                raise NotFound(f"{what}: the snapshot was removed meanwhile")
            file.seek(0)
            _send(contents, cast(BinaryIO, file), packed, asked)
        return packed

    def apply(
        self, contents: Contents, digest: str, size_bytes: int, target: Sequence[Mount]
    ) -> Packed:
        """Unpack content into what mounts show; return what it is when it is not packed.

        The digest of the content is verified first. Raises FailedPrecondition when it has another,
        InvalidArgument for a damaged archive and for one that leads out of the directory, TooLarge.
        """
        what = f"layer {check_digest(digest)}"
        self._limits.check(size_bytes, size_bytes, 0, what)
        with refusing(f"apply {what}"), contents.open(digest, size_bytes) as file:
            _verify(file, digest, size_bytes)
            packed = Counter(file)
            plain = Hashing(sources.decompressed(cast(BinaryIO, packed), file.read(4)), what)
            file.seek(0)
            with attach.attached(target, "snapfs-apply-") as directory, _opened(directory) as fd:
                stream = cast(BinaryIO, plain)
                unpack(stream, packed, fd, merged=True, limits=self._limits, what=what)
                diff_id = plain.finish(packed, self._limits)
        return Packed(packing.TAR, diff_id, plain.bytes_read, diff_id)

    def shown(self, given: Sequence[Mount]) -> Snapshot:
        """Return the snapshot that mounts are of; NotImplementedYet when it is none of ours."""
        identity = mounts.identity(given)
        found = None if identity is None else self._by_id(identity)
        if found is None or isinstance(found, Committed):
            raise NotImplementedYet("the mounts are not of a snapshot of this service")
        if mounts.place(self._snapshotter.mounts(found.name)) != mounts.place(given):
            raise NotImplementedYet(f"the mounts are not those of snapshot {found.name!r}")
        return found

    def _by_id(self, identity: SnapshotId) -> Snapshot | None:
        with self._snapshotter.store.view() as tx:
            row = records.by_id(tx, identity)
            return None if row is None else records.snapshot(tx, row)

    @contextmanager
    def _layers(self, above: Snapshot) -> Iterator[Layers]:
        """Give directories of a snapshot's top layer and of those below, which hold still."""
        match above:
            case Active():
                try:
                    with standing(self._snapshotter, above.name) as layers:
                        yield layers
                except FailedPrecondition as error:
                    raise NotImplementedYet(str(error)) from None
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    raise NotImplementedYet(
                        f"there is no room for a copy of snapshot {above.name!r}, which is packed"
                    ) from None
            case View() | Committed():
                name = above.parent if isinstance(above, View) else above.name
                yield self._snapshotter.layers(name)


def _send(contents: Contents, file: BinaryIO, packed: Packed, asked: Asked) -> None:
    """Make what a file holds content, which says what it is of; it may be there already."""
    labels = dict(asked.labels)
    if packed.diff_id != packed.digest:
        labels[UNCOMPRESSED] = packed.diff_id
    with closing(contents.writer(asked.ref or f"diff-{uuid.uuid4()}")) as writer:
        while data := file.read(COPY_BYTES):
            writer.write(data)
        try:
            writer.commit(packed.size_bytes, packed.digest, labels)
        except AlreadyExists:
            if UNCOMPRESSED in labels:
                contents.label(packed.digest, UNCOMPRESSED, packed.diff_id)


def _ids(found: Snapshot) -> tuple[SnapshotId, ...]:
    """Return the layers that a snapshot shows, the top one first."""
    own = (found.id,) if isinstance(found, Active) else ()
    return (*own, *found.parent_ids)


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _verify(file: BinaryIO, digest: str, size_bytes: int) -> None:
    """Read a file and go back to its beginning; FailedPrecondition when it is another."""
    hash_ = hasher(digest)
    while data := file.read(COPY_BYTES):
        hash_.update(data)
    if file.tell() != size_bytes or f"{hash_.name}:{hash_.hexdigest()}" != digest:
        raise FailedPrecondition(
            f"content {digest} has {file.tell()} bytes (expected {size_bytes}) or another digest; "
            "fetch it again"
        )
    file.seek(0)
