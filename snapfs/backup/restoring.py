"""Making a root out of a backup.

Layers and blobs come first, each verified; the metadata is made aside and gets its name last, so a
root that is half restored has none: `serve` refuses it by its mark, and a second restore goes on.
Active snapshots are left out, since the backup has no data of them, and so are half-written
ingests. Volumes whose working copies were such stand without one, not mounted, until the service
begins and gives them one of what they stand on. Usages are measured anew, as they are the file
system's.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from snapfs.backup import storing
from snapfs.backup.contents import TABLES, Contents, checked_digest
from snapfs.backup.damaged import Damaged, DamagedContent, damaged, damaged_content, listed
from snapfs.backup.layout import (
    LAYER,
    PART,
    BlobRecord,
    LayerRecord,
    Record,
    Target,
    check_apart,
    check_new,
    locked,
    read,
    sync_directory,
    write,
    written,
)
from snapfs.backup.progress import Progress, Report
from snapfs.backup.verifying import read_contents
from snapfs.metadata.blobs import blob_path
from snapfs.metadata.schema import BLOBS, INGESTS, SHARED
from snapfs.model import AlreadyExists, DataLoss, FailedPrecondition, Kind, Usage
from snapfs.snapshots import records, roots
from snapfs.snapshots.durability import syncfs
from snapfs.snapshots.layers import WORK_MODE, LayerDirectories, is_id
from snapfs.snapshots.records import SnapshotRow
from snapfs.snapshots.usage import measure
from snapfs.store import Failed, Row, Store, WriteTx
from snapfs.volumes import copies
from snapfs.volumes.schema import SCOPE as VOLUME_SCOPE
from snapfs.volumes.schema import VOLUMES

_DRAFT = "metadata" + PART
_MAY_BE_THERE = {roots.RECORD, "lost+found", roots.RESTORING + PART}
"""What an empty root may have in it: the last is of a restore that just began."""


class _Mark(msgspec.Struct, frozen=True, kw_only=True):
    """Which backup a root is being made of."""

    format: int = 1
    store: str
    revision: int


@dataclass(frozen=True, slots=True)
class Restored:
    """A root that was made."""

    record: Record
    left_out: tuple[str, ...]
    """Keys of active snapshots, which the backup has no data of."""
    damaged: tuple[Damaged, ...] = ()
    """Snapshots that are in the root as damaged as they were."""
    damaged_content: tuple[DamagedContent, ...] = ()
    """Content that the root knows and has no bytes of."""


def restore(
    source: Path, root: Path, *, as_damaged: bool = False, report: Report = lambda _: None
) -> Restored:
    """Make `root` what it was when the backup `source` was taken; verified and durable.

    With `as_damaged` also what was damaged then: a layer as it was, without its files if these
    could not be read, and with the digest that it should have, so that it is still found; content
    without its bytes, so that it can be fetched again.

    `root` must be empty, or be left from a restore that did not end of a backup of the same store,
    which may have been taken anew since. Raises NotFound when there is no backup, AlreadyExists
    when the root holds something, DataLoss when the backup is damaged or of a damaged root,
    FailedPrecondition when root and backup are one inside the other or the root's parent is
    missing, Unavailable while another restore makes the same root or a backup is taken to
    `source`, OSError.
    """
    place = Target(source)
    check_apart(root, source)
    place.existing()
    with written(root):
        _make(root)
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with written(root), locked(fd, fcntl.LOCK_EX, f"another restore to {root}"), place.still():
        record = place.existing()
        contents = read_contents(place, record)
        was_damaged, content = damaged(contents, record), damaged_content(contents, record)
        if (was_damaged or content) and not as_damaged:
            raise _refusal(source, contents, was_damaged, content)
        layers = LayerDirectories(root)
        if _begin(root, record):
            _unmark(root)
            return Restored(record, contents.actives, was_damaged, content)
        layers.establish()
        with _damaged(source):
            for done, layer in enumerate(record.layers):
                report(Progress("layers", done, len(record.layers)))
                _restore_layer(place, layers, layer)
            for done, blob in enumerate(record.blobs):
                report(Progress("content", done, len(record.blobs)))
                _restore_blob(place, root, blob)
        _prune(root, layers, record)
        left_out = _restore_metadata(source / record.metadata, root, record)
        syncfs(fd)  # also what no layer's own sync covered, such as its work directory
        _finish(root, layers, record)
    return Restored(record, left_out, was_damaged, content)


def _refusal(
    source: Path,
    contents: Contents,
    was_damaged: tuple[Damaged, ...],
    content: tuple[DamagedContent, ...],
) -> DataLoss:
    touched = {it.name for it in was_damaged}.union(*(it.above for it in was_damaged))
    how = [f"{len(contents.chains) - len(touched)} snapshots sound"]
    how += ["the damaged ones as they are"] if was_damaged else []
    how += ["this content without its bytes"] if content else []
    return DataLoss(
        f"backup {source} is of a damaged root: {listed((*was_damaged, *content), '; ')}; "
        f"with --damaged all is restored, {', '.join(how)}"
    )


def _make(root: Path) -> None:
    """Make the directory of a root if there is none; as of a backup, its parent must be there."""
    if root.is_dir():
        return
    check_new(root, "root", "another with --root")
    root.mkdir(mode=0o700)


@contextmanager
def _damaged(source: Path) -> Iterator[None]:
    """Say the way out with what is damaged in a backup."""
    try:
        yield
    except DataLoss as error:
        raise DataLoss(
            f"{error}; while its own root is there, `snapfs backup --recheck {source}` copies anew "
            "what is damaged, and the restore can be run again"
        ) from error


def _restore_layer(place: Target, layers: LayerDirectories, layer: LayerRecord) -> None:
    source, target = place.layer(layer.id), layers.directory(layer.id)
    if storing.layer_record(target) != layer:
        digest = bytes.fromhex(layer.digest)
        try:
            storing.put_layer(source, target, layer.created_ns, digest)
        except FileNotFoundError as error:
            if (source / "fs").exists():
                raise
            raise DataLoss(f"layer {source} of the backup is gone") from error
    layers.work(layer.id).mkdir(mode=WORK_MODE, exist_ok=True)


def _restore_blob(place: Target, root: Path, blob: BlobRecord) -> None:
    source, target = place.blob(blob.digest), blob_path(root / "content", blob.digest)
    if target.exists():
        return
    try:
        storing.put_blob(source, target, blob.digest, blob.size_bytes, link=False)
    except FileNotFoundError as error:
        if source.exists():
            raise
        raise DataLoss(f"content {source} of the backup is gone") from error


def _begin(root: Path, record: Record) -> bool:
    """Mark a root as being restored; refuse one that holds something else.

    True when all is there already: only the end of the restore failed, or was cut.
    """
    mark, path = _Mark(store=record.store, revision=record.revision), root / roots.RESTORING
    found, is_whole = read(path, _Mark), (root / "metadata").exists()
    if found == mark:
        return is_whole
    if found is not None and not is_whole:
        if found.store != mark.store:
            raise FailedPrecondition(
                f"root {root} is being made of a backup of another store; "
                "empty it and restore again"
            )
        write(path, mark)
        return False
    held = sorted(set(os.listdir(root)) - _MAY_BE_THERE)
    if held:
        raise AlreadyExists(
            f"root {root} is not empty ({', '.join(held[:3])}); name a new one with --root"
        )
    write(path, mark)
    return False


def _prune(root: Path, layers: LayerDirectories, record: Record) -> None:
    """Delete what a restore that did not end made and the backup, taken anew, no longer has."""
    ids = {str(layer.id) for layer in record.layers}
    for path in list(layers.path.iterdir()):
        name = path.name.removesuffix(PART)
        if is_id(name) and name not in ids:
            storing.discard(path)
    storing.prune_blobs(root / "content" / "blobs", {blob.digest for blob in record.blobs})


def _restore_metadata(stream: Path, root: Path, record: Record) -> tuple[str, ...]:
    """Make the store, true for this root, under another name than it will have."""
    layers = LayerDirectories(root)
    digests = {layer.id: bytes.fromhex(layer.digest) for layer in record.layers}
    were_damaged = {layer.id for layer in record.damaged}
    draft = root / _DRAFT
    storing.discard(draft)
    with Store.open(draft, TABLES) as store:
        with stream.open("rb") as source:
            store.restore(source)
        with store.view() as tx:
            rows = list(records.rows(tx))
            for blob in tx.rows(BLOBS, SHARED):
                checked_digest(blob.name)
            doomed: list[Row[Any]] = [row for row in rows if row.body.kind == Kind.ACTIVE.value]
            left_out = tuple(row.name for row in doomed)
            doomed += (row for scope in tx.scopes() for row in tx.rows(INGESTS, scope))
            volumes = list(tx.rows(VOLUMES, VOLUME_SCOPE))
        changes = [
            *(partial(copies.take_away, row=row) for row in volumes),
            *(partial(_delete, row=row) for row in doomed),
            *(
                partial(
                    _true_here,
                    row=row,
                    usage=measure(layers.upper(row.body.id)),
                    digest=row.body.digest if row.body.id in were_damaged else digest,
                )
                for row in rows
                if (digest := digests.get(row.body.id))
            ),
        ]
        for outcome in store.batch(changes):
            if isinstance(outcome, Failed):
                raise outcome.error
    return left_out


def _delete(tx: WriteTx, row: Row[Any]) -> None:
    tx.delete(row)


def _true_here(tx: WriteTx, row: SnapshotRow, usage: Usage, digest: bytes) -> None:
    body = msgspec.structs.replace(
        row.body, size_bytes=usage.size_bytes, inodes=usage.inodes, digest=digest
    )
    if body != row.body:
        tx.update(row, body, spec=False)


def _finish(root: Path, layers: LayerDirectories, record: Record) -> None:
    """Let the root begin: its metadata gets its name."""
    for layer in record.layers:
        (layers.directory(layer.id) / LAYER).unlink(missing_ok=True)
    (root / _DRAFT).rename(root / "metadata")
    _unmark(root)


def _unmark(root: Path) -> None:
    """Say that a root is whole, once its metadata has its name for good."""
    sync_directory(root)
    (root / roots.RESTORING).unlink(missing_ok=True)  # a service that began took it away
    sync_directory(root)
