"""Layers of content into committed snapshots, each once, side by side where they can be."""

from __future__ import annotations

import gzip
import hashlib
import os
import time
import uuid
import zlib
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import msgspec
import structlog
import zstandard

from snapfs.fuse import attach
from snapfs.images import sources
from snapfs.images.limits import Limits
from snapfs.images.manifests import Layer
from snapfs.images.progress import REPORT_EVERY_BYTES, Progress
from snapfs.images.untar import Counter, NeedsParent, unpack
from snapfs.metadata import Context, Metadata, linking
from snapfs.metadata.manager import take
from snapfs.metadata.references import Name, Type
from snapfs.metadata.schema import SNAPSHOT_LINKS, SnapshotLinkBody
from snapfs.model import (
    AlreadyExists,
    Committed,
    InvalidArgument,
    NotFound,
    SnapfsError,
    Unavailable,
)
from snapfs.snapshots import Snapshotter
from snapfs.snapshots.faults import refusing
from snapfs.store import Store, WriteTx

log = structlog.get_logger(__name__)

SNAPSHOTTER = "snapfs"
UNPACKING = "import/extract-"
"""What the keys of layers that are being unpacked begin with."""

REMOVAL_DEADLINE_S = 60.0
REMOVAL_POLL_S = 0.02


class Unpacker:
    """Unpacks the layers of one import."""

    def __init__(
        self,
        metadata: Metadata,
        snapshotter: Snapshotter,
        context: Context,
        limits: Limits,
        say: Callable[[Progress], None],
        workers: int,
    ) -> None:
        self._metadata = metadata
        self._snapshotter = snapshotter
        self._context = context
        self._limits = limits
        self._say = say
        self._workers = workers

    def unpack(self, layers: Sequence[Layer]) -> None:
        """Have a committed snapshot for each layer, linked in the namespace and leased."""
        parents = ["", *(layer.chain_id for layer in layers)]
        for parent, layer in zip(parents, layers, strict=False):
            link(self._snapshotter.store, self._context, layer.chain_id, parent)
        missing = {
            number for number, layer in enumerate(layers) if not self._exists(layer.chain_id)
        }
        with ThreadPoolExecutor(self._workers, thread_name_prefix="unpack") as pool:
            ready = {number: pool.submit(self._alone, layers[number]) for number in missing}
            try:
                below = ""
                for number, layer in enumerate(layers):
                    if number in ready:
                        self._commit(layer, below, ready.pop(number))
                    below = layer.chain_id
            finally:
                self._give_up(ready.values())

    def _exists(self, name: str) -> bool:
        try:
            self._snapshotter.stat(name)
        except NotFound:
            return False
        return True

    def _alone(self, layer: Layer) -> str | None:
        """Unpack a layer without its parent; return the key, or None when it needs that."""
        key = self._prepare("")
        try:
            options = dict(
                option.partition("=")[::2] for option in self._snapshotter.mounts(key)[0].options
            )
            self._apply(layer, Path(options["upperdir"]), merged=False)
        except NeedsParent as reason:
            log.debug("unpack.needs_parent", layer=layer.diff_id, reason=str(reason))
            self._snapshotter.remove(key)
            return None
        except Exception:
            self._snapshotter.remove(key)
            raise
        return key

    def _commit(self, layer: Layer, below: str, unpacked: Future[str | None]) -> None:
        key = unpacked.result()
        if key is None:
            key = self._on_top(layer, below)
        try:
            self._snapshotter.commit(key, layer.chain_id, {}, below)
        except AlreadyExists:  # another import was quicker
            self._snapshotter.remove(key)
        except Exception:
            self._snapshotter.remove(key)
            raise

    def _on_top(self, layer: Layer, below: str) -> str:
        """Unpack a layer into the merged tree of what is below it; return the key."""
        key = self._prepare(below)
        try:
            shown = self._snapshotter.mounts(key)
            with attach.attached(shown, "snapfs-unpack-") as target:
                self._apply(layer, target, merged=True)
        except Exception:
            self._snapshotter.remove(key)
            raise
        return key

    def _prepare(self, parent: str) -> str:
        # The name makes the snapshotter answer with the layer directories themselves.
        key = f"{UNPACKING}{uuid.uuid4()}"
        self._snapshotter.prepare(key, parent)
        return key

    def _apply(self, layer: Layer, target: Path, *, merged: bool) -> None:
        what = f"layer {layer.descriptor.digest}"
        source = self._metadata.content.open(self._context.namespace, layer.descriptor.digest)
        with refusing(f"unpack {what}"), os.fdopen(source, "rb") as file:
            packed = Counter(file)
            plain = Hashing(_plain(file, packed, what), what)
            fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                stream = _Reported(plain, packed, self._say, layer)
                unpack(
                    cast(BinaryIO, stream),
                    packed,
                    fd,
                    merged=merged,
                    limits=self._limits,
                    what=what,
                )
            finally:
                os.close(fd)
            diff_id = plain.finish(packed, self._limits)
            stream.done()
            if diff_id != layer.diff_id:
                raise InvalidArgument(
                    f"{what} unpacks to {diff_id}, but the image says {layer.diff_id}"
                )

    def _give_up(self, ready: Collection[Future[str | None]]) -> None:
        """Remove what was unpacked for nothing, when an import ends early."""
        for future in ready:
            future.cancel()
        for future in ready:
            try:
                key = None if future.cancelled() else future.result()
                if key is not None:
                    self._snapshotter.remove(key)
            except (SnapfsError, OSError) as error:
                log.debug("unpack.given_up", error=str(error))


def clear_unpacked(snapshotter: Snapshotter) -> None:
    """Remove what imports of an earlier process were unpacking; for a start, before any import."""
    for found in list(snapshotter.walk()):
        if found.name.startswith(UNPACKING) and not isinstance(found, Committed):
            snapshotter.remove(found.name)
            log.info("unpack.cleared", key=found.name)


def link(store: Store, context: Context, name: str, below: str) -> None:
    """Let a namespace know a committed snapshot, and the lease of the context hold it.

    From then on it is not collected. Waits while it is being removed: what is then there is not.
    Raises Unavailable when that takes too long.
    """
    end_s = time.monotonic() + REMOVAL_DEADLINE_S
    while not store.update(partial(_link, context=context, name=name, below=below)):
        if time.monotonic() > end_s:
            raise Unavailable(f"snapshot {name} is being removed; try again later")
        time.sleep(REMOVAL_POLL_S)


def _link(tx: WriteTx, *, context: Context, name: str, below: str) -> bool:
    row_name = f"{SNAPSHOTTER}/{name}"
    if any(it.body.removing for it in linking.links_to(tx, SNAPSHOTTER, name)):
        return False
    row = tx.get(SNAPSHOT_LINKS, context.namespace, row_name)
    if row is None:
        body = SnapshotLinkBody(snapshotter=SNAPSHOTTER, key=name, backend=name, parent=below)
        linking.create(tx, SNAPSHOT_LINKS, context.namespace, row_name, body)
    elif row.body.going:
        linking.update(tx, row, msgspec.structs.replace(row.body, going=False))
    take(tx, context, f"snapshots/{SNAPSHOTTER}", Name(Type.SNAPSHOT, row_name))
    return True


class Hashing:
    """A stream that computes the digest of what is read from it."""

    def __init__(self, file: BinaryIO, what: str) -> None:
        self._file = file
        self._what = what
        self._hash = hashlib.sha256()
        self.bytes_read = 0

    def read(self, size: int = -1) -> bytes:
        try:
            data = self._file.read(size)
        except (gzip.BadGzipFile, EOFError, zlib.error, zstandard.ZstdError) as error:
            raise InvalidArgument(f"{self._what} is damaged: {error}") from None
        self._hash.update(data)
        self.bytes_read += len(data)
        return data

    def finish(self, packed: Counter, limits: Limits) -> str:
        """Read what an archive has behind its end, and return the digest of all; TooLarge."""
        while self.read(1 << 20):
            limits.check(packed.bytes_read, self.bytes_read, 0, self._what)
        return f"sha256:{self._hash.hexdigest()}"


class _Reported:
    """A stream that tells of progress by what was read of the packed layer."""

    def __init__(
        self, inner: Hashing, packed: Counter, say: Callable[[Progress], None], layer: Layer
    ) -> None:
        self._inner, self._packed, self._say, self._layer = inner, packed, say, layer
        self._next = 0

    def read(self, size: int = -1) -> bytes:
        data = self._inner.read(size)
        if self._packed.bytes_read >= self._next:
            self._next = self._packed.bytes_read + REPORT_EVERY_BYTES
            self._tell(self._packed.bytes_read)
        return data

    def done(self) -> None:
        """Tell that all was read."""
        self._tell(self._layer.descriptor.size)

    def _tell(self, done: int) -> None:
        self._say(Progress("unpack", self._layer.diff_id, done, self._layer.descriptor.size))


def _plain(file: BinaryIO, packed: Counter, what: str) -> BinaryIO:
    """Return what a layer is when it is not compressed; by its bytes, not by its media type."""
    head = file.read(4)
    file.seek(0)
    return sources.decompressed(cast(BinaryIO, packed), head)
