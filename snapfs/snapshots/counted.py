"""What a tree leaves of its usage count when it is closed: `<work>/snapfs/usage`.

Written only when everything that it counts is durable, and removed, durably too, before the tree
takes changes again. So when there is one it is true, also after a crash or a power loss; when
there is none, the layer has to be walked.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from snapfs.model import Usage
from snapfs.snapshots.layers import sync_directory

FORMAT = 1
_DIRECTORY = "snapfs"
_NAME = "usage"
_DRAFT = "t-usage"
"""Begins as all half-made files of a tree do, which its opening removes."""


class Sums(msgspec.Struct, frozen=True, kw_only=True):
    """A count: the usage, and the sums that the tree goes on with."""

    format: int = FORMAT
    size_bytes: int
    inodes: int
    sum_blocks: int
    sum_inodes: int

    @property
    def usage(self) -> Usage:
        return Usage(self.size_bytes, self.inodes)


def draft(work: Path, sums: Sums) -> None:
    """Write a record that nobody finds yet; durable on return."""
    path = work / _DIRECTORY / _DRAFT
    with path.open("wb") as file:
        file.write(msgspec.json.encode(sums) + b"\n")
        file.flush()
        os.fsync(file.fileno())


def publish(work: Path) -> None:
    """Give a draft its name; atomic. A crash may lose it, which costs a walk."""
    directory = work / _DIRECTORY
    (directory / _DRAFT).rename(directory / _NAME)


def read(work: Path) -> Usage | None:
    """Return the usage of a tree that is closed; None when it is not recorded."""
    sums = _read(work)
    return None if sums is None else sums.usage


def take(work: Path) -> Sums | None:
    """Return what a tree that is being opened goes on from, and remove it; durable on return."""
    sums = _read(work)
    path = work / _DIRECTORY / _NAME
    if sums is not None or path.exists():
        path.unlink()
        sync_directory(path.parent)
    return sums


def _read(work: Path) -> Sums | None:
    try:
        raw = (work / _DIRECTORY / _NAME).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        sums = msgspec.json.decode(raw, type=Sums)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return sums if sums.format == FORMAT else None
