"""The records that cross the overlay's border. Names and paths from the kernel are bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .owners import Owners
    from .sealing import Atime

BLOCK_BYTES = 512
"""Unit of st_blocks."""


@dataclass(frozen=True, slots=True)
class TreeSpec:
    """What one merged tree is made of."""

    number: int
    """The snapshot's id, from 1; it marks the tree's inode numbers. Ignored when `single`."""
    lowers: tuple[bytes | Path, ...]
    """Committed layers, direct parent first. They must never change while the tree is open."""
    upper: bytes | Path | None = None
    """The layer that takes all changes; None makes the tree read-only."""
    work: bytes | Path | None = None
    """A directory on the upper's file system for half-made files; needed with `upper`."""
    single: bool = False
    """The tree is a mount of its own: its root is inode 1 and numbers carry no snapshot."""
    dot_whiteouts: bool = False
    """Lower layers may say with names what they hide, as layers in archives do (`.wh.NAME`)."""
    sync: bool = True
    """After a power cut no copy is seen without its data; else that is left to chance."""
    metacopy: bool = False
    """Copy up no data for a change of a file's attributes (metacopying.py). What an earlier opening
    left so is found in any case."""
    resumed: bool = False
    """The kernel may know files from an earlier opening, by a worker that died. What is removed and
    not known here is then kept until the tree is closed: else its inode number, and with it the
    pages that an open descriptor sees, would become another file's."""
    atime: Atime | None = None
    """When reads change times of access in the upper layer; None: as where it is mounted."""
    owners: Owners | None = None
    """Show and take owners translated; None as they are stored."""


class Attributes(NamedTuple):
    """What stat(2) says of a node. A named tuple because one is made for every request."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    blksize: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class SetAttr:
    """Attributes to change; None leaves one as it is."""

    mode: int | None = None
    """Permission bits, with set-id and sticky bits."""
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    gives_times: bool = False
    """Its caller chose times, and does not only want the present one; that has rules of its own."""


class DirEntry(NamedTuple):
    """One name in a merged directory; `.` and `..` are not listed."""

    name: bytes
    ino: int
    type: int
    """File type as in st_mode (S_IFMT bits)."""


class Listed(NamedTuple):
    """One name in a listing that is read in pages."""

    place: int
    """Where to go on behind it: above 2, below 2^62, and the same as long as the name exists."""
    name: bytes
    ino: int
    type: int
    """File type as in st_mode (S_IFMT bits)."""
