"""Taking a backup of a root, beside the service that serves it or without one.

The metadata is one state of the store, saved as a stream. Then the layers and blobs that it speaks
of and the backup lacks are copied: they never change, so there is no hurry. What is removed in the
meantime is kept until then, unless the root's file system gets full or the backup stands still
(snapshots.holding). When something could not be kept, the rest of what is still wanted is copied,
and the metadata saved anew: the next pass has only to copy what is new since this one.

Active snapshots are not in it, since programs write to them meanwhile: commit what is to be kept.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from snapfs.backup import claiming, storing
from snapfs.backup.contents import TABLES, Blob, Contents, Layer, is_committed
from snapfs.backup.damaged import Damaged, DamagedContent, damaged, damaged_content
from snapfs.backup.layout import (
    PART,
    BlobRecord,
    DamagedBlob,
    DamagedLayer,
    LayerRecord,
    Record,
    Target,
    check_apart,
    written,
)
from snapfs.backup.progress import Progress, Report
from snapfs.metadata.blobs import blob_path
from snapfs.metadata.schema import BLOBS, SHARED
from snapfs.model import DataLoss, NotFound, Unavailable
from snapfs.snapshots import records
from snapfs.snapshots.holding import Hold, held
from snapfs.store import ReadStore

PASSES = 10
"""Each has to copy only what was made during the one before."""

_DRAFT = "metadata" + PART


@dataclass(frozen=True, slots=True)
class Taken:
    """A backup that is complete, but for what is damaged in the root."""

    record: Record
    copied_layers: int
    """The others were there."""
    copied_blobs: int
    left_out: tuple[str, ...]
    """Keys of active snapshots."""
    damaged: tuple[Damaged, ...]
    damaged_content: tuple[DamagedContent, ...]


class _Outdated(Exception):
    """Something that the saved metadata speaks of was removed, and has not been copied."""


def take(
    root: Path,
    target: Path,
    *,
    recheck: bool = False,
    report: Report = lambda _: None,
    clock_ns: Callable[[], int] = time.time_ns,
) -> Taken:
    """Make `target` a backup of `root` as it is now; durable on return, and verified what is new.

    A backup of the same store that is there is brought up to date; with `recheck` all of it is
    read, and what is damaged copied anew. A layer or a blob that is damaged in the root, or cannot
    be read there, is named (`Taken.damaged`, `Taken.damaged_content`); a sound copy of it in the
    backup stays. Raises NotFound when there is no root, FailedPrecondition when the target has
    something else in it or lies in the root or a lane, DataLoss when the target fails (what it
    takes is copied first, the earlier backup stays), ResourceExhausted when the target's disk is
    full, Unavailable when snapshots go faster than they are copied; OSError.
    """
    if not (root / "metadata").is_dir():
        raise NotFound(f"{root} is not a root of snapfs: it has no metadata; give another --root")
    check_apart(root, target)
    place = Target(target)
    why, copied = "", (0, 0)
    with written(target), ReadStore.open(root / "metadata", TABLES) as store, _begun(place, store):
        for _ in range(PASSES):
            with held(root) as hold:
                taking = _Taking(root, store, place, hold, report, clock_ns, recheck=recheck)
                try:
                    taken = taking.run()
                except _Outdated:
                    why = hold.why_lost or "something else than the service deletes there"
                    copied = _sum(copied, taking.copied)
                    continue
                layers, blobs = _sum(copied, taking.copied)
                return replace(taken, copied_layers=layers, copied_blobs=blobs)
    raise Unavailable(
        f"snapshots or content of {root} are removed faster than they can be copied, and were not "
        f"kept ({why}); try again later: what was copied stays"
    )


def _sum(first: tuple[int, int], second: tuple[int, int]) -> tuple[int, int]:
    return first[0] + second[0], first[1] + second[1]


@contextmanager
def _begun(place: Target, store: ReadStore) -> Iterator[None]:
    """Hold a directory that may be the backup of `store`, and is marked as such, for the block."""
    with store.view() as tx:
        uuid = tx.uuid.hex()
    claiming.make(place)
    claiming.check(place, uuid)
    with place.held():
        claiming.begin(place, uuid)
        yield


class _Taking:
    """One pass."""

    def __init__(
        self,
        root: Path,
        store: ReadStore,
        target: Target,
        hold: Hold,
        report: Report,
        clock_ns: Callable[[], int],
        *,
        recheck: bool,
    ) -> None:
        self._root = root
        self._store = store
        self._target = target
        self._hold = hold
        self._report = report
        self._clock_ns = clock_ns
        self._recheck = recheck
        self._copied_layers = 0
        self._copied_blobs = 0
        self._damaged: list[DamagedLayer] = []
        self._damaged_blobs: list[DamagedBlob] = []
        self._failed: DataLoss | None = None
        self._is_outdated = False

    @property
    def copied(self) -> tuple[int, int]:
        """How many layers and blobs were copied."""
        return self._copied_layers, self._copied_blobs

    def run(self) -> Taken:
        contents = self._save()
        layers = self._layers(contents)
        blobs = self._blobs(contents)
        if self._is_outdated:
            raise _Outdated
        if self._failed is not None:
            raise self._failed
        record = Record(
            store=contents.uuid.hex(),
            revision=contents.revision,
            taken_ns=self._clock_ns(),
            metadata=f"metadata-{contents.revision}",
            layers=layers,
            blobs=blobs,
            damaged=tuple(self._damaged),
            damaged_blobs=tuple(self._damaged_blobs),
        )
        (self._target.path / _DRAFT).rename(self._target.path / record.metadata)
        claiming.complete(self._target, record)
        return Taken(
            record,
            self._copied_layers,
            self._copied_blobs,
            contents.actives,
            damaged(contents, record),
            damaged_content(contents, record),
        )

    def _save(self) -> Contents:
        """Save the metadata, and see that the backup that is there is of the same store."""
        draft = self._target.path / _DRAFT
        with draft.open("wb") as file:
            self._store.save(file, aside=False)
            file.flush()
            os.fsync(file.fileno())
        return Contents.load(draft)

    def _layers(self, contents: Contents) -> tuple[LayerRecord, ...]:
        self._target.layers.mkdir(mode=0o700, exist_ok=True)
        records = []
        for done, layer in enumerate(contents.layers):
            self._report(Progress("layers", done, len(contents.layers)))
            have = self._kept(layer) or self._copy_layer(layer)
            if have is not None:
                records.append(have)
        self._report(Progress("layers", len(contents.layers), len(contents.layers)))
        return tuple(records)

    def _kept(self, layer: Layer) -> LayerRecord | None:
        """Return the record of a copy that is there and good; None when it is to be made."""
        directory = self._target.layer(layer.id)
        try:
            have = storing.layer_record(directory)
        except DataLoss:
            return None
        if have is None or not _is_of(have, layer):
            return None
        return None if self._recheck and any(storing.damages(directory, have)) else have

    def _copy_layer(self, layer: Layer) -> LayerRecord | None:
        """Copy a layer; None when it cannot be read, or is gone, which is told at the end."""
        if self._hold.is_lost and self._is_removed(layer):  # it may be gone in part
            return None
        source = self._root / "layers" / str(layer.id)
        try:
            record = self._put_layer(source, layer, layer.digest)
        except (OSError, DataLoss) as error:
            if self._is_removed(layer):
                return None
            found = self._as_it_is(source, layer, _damage(error, f"layer {source}"))
            return None if self._is_removed(layer) else found
        if self._hold.is_lost and self._is_removed(layer):  # files go after the row and the hold
            return None
        return record

    def _put_layer(self, source: Path, layer: Layer, digest: bytes) -> LayerRecord:
        record = storing.put_layer(source, self._target.layer(layer.id), layer.created_ns, digest)
        self._copied_layers += 1
        return record

    def _as_it_is(self, source: Path, layer: Layer, failure: DataLoss) -> LayerRecord | None:
        """Note a layer that is damaged in the root, and copy it so unless an earlier copy is there.

        None when it cannot be copied. What is sound in the root failed in the target, which is
        told at the end.
        """
        if not (what := storing.damage_of(source, layer.digest)):
            self._failed = self._failed or failure
            return None
        self._damaged.append(DamagedLayer(id=layer.id, created_ns=layer.created_ns, what=what))
        if have := self._kept(replace(layer, digest=b"")):
            return have
        try:
            return self._put_layer(source, layer, digest=b"")
        except (OSError, DataLoss) as error:
            _damage(error, f"layer {source}")
            return None

    def _is_removed(self, layer: Layer) -> bool:
        """Say whether a snapshot was removed, so that the saved metadata is too old."""
        with self._store.view() as tx:
            row = records.by_id(tx, layer.id)
        is_removed = not is_committed(row, layer)
        self._is_outdated = self._is_outdated or is_removed
        return is_removed

    def _blobs(self, contents: Contents) -> tuple[BlobRecord, ...]:
        stored = []
        for done, blob in enumerate(contents.blobs):
            self._report(Progress("content", done, len(contents.blobs)))
            if self._has(blob) or self._copy_blob(blob):
                stored.append(BlobRecord(digest=blob.digest, size_bytes=blob.size_bytes))
        self._report(Progress("content", len(contents.blobs), len(contents.blobs)))
        return tuple(stored)

    def _has(self, blob: Blob) -> bool:
        path = self._target.blob(blob.digest)
        try:
            if self._recheck:
                storing.verify_blob(path, blob.digest, blob.size_bytes)
            return path.stat().st_size == blob.size_bytes
        except (OSError, DataLoss):  # gone, damaged, or a disk that cannot read it
            return False

    def _copy_blob(self, blob: Blob) -> bool:
        """Copy a blob; False when it is damaged, or gone, or the target fails: told at the end."""
        source = blob_path(self._root / "content", blob.digest)
        target = self._target.blob(blob.digest)
        try:
            storing.put_blob(source, target, blob.digest, blob.size_bytes, link=True)
        except (OSError, DataLoss) as error:
            if not self._is_collected(blob):
                self._note(blob, source, _damage(error, f"content {blob.digest}"))
            return False
        self._copied_blobs += 1
        return True

    def _is_collected(self, blob: Blob) -> bool:
        """Say whether a blob was removed, so that the saved metadata is too old."""
        with self._store.view() as tx:
            row = tx.get(BLOBS, SHARED, blob.digest)
        is_collected = row is None or row.body.going
        self._is_outdated = self._is_outdated or is_collected
        return is_collected

    def _note(self, blob: Blob, source: Path, failure: DataLoss) -> None:
        """Note a blob that is damaged in the root; what is sound there failed in the target."""
        what = storing.damage_of_blob(source, blob.digest, blob.size_bytes)
        if not what:
            self._failed = self._failed or failure
        elif not self._is_collected(blob):  # its file goes after the row says so
            it = DamagedBlob(digest=blob.digest, size_bytes=blob.size_bytes, what=what)
            self._damaged_blobs.append(it)


def _damage(error: OSError | DataLoss, what: str) -> DataLoss:
    """Return what an error says about damage; raise one that says nothing about it."""
    if isinstance(error, DataLoss):
        return error
    if error.errno not in (errno.EIO, errno.ENOENT):
        raise error
    return DataLoss(f"{what} cannot be copied ({error}); run `snapfs fsck`, and check both disks")


def _is_of(have: LayerRecord, layer: Layer) -> bool:
    """Say whether a copy is of a layer, and true to its digest, which may be newer than it."""
    is_true = not layer.digest or have.digest == layer.digest.hex()
    return have.created_ns == layer.created_ns and is_true
