"""Putting layers and blobs where they belong, from a root into a backup or the other way round.

Each is made under another name, made durable, and renamed: what has its name is whole. A layer is
compared with its digest before it gets it, a blob with its own.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from snapfs import seals
from snapfs.backup import trees
from snapfs.backup.layout import GONE, LAYER, PART, LayerRecord, read, sync_directory, write
from snapfs.metadata.blobs import BLOB_MODE, feed, hasher
from snapfs.metadata.words import is_digest
from snapfs.model import DataLoss
from snapfs.overlay.syscalls import copy_data
from snapfs.snapshots.durability import syncfs
from snapfs.snapshots.erase import erase

_ERASE_S = 3600.0


def put_layer(source: Path, target: Path, created_ns: int, digest: bytes) -> LayerRecord:
    """Make `target` a copy of the layer directory `source`; durable on return.

    With a `digest` it must have that one: DataLoss, naming what differs. FileNotFoundError when the
    source goes meanwhile. What fails leaves nothing, and what was there.
    """
    part = target.with_name(target.name + PART)
    discard(part)
    part.mkdir(mode=0o700)
    try:
        record = _fill(source, part, created_ns, digest)
        discard(target)
        part.rename(target)
    except Exception:
        with suppress(OSError):
            discard(part)
        raise
    sync_directory(target.parent)
    return record


def _fill(source: Path, part: Path, created_ns: int, digest: bytes) -> LayerRecord:
    """Copy a layer into the directory `part`, verified and durable."""
    fd = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        trees.copy(source / "fs", part / "fs")
        found = seals.seal(part / "fs", part / seals.SEAL)
        if digest and found != digest:
            raise DataLoss(_differs(source, part, digest))
        record = LayerRecord(id=int(part.stem), created_ns=created_ns, digest=found.hex())
        write(part / LAYER, record)
        syncfs(fd)
    finally:
        os.close(fd)
    return record


def _differs(source: Path, part: Path, digest: bytes) -> str:
    damages = seals.verify(part / "fs", source / seals.SEAL, digest)
    return f"layer {source} is not what was committed: {_first(damages)}"


def damage_of(source: Path, digest: bytes) -> str:
    """Read a root's layer from the disk and say what is damaged in it; empty when it is sound."""
    if digest:
        damages = seals.verify(source / "fs", source / seals.SEAL, digest)
        return f"layer {source}: {_first(damages)}" if damages else ""
    try:
        seals.measure(source / "fs")
    except OSError as error:
        return f"layer {source} cannot be read ({error})"
    return ""


def _first(damages: list[seals.Damage]) -> str:
    if not damages:
        return "it differs"
    more = f" and {len(damages) - 1} more" if len(damages) > 1 else ""
    return f"{os.fsdecode(damages[0].path) or 'it'} {damages[0].what}{more}"


def layer_record(directory: Path) -> LayerRecord | None:
    """Return what the record in a layer's directory says; None when there is no whole layer."""
    return read(directory / LAYER, LayerRecord)


def damages(directory: Path, record: LayerRecord) -> Iterator[str]:
    """Read a stored layer from the disk and say each thing that is not as the record says."""
    if not directory.exists():
        yield f"layer {directory} is gone"
        return
    digest = bytes.fromhex(record.digest)
    for damage in seals.verify(directory / "fs", directory / seals.SEAL, digest):
        yield f"layer {directory} is damaged: {os.fsdecode(damage.path) or 'it'} {damage.what}"
    if not _has_digest(directory / seals.SEAL, digest):
        yield f"{directory / seals.SEAL}, which lists what is in the layer, is damaged"
    try:
        said = layer_record(directory)
    except DataLoss as error:
        yield str(error)
    else:
        if said != record:
            yield f"{directory / LAYER} does not say what the backup's record does"


def _has_digest(file: Path, digest: bytes) -> bool:
    """Say whether the list of a layer is there and sound."""
    try:
        return seals.digest_of(file) == digest
    except (DataLoss, OSError):
        return False


def put_blob(source: Path, target: Path, digest: str, size_bytes: int, *, link: bool) -> None:
    """Make `target` a copy of a blob's file, verified; durable on return.

    With `link` it is the same file where that can be. FileNotFoundError when the source is gone.
    What fails leaves nothing.
    """
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = target.with_name(target.name + PART)
    part.unlink(missing_ok=True)
    try:
        if not (link and _link(source, part)):
            _copy(source, part)
        verify_blob(part, digest, size_bytes, source)
        part.rename(target)
    except Exception:
        with suppress(OSError):
            part.unlink()
        raise
    sync_directory(target.parent)


def _link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without links
        return False
    return True


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reading, target.open("wb") as writing:
        os.fchmod(writing.fileno(), BLOB_MODE)
        copy_data(reading.fileno(), writing.fileno(), os.fstat(reading.fileno()).st_size)
        os.fsync(writing.fileno())


def verify_blob(path: Path, digest: str, size_bytes: int, shown: Path | None = None) -> None:
    """Read a blob's file; DataLoss, naming it as `shown`, when it is not what its name says."""
    hash_ = hasher(digest)
    with path.open("rb") as file:
        is_sound = os.fstat(file.fileno()).st_size == size_bytes
        if is_sound:
            feed(hash_, file.fileno(), size_bytes)
    if not is_sound or hash_.hexdigest() != digest.partition(":")[2]:
        raise DataLoss(f"content {digest} is damaged in {shown or path}")


def damage_of_blob(source: Path, digest: str, size_bytes: int) -> str:
    """Read a root's blob and say what is damaged in it; empty when it is sound."""
    try:
        verify_blob(source, digest, size_bytes)
    except FileNotFoundError:
        return f"its file {source} is gone"
    except OSError as error:
        return f"its file {source} cannot be read ({error.strerror})"
    except DataLoss:
        return f"its file {source} has other bytes"
    return ""


def prune_blobs(directory: Path, kept: Collection[str]) -> None:
    """Delete the blobs that are in none of the digests `kept`, and whatever was written in part.

    `directory` has one of each algorithm; what is not named as a blob stays, and there may be none.
    """
    for path in list(directory.glob("*/*")):
        digest = f"{path.parent.name}:{path.name.removesuffix(PART)}"
        is_kept = digest in kept and not path.name.endswith(PART)
        if not is_kept and is_digest(digest) and path.is_file():
            path.unlink()


def discard(directory: Path) -> None:
    """Delete a layer's directory, whole or in part; a no-op when there is none."""
    with suppress(FileNotFoundError):
        (directory / LAYER).unlink()
    erase(directory, budget_s=_ERASE_S)


def retire(directory: Path) -> None:
    """Delete a layer's directory; what a run that is cut leaves of it says that it is no layer."""
    gone = directory.with_name(directory.name + GONE)
    discard(gone)
    with suppress(FileNotFoundError):
        directory.rename(gone)
        sync_directory(directory.parent)
        discard(gone)
