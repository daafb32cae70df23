"""Which mount(2) calls a client makes to see a snapshot. Pure.

A snapshot is a bind mount of its directory among the trees. Only what containerd unpacks into
(the last part of the key begins with "extract-") is an `overlay` mount of the layer directories:
the applier then writes straight into `upperdir`, with whiteouts as they are, and mounts nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from snapfs.model import Mount, SnapshotId

EXTRACT_PREFIX = "extract-"

MAX_OVERLAY_BYTES = 4096 - 512
"""Longest overlay options: mount(2) takes a page; containerd starts to shorten them here."""

_UPPER = "fs"
"""Last part of an upper directory's path; before it is the snapshot's number (layers.py)."""

_MAX_DIGITS = 19
"""Of a snapshot's number; one with more may be above 64 bits."""

_MEANT_BY_OVERLAYFS = frozenset(":,\\")


def is_extraction(key: str) -> bool:
    """Say whether `key` is one that containerd unpacks a layer into."""
    return key.rpartition("/")[2].startswith(EXTRACT_PREFIX)


def bind(source: Path, *, writable: bool) -> Mount:
    """Return the bind mount of a tree's directory."""
    return Mount(type="bind", source=str(source), options=("rbind", "rw" if writable else "ro"))


def overlay(upper: Path, work: Path, lowers: Sequence[Path], *, index_off: bool) -> Mount | None:
    """Return the overlay mount of layer directories, or None where a bind mount must do.

    None when the options are too long for one mount(2), and when a path holds a character that
    overlayfs wants escaped: appliers take `upperdir` as it stands and would miss the directory.
    """
    paths = [str(path) for path in (upper, work, *lowers)]
    if any(_MEANT_BY_OVERLAYFS.intersection(path) for path in paths):
        return None
    options = (
        *(("index=off",) if index_off else ()),
        f"workdir={paths[1]}",
        f"upperdir={paths[0]}",
        f"lowerdir={':'.join(paths[2:])}",
    )
    if len(",".join(options).encode("utf-8", "surrogateescape")) > MAX_OVERLAY_BYTES:
        return None
    return Mount(type="overlay", source="overlay", options=options)


def place(mounts: Sequence[Mount]) -> Path | None:
    """Return the directory that mounts are told apart by: what is bound, or written to.

    None for what is none of the mounts that are made here.
    """
    if len(mounts) != 1:
        return None
    (mount,) = mounts
    if mount.type == "bind" or "rbind" in mount.options:
        return Path(mount.source)
    options = dict(option.partition("=")[::2] for option in mount.options)
    return Path(options["upperdir"]) if "upperdir" in options else None


def identity(mounts: Sequence[Mount]) -> SnapshotId | None:
    """Return the number of the snapshot that mounts would be of, if they are of one at all."""
    where = place(mounts)
    if where is None:
        return None
    name = where.parent.name if where.name == _UPPER else where.name
    is_number = name.isascii() and name.isdecimal() and len(name) <= _MAX_DIGITS
    return SnapshotId(int(name)) if is_number else None
