"""Reading a backup again, all of it, and naming what is damaged."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from snapfs.backup import storing
from snapfs.backup.contents import Contents
from snapfs.backup.damaged import damaged, damaged_content, listed
from snapfs.backup.layout import BlobRecord, Record, Target
from snapfs.backup.progress import Progress, Report
from snapfs.model import DataLoss, InvalidArgument

AGAIN = "`snapfs backup` saves it anew from the root"
MOST_NAMED = 20


def verify(target: Path, report: Report = lambda _: None) -> Record:
    """Read all of a backup; return its record, or raise DataLoss that names what is damaged.

    Raises NotFound when there is no backup, FailedPrecondition for a newer format, Unavailable
    while one is taken there, OSError.
    """
    place = Target(target)
    with place.still():
        record = place.existing()
        contents = read_contents(place, record)
        found = _damages(place, record, report)
        named = list(islice(found, MOST_NAMED))
        others = sum(1 for _ in found)
    if named:
        more = f"; and {others} more" if others else ""
        raise DataLoss(f"{'; '.join(named)}{more}; `snapfs backup --recheck` copies it anew")
    if was_damaged := (*damaged(contents, record), *damaged_content(contents, record)):
        raise DataLoss(
            f"{target} is as it was taken, but of a damaged root: {listed(was_damaged, '; ')}; "
            "`snapfs restore --damaged` restores that as it is"
        )
    return record


def read_contents(place: Target, record: Record) -> Contents:
    """Read the metadata of a backup; DataLoss unless the record has all that it speaks of, but for
    what was damaged in the root."""
    path = place.path / record.metadata
    try:
        contents = Contents.load(path)
    except FileNotFoundError:
        raise DataLoss(f"{path} is gone; {AGAIN}") from None
    except (DataLoss, InvalidArgument) as error:
        what = str(error).partition(";")[0]  # without the way out of who fetches a stream
        raise DataLoss(f"{path} is damaged ({what}); {AGAIN}") from error
    layers = {layer.id: layer for layer in record.layers}
    was_damaged = {(layer.id, layer.created_ns) for layer in record.damaged}
    blobs = {blob.digest: blob.size_bytes for blob in (*record.blobs, *record.damaged_blobs)}
    for layer in contents.layers:
        if (layer.id, layer.created_ns) in was_damaged:
            continue
        have = layers.get(layer.id)
        if have is None or have.created_ns != layer.created_ns:
            raise DataLoss(f"{place.path}: the record lacks layer {layer.id}; take it again")
        if layer.digest and have.digest != layer.digest.hex():
            raise DataLoss(
                f"layer {layer.id} of the backup {place.path} is not what was committed; "
                "take it again, or restore another"
            )
    for blob in contents.blobs:
        if blobs.get(blob.digest) != blob.size_bytes:
            raise DataLoss(f"{place.path}: the record lacks content {blob.digest}; take it again")
    return contents


def _damages(place: Target, record: Record, report: Report) -> Iterator[str]:
    for done, layer in enumerate(record.layers):
        report(Progress("layers", done, len(record.layers)))
        yield from storing.damages(place.layer(layer.id), layer)
    for done, blob in enumerate(record.blobs):
        report(Progress("content", done, len(record.blobs)))
        yield from _blob_damages(place, blob)


def _blob_damages(place: Target, blob: BlobRecord) -> Iterator[str]:
    path = place.blob(blob.digest)
    try:
        storing.verify_blob(path, blob.digest, blob.size_bytes)
    except DataLoss as error:
        yield str(error)
    except OSError as error:
        yield f"content {path} cannot be read ({error.strerror})"
