"""Which directories a backup may be taken to, and what in them it may delete.

A backup deletes what it does not name. So it begins only where there is nothing, and says first, in
a mark that is durable before anything else is written, that what comes is its own: a first backup
that was interrupted goes on by that mark, one that is complete by its record. Of what is there it
deletes what has the form of its own things, and of layers only those that an earlier record names
or that have a layer's record in them.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from snapfs.backup import storing
from snapfs.backup.layout import (
    GONE,
    LAYER,
    PART,
    RECORD,
    Record,
    Target,
    check_new,
    read,
    sync_directory,
    write,
)
from snapfs.model import FailedPrecondition
from snapfs.snapshots import roots
from snapfs.volumes import mounting

BEGUN = roots.BACKUP_BEGUN
_OF_A_ROOT = ("metadata", roots.RECORD, roots.RESTORING, "empty")
_MAY_BE_THERE = {"lock", BEGUN + PART, "lost+found"}
"""What an empty directory may have in it: the first two are of a backup that just began."""
_SAVED = re.compile(r"metadata-[0-9]+")
_LAYER = re.compile(rf"[0-9]+({re.escape(PART)}|{re.escape(GONE)})?")


class _Begun(msgspec.Struct, frozen=True, kw_only=True):
    """Whose first backup was begun in a directory."""

    format: int = 1
    store: str


def make(target: Target) -> None:
    """Make the directory of a backup if there is none; its parent must be there.

    Raises FailedPrecondition, also for a target that is something else than a directory or lies in
    a lane; OSError.
    """
    path = target.path
    if path.is_dir():
        _check_no_lane(path)
        return
    check_new(path, "backup", "another")
    _check_no_lane(path.parent)
    try:
        path.mkdir(mode=0o700)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EPERM, errno.EACCES):
            raise
        raise FailedPrecondition(
            f"backup {path}: no directory can be made in {path.parent}; name another"
        ) from error
    sync_directory(path.parent)


def _check_no_lane(path: Path) -> None:
    number = path.stat().st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    if any(it.device == device for it in mounting.table()):
        raise FailedPrecondition(
            f"backup {path} lies in a snapshot or a volume of snapfs; name another directory"
        )


def check(target: Target, store: str) -> bool:
    """Say whether a backup of `store` is there; False in a directory that may become one.

    Writes nothing. Raises FailedPrecondition for a root, a backup of another store, and a directory
    with something else in it; DataLoss when the record is damaged; OSError.
    """
    path, names = target.path, set(os.listdir(target.path))
    if of_a_root := sorted(names.intersection(_OF_A_ROOT)):
        raise FailedPrecondition(
            f"{path} is a root of snapfs (it has {of_a_root[0]}), and a backup would destroy it; "
            "name another directory"
        )
    record = target.record()
    begun = None if record else read(path / BEGUN, _Begun)
    if whose := record or begun:
        if whose.store != store:
            raise FailedPrecondition(
                f"{path} has a backup of another store than that of this root; "
                "name another directory"
            )
    elif held := sorted(names - _MAY_BE_THERE):
        raise FailedPrecondition(
            f"{path} is no backup and not empty ({', '.join(held[:3])}); name a new directory"
        )
    return record is not None


def begin(target: Target, store: str) -> None:
    """Check again, now that the target is held, and mark a directory that was empty; durable."""
    if not check(target, store) and not (target.path / BEGUN).exists():
        write(target.path / BEGUN, _Begun(store=store))


def complete(target: Target, record: Record) -> None:
    """Make a record that of the backup, durably, and delete what was of the earlier one."""
    earlier = target.record()
    write(target.path / RECORD, record)
    if (target.path / BEGUN).exists():
        (target.path / BEGUN).unlink()
        sync_directory(target.path)
    _prune(target, record, earlier)


def _prune(target: Target, record: Record, earlier: Record | None) -> None:
    """Delete what was of an earlier backup, or of one that was given up."""
    for path in target.path.glob("metadata-*"):
        if path.name != record.metadata and _SAVED.fullmatch(path.name):
            path.unlink()
    for path in _old_layers(target, record, earlier):
        if path.name.isdecimal():
            storing.retire(path)
        else:
            storing.discard(path)
    storing.prune_blobs(target.content, {blob.digest for blob in record.blobs})


def _old_layers(target: Target, record: Record, earlier: Record | None) -> Iterator[Path]:
    wanted = {str(layer.id) for layer in record.layers}
    known = {str(layer.id) for layer in earlier.layers} if earlier else set()
    for path in list(target.layers.iterdir()):
        if path.name in wanted or not _LAYER.fullmatch(path.name) or not path.is_dir():
            continue
        if not path.name.isdecimal() or path.name in known or (path / LAYER).exists():
            yield path
