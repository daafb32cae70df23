"""What a backup is on disk, and the record that makes it one.

    <target>/backup.json              the record; what it does not name is not of the backup
    <target>/metadata-<revision>      the store's saved stream
    <target>/layers/<id>/fs           as in a root
    <target>/layers/<id>/seal         what is in it (snapfs.seals)
    <target>/layers/<id>/layer.json   which layer it is: ids are unique in one store only
    <target>/content/ALGORITHM/HEX    blobs
    <target>/lock                     held by who writes
    <target>/unfinished.json          until the first backup is complete (snapfs.backup.claiming)

The record is replaced last, by one rename, and names a layer or a blob only when that is durable:
a backup that was interrupted leaves the earlier one as it was, and what it copied is not copied
again.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from snapfs.metadata.words import is_digest
from snapfs.model import DataLoss, FailedPrecondition, NotFound, ResourceExhausted, Unavailable
from snapfs.snapshots import roots

FORMAT = 1
RECORD = roots.BACKUP
LAYER = "layer.json"
PART = ".part"
"""Ends the name of what is being made."""
GONE = ".gone"
"""Ends the name of a layer that is being deleted."""
_SUM = "sum"
"""In a record: SHA-256 of the rest of it, in hexadecimal; its first versions have none."""

T = TypeVar("T")


class LayerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One layer of a backup."""

    id: int
    created_ns: int
    """When it was committed."""
    digest: str
    """Of its seal, in hexadecimal."""


class BlobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One blob of a backup."""

    digest: str
    size_bytes: int


class DamagedLayer(msgspec.Struct, frozen=True, kw_only=True):
    """A layer that was damaged in the root."""

    id: int
    created_ns: int
    what: str
    """What was found, for people."""


class DamagedBlob(BlobRecord, frozen=True, kw_only=True):
    """A blob that was damaged in the root, or gone; the backup has no file of it."""

    what: str
    """What was found, for people."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One backup, complete but for what was damaged in the root."""

    format: int = FORMAT
    store: str
    """UUID of the store, in hexadecimal."""
    revision: int
    taken_ns: int
    metadata: str
    """Name of the file with the saved stream."""
    layers: tuple[LayerRecord, ...]
    """Damaged ones, too, as they are; but not those that could not be read."""
    blobs: tuple[BlobRecord, ...]
    """Sound ones: bytes that are not of a digest are not put under its name."""
    damaged: tuple[DamagedLayer, ...] = ()
    damaged_blobs: tuple[DamagedBlob, ...] = ()


class Target:
    """The directory of a backup."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.layers = path / "layers"
        self.content = path / "content"

    def layer(self, snapshot_id: int) -> Path:
        return self.layers / str(snapshot_id)

    def blob(self, digest: str) -> Path:
        algorithm, _, encoded = digest.partition(":")
        return self.content / algorithm / encoded

    def record(self) -> Record | None:
        """Return the record, None when there is no complete backup; DataLoss when damaged.

        Its names lead nowhere else: a backup can come from anybody.
        """
        found = read(self.path / RECORD, Record)
        if found is not None and not _is_sane(found):
            raise DataLoss(
                f"{self.path / RECORD} is damaged (a name or a digest in it is none); "
                "take a new backup elsewhere"
            )
        return found

    def existing(self) -> Record:
        """Return the record, or raise NotFound when this is no backup."""
        found = self.record()
        if found is None:
            raise NotFound(f"{self.path} holds no complete backup; name another directory")
        return found

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep others from reading and writing here for the block; Unavailable when they do.

        The directory must be there.
        """
        fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with locked(fd, fcntl.LOCK_EX, f"another use of the backup {self.path}"):
            yield

    @contextmanager
    def still(self) -> Iterator[None]:
        """Keep others from writing here for the block; Unavailable when somebody does."""
        try:
            fd = os.open(self.path / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # a copy of a backup, or none
            yield
            return
        with locked(fd, fcntl.LOCK_SH, f"another backup to {self.path}"):
            yield


def check_apart(root: Path, backup: Path) -> None:
    """Raise FailedPrecondition when a root and a backup are one inside the other."""
    inner, outer = backup.resolve(), root.resolve()
    if inner.is_relative_to(outer) or outer.is_relative_to(inner):
        raise FailedPrecondition(
            f"backup {backup} and root {root} are one inside the other; name another directory"
        )


def check_new(path: Path, what: str, other: str) -> None:
    """Raise FailedPrecondition unless a directory can be made at `path`: its parent must be there.

    A parent that is missing is mostly a disk that is not mounted.
    """
    if os.path.lexists(path):
        raise FailedPrecondition(f"{what} {path} is not a directory; name {other}")
    if not path.parent.is_dir():
        raise FailedPrecondition(
            f"{what} {path}: there is no directory {path.parent}; mount the disk of the {what}, "
            "or make the directory"
        )


@contextmanager
def written(place: Path) -> Iterator[None]:
    """Say, of what is written in the block, that it is `place` that has no room or is read-only.

    Where two file systems are at work, the name of a file alone does not say which.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        why = f"cannot write to {place}: {(error.strerror or str(error)).lower()}"
        if error.errno == errno.EROFS:
            raise FailedPrecondition(
                f"{why}; mount its file system read-write, or name another directory"
            ) from error
        raise ResourceExhausted(
            f"{why}; free some space on its file system, or raise the quota"
        ) from error


@contextmanager
def locked(fd: int, kind: int, what: str) -> Iterator[None]:
    """Hold a lock (flock) on a descriptor, which is closed at the end; Unavailable if taken."""
    try:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unavailable(f"{what} is under way; wait for it") from None
        yield
    finally:
        os.close(fd)


def _is_sane(record: Record) -> bool:
    """Say whether names and digests of a record are what they are said to be."""
    return (
        record.metadata == f"metadata-{record.revision}"
        and all(it.id >= 0 and is_digest(f"sha256:{it.digest}") for it in record.layers)
        and all(
            it.size_bytes >= 0 and is_digest(it.digest)
            for it in (*record.blobs, *record.damaged_blobs)
        )
    )


class _AnyFormat(msgspec.Struct, frozen=True):
    format: int = 1


def read(path: Path, kind: type[T]) -> T | None:
    """Read a JSON record; None when there is none, DataLoss or FailedPrecondition if unreadable."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        version = msgspec.json.decode(raw, type=_AnyFormat).format
        if version > FORMAT:
            raise FailedPrecondition(
                f"{path} has format {version}, newer than {FORMAT}; use a newer snapfs"
            )
        found = msgspec.json.decode(raw, type=kind)
        said = msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataLoss(f"{path} is damaged ({error}); take a new backup elsewhere") from error
    if said.pop(_SUM, "") not in ("", _sum(said)):
        raise DataLoss(f"{path} is damaged (it has another sum); take a new backup elsewhere")
    return found


def _sum(said: dict[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(said, order="sorted")).hexdigest()


def write(path: Path, record: msgspec.Struct) -> None:
    """Replace a JSON record by one rename, durably."""
    said: dict[str, Any] = msgspec.to_builtins(record)
    said[_SUM] = _sum(said)
    draft = path.with_name(path.name + PART)
    with draft.open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(said), indent=1) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the entries of a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
