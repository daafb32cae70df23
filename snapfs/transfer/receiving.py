"""The side that lacks a layer: a snapshot comes into being, whole and verified or not at all.

The layer is made in an active snapshot whose key names the transfer and the layer's digest, and is
committed when it is what the digest says. A transfer that ends early leaves the active, in which
the next one finds what came already; `give_up` removes it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import structlog

from snapfs.model import (
    Active,
    AlreadyExists,
    Committed,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    Labels,
    NotFound,
    SnapshotId,
    Unavailable,
)
from snapfs.snapshots import Snapshotter
from snapfs.snapshots.faults import refusing
from snapfs.transfer import manifest, packing, places
from snapfs.transfer.manifest import Chunk
from snapfs.transfer.packing import Packed
from snapfs.transfer.rebuilding import Rebuilding
from snapfs.transfer.sending import Offer, digests
from snapfs.transfer.stock import NEW_PREFIX, Stock

log = structlog.get_logger(__name__)

PREFIX = "receive/"
MAX_MANIFEST_BYTES = 4 << 30
"""Longest manifest: of some terabytes, or of tens of millions of files."""
WAIT_S = 30.0
"""For an earlier transfer of the same to end: that its sender is gone may show a little later."""


class Sink:
    """Receives layers into one root. Thread-safe; one transfer of a name at a time."""

    def __init__(self, stock: Stock) -> None:
        self._stock = stock
        self._snapshotter = stock.snapshotter
        self._changed = threading.Condition()
        self._under_way: set[str] = set()

    @contextmanager
    def receive(
        self, name: str, parent: str, offer: Offer, labels: Labels | None = None
    ) -> Iterator[Landing | None]:
        """Give what receives the layer of the committed snapshot `name`; None when it is here.

        `parent` is a committed snapshot, here, and the layer stands on that or on one below it, as
        its offer says; empty for a base. Raises FailedPrecondition when it was made on none of
        them, AlreadyExists when `name` is another layer, Unavailable when somebody else is sending
        it.
        """
        _check(offer)
        with self._only(name):
            if self._has(name, offer):
                yield None
                return
            below, near = self._below(parent, offer)
            landing = Landing(self._stock, name, below, offer, labels or {}, near)
            try:
                yield landing
            finally:
                landing.close()

    def give_up(self, name: str) -> None:
        """Remove what unfinished transfers of a name have left."""
        with self._only(name):
            for found in list(self._snapshotter.walk([f'kind==active,name~="^{PREFIX}"'])):
                if found.name.startswith(_prefix(name)):
                    self._snapshotter.remove(found.name)

    def _has(self, name: str, offer: Offer) -> bool:
        try:
            chain = self._stock.chain(name)
        except NotFound:
            return False
        if chain != digests(offer):
            raise AlreadyExists(
                f"snapshot {name!r} exists and has other content than was offered; remove it first"
            )
        return True

    def _below(self, parent: str, offer: Offer) -> tuple[str, Sequence[SnapshotId]]:
        """Return the snapshot that the layer stands on, and the layers of `parent`.

        A whole copy of a working copy stands on what that grew from, far below the copy before.
        """
        here = self._stock.chain(parent) if parent else []
        above = len(here) - len(offer.below)
        if above < 0 or tuple(here[above:]) != offer.below:
            raise FailedPrecondition(
                f"the layer was made on {len(offer.below)} others, which are not those of "
                f"{parent or 'a base'!r} here; transfer its parents first"
            )
        if not parent:
            return "", ()
        found = self._stock.committed(parent)
        below = parent
        for _ in range(above):
            below = self._stock.committed(below).parent
        return below, (found.id, *found.parent_ids)

    @contextmanager
    def _only(self, name: str) -> Iterator[None]:
        with self._changed:
            if not self._changed.wait_for(lambda: name not in self._under_way, WAIT_S):
                raise Unavailable(f"snapshot {name!r} is being received already; try again later")
            self._under_way.add(name)
        try:
            yield
        finally:
            with self._changed:
                self._under_way.discard(name)
                self._changed.notify_all()


class Landing:
    """One layer on its way: its manifest, then the chunks that are missing, then the end."""

    def __init__(
        self,
        stock: Stock,
        name: str,
        parent: str,
        offer: Offer,
        labels: Labels,
        near: Sequence[SnapshotId],
    ) -> None:
        """`near` are layers that are like this one, to look for chunks in first."""
        self._stock = stock
        self._snapshotter = stock.snapshotter
        self._name, self._parent, self._offer, self._labels = name, parent, offer, labels
        self._near = near
        self._key = f"{_prefix(name)}{offer.digest.hex()}"
        self._manifest: Path | None = None
        self._rebuilding: Rebuilding | None = None
        self._active: Active | None = None

    def take_manifest(self, parts: Iterable[bytes]) -> list[bytes]:
        """Take the manifest; return the digests of the chunks that have to come.

        Makes the snapshot's files, out of what is here already. Raises DataLoss when the parts are
        not the manifest that was offered.
        """
        fd, path = tempfile.mkstemp(prefix=NEW_PREFIX, dir=self._stock.path)
        self._manifest = Path(path)
        hashed = hashlib.sha256()
        with refusing("write the manifest of a layer"), os.fdopen(fd, "wb") as file:
            for part in parts:
                if file.tell() + len(part) > self._offer.manifest_bytes:
                    raise DataLoss(
                        "the manifest of a layer is longer than was said; transfer it again"
                    )
                hashed.update(part)
                file.write(part)
        if hashed.digest() != self._offer.digest:
            raise DataLoss("the manifest of a layer came damaged; transfer it again")
        return self._begin(self._manifest)

    def _begin(self, source: Path) -> list[bytes]:
        active = self._active = self._prepare()
        upper = self._stock.directories.upper(active.id)
        below = [self._stock.directories.upper(it) for it in active.parent_ids]
        with refusing(f"make the layer of snapshot {self._name!r}"):
            rebuilding = self._rebuilding = Rebuilding(upper, source, below)
            rebuilding.lay_out()
            rebuilding.find_missing()
            rebuilding.fill(lambda wanted: self._find(wanted, self._near))
        return rebuilding.missing

    def put(self, packed: Packed) -> int:
        """Take a chunk; return its size. Raises DataLoss when it is not what it claims to be."""
        with refusing(f"write the layer of snapshot {self._name!r}"):
            return self._laid_out().put(packed)

    def finish(self) -> Committed:
        """Compare all with the manifest and commit; the snapshot is durable on return."""
        rebuilding, active = self._laid_out(), self._active
        assert active is not None  # noqa: S101 - it is laid out
        assert self._manifest is not None  # noqa: S101 - likewise
        digest = manifest.Digest(self._offer.digest)
        with refusing(f"make the layer of snapshot {self._name!r}"):
            rebuilding.finish(digest)
        done = self._snapshotter.commit(self._key, self._name, self._labels)
        self._stock.keep(done.id, self._manifest, digest)
        return done

    def close(self) -> None:
        """Close what is open; what came stays for the next transfer."""
        if self._rebuilding is not None:
            self._rebuilding.close()
        if self._manifest is not None:
            self._manifest.unlink(missing_ok=True)

    def _laid_out(self) -> Rebuilding:
        if self._rebuilding is None:
            raise FailedPrecondition("chunks of a layer came before its manifest")
        return self._rebuilding

    def _prepare(self) -> Active:
        """Return the active snapshot that the layer is made in, of an earlier transfer if any."""
        known = _active(self._snapshotter, self._key)
        if known is not None and known.parent == self._parent:
            log.info("layer.resumed", name=self._name, id=known.id)
            return known
        if known is not None:
            self._snapshotter.remove(self._key)
        self._snapshotter.prepare(self._key, self._parent)
        made = _active(self._snapshotter, self._key)
        if made is None:
            raise Unavailable(f"snapshot {self._key!r} was removed; transfer it again")
        return made

    def _find(
        self, wanted: frozenset[bytes], near: Sequence[SnapshotId]
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield chunks that other layers of this root hold, as their manifests say."""
        left = set(wanted)
        for known in self._stock.to_search(near):
            if not left:
                return
            layer = self._stock.directories.upper(known.id)
            try:
                with places.opened([layer]) as (place,):
                    for entry in known.entries():
                        chunks = [chunk for chunk in entry.chunks if chunk.digest in left]
                        for digest, data in _chunks_of(place, entry.path, chunks):
                            left.discard(digest)
                            yield digest, data
            except FileNotFoundError:  # removed meanwhile
                continue
            except (DataLoss, InvalidArgument):
                self._stock.drop(known)


def _check(offer: Offer) -> None:
    """Raise InvalidArgument for an offer of what no layer can be."""
    if any(len(digest) != manifest.DIGEST_BYTES for digest in digests(offer)):
        raise InvalidArgument("a layer is offered by what is no digest; upgrade the older host")
    if not 0 < offer.manifest_bytes <= MAX_MANIFEST_BYTES:
        raise InvalidArgument(
            f"a layer is offered with a manifest of {offer.manifest_bytes} bytes; at most "
            f"{MAX_MANIFEST_BYTES} are taken"
        )


def _chunks_of(
    place: places.Place, path: bytes, chunks: Sequence[Chunk]
) -> Iterator[tuple[bytes, bytes]]:
    fd = place.find(path) if chunks else None
    if fd is None:
        return
    try:
        for chunk in chunks:
            data = os.pread(fd, chunk.size_bytes, chunk.offset)
            if packing.matches(chunk, data):
                yield chunk.digest, data
    finally:
        os.close(fd)


def _prefix(name: str) -> str:
    return f"{PREFIX}{hashlib.sha256(name.encode()).hexdigest()[:16]}/extract-"


def _active(snapshotter: Snapshotter, key: str) -> Active | None:
    try:
        found = snapshotter.stat(key)
    except NotFound:
        return None
    return found if isinstance(found, Active) else None
