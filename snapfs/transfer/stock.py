"""The manifests of a root's layers, each made once.

    <root>/manifests/<id>.<digest>    of the committed snapshot <id>; the content is what the digest
                                      says, or the file is made anew
    <root>/manifests/new-*            being written, or of a layer that is being received

Manifests are derived: whoever deletes the directory costs the time of reading layers again. That
of a snapshot that is gone is deleted at the next opening.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, cast

import structlog

from snapfs.model import Committed, FailedPrecondition, SnapshotId
from snapfs.snapshots import Snapshotter
from snapfs.snapshots.faults import refusing
from snapfs.snapshots.layers import LayerDirectories
from snapfs.transfer import manifest, scanning
from snapfs.transfer.manifest import Digest, Entry

log = structlog.get_logger(__name__)

NEW_PREFIX = "new-"
SEARCHED = 64
"""Manifests, of the newest layers, in which a chunk is looked for that no parent has."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest on disk."""

    id: SnapshotId
    path: Path
    digest: Digest

    def entries(self) -> Iterator[Entry]:
        """Yield its entries."""
        with self.path.open("rb") as file:
            yield from manifest.read(file)


class Stock:
    """Manifests of the committed snapshots of one root. Thread-safe."""

    def __init__(self, snapshotter: Snapshotter) -> None:
        self.snapshotter = snapshotter
        self.directories = LayerDirectories(snapshotter.root)
        self.path = snapshotter.root / "manifests"
        self._making = threading.Lock()
        with refusing(f"make {self.path}"):
            self.path.mkdir(mode=0o700, exist_ok=True)
            self._sweep()

    def of(self, name: str) -> Manifest:
        """Return the manifest of a committed snapshot, made now if it never was.

        Making it reads the whole layer. Raises NotFound, FailedPrecondition for one that is not
        committed.
        """
        found = self.committed(name)
        with self._making:
            return self._known(found.id) or self._make(found.id)

    def chain(self, name: str) -> list[Digest]:
        """Return the digests of a committed snapshot's layer and of those below it, in order."""
        found = self.committed(name)
        with self._making:
            ids = (found.id, *found.parent_ids)
            return [(self._known(it) or self._make(it)).digest for it in ids]

    def committed(self, name: str) -> Committed:
        """Return a committed snapshot, or raise NotFound or FailedPrecondition."""
        found = self.snapshotter.stat(name)
        if not isinstance(found, Committed):
            raise FailedPrecondition(f"snapshot {name!r} is {found.kind.word}; commit it first")
        return found

    def keep(self, identity: SnapshotId, source: Path, digest: Digest) -> None:
        """Let `source`, a verified manifest, be that of a layer."""
        with refusing("keep the manifest of a layer"):
            with source.open("rb") as file:
                os.fsync(file.fileno())
            source.rename(self._place(identity, digest))

    def drop(self, damaged: Manifest) -> None:
        """Delete a manifest that does not read; it is made anew when it is wanted."""
        log.info("manifest.dropped", id=damaged.id)
        damaged.path.unlink(missing_ok=True)

    def to_search(self, near: Sequence[SnapshotId]) -> list[Manifest]:
        """Return the manifests in which to look for chunks: those of `near`, then the newest."""
        known = {it.id: it for it in self._all()}
        wanted = dict.fromkeys(near)
        wanted.update(dict.fromkeys(sorted(known, reverse=True)[:SEARCHED]))
        return [known[it] for it in wanted if it in known]

    def _known(self, identity: SnapshotId) -> Manifest | None:
        for path in self.path.glob(f"{identity}.*"):
            digest = Digest(bytes.fromhex(path.suffix[1:]))
            with path.open("rb") as file:
                if manifest.digest_of(file) == digest and _is_current(file):
                    return Manifest(identity, path, digest)
            path.unlink()
        return None

    def _make(self, identity: SnapshotId) -> Manifest:
        with refusing(f"read layer {identity}"):
            fd, name = tempfile.mkstemp(prefix=NEW_PREFIX, dir=self.path)
            temporary = Path(name)
            try:
                with os.fdopen(fd, "wb") as file:
                    writer = manifest.Writer(cast("BinaryIO", file))
                    for entry in scanning.scan(self.directories.upper(identity)):
                        writer.add(entry)
                    file.flush()
                    os.fsync(file.fileno())
                place = self._place(identity, writer.digest)
                temporary.rename(place)
            finally:
                temporary.unlink(missing_ok=True)
        return Manifest(identity, place, writer.digest)

    def _place(self, identity: SnapshotId, digest: Digest) -> Path:
        return self.path / f"{identity}.{digest.hex()}"

    def _all(self) -> Iterator[Manifest]:
        for name in os.listdir(self.path):
            identity, dot, digest = name.partition(".")
            if dot and identity.isdigit():
                path = self.path / name
                yield Manifest(SnapshotId(int(identity)), path, Digest(bytes.fromhex(digest)))

    def _sweep(self) -> None:
        """Delete what a crash or a removal left."""
        kept = {it.id for it in self.snapshotter.walk() if isinstance(it, Committed)}
        for name in os.listdir(self.path):
            identity, dot, _ = name.partition(".")
            if not dot or not identity.isdigit() or int(identity) not in kept:
                (self.path / name).unlink()


def _is_current(file: BufferedReader) -> bool:
    file.seek(0)
    return manifest.is_current(file)
