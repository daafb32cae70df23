"""What an upper layer looked like when it was last copied: a stamp for each of its entries. Pure.

A file whose stamp is the same has not changed. The change time of the kernel moves in ticks, so a
file that changed just before it was looked at may change again and keep its time: such stamps are
remembered as *fresh*, and prove nothing.
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple, TypeAlias

import msgspec

FRESH_NS = 50_000_000
"""Longer than a tick of any kernel's clock for files."""


class Stamp(NamedTuple):
    """One entry of a layer."""

    kind: int
    """S_IFMT bits."""
    ino: int
    ctime_ns: int
    size_bytes: int
    marks: bytes = b""
    """Of a directory: what it hides or where its lower part is."""
    fresh: bool = False

    @property
    def is_dir(self) -> bool:
        return self.kind == stat.S_IFDIR


Stamps: TypeAlias = dict[bytes, Stamp]
"""By path in the layer, without a leading slash."""


def stamp(real: os.stat_result, marks: bytes = b"") -> Stamp:
    """Return the stamp of an entry with these attributes.

    Whiteouts are all alike: they are links to one file.
    """
    kind = stat.S_IFMT(real.st_mode)
    if is_whiteout(real):
        return Stamp(kind, 0, 0, 0)
    return Stamp(kind, real.st_ino, real.st_ctime_ns, real.st_size, marks)


def is_whiteout(real: os.stat_result) -> bool:
    """Whether an entry hides its name in the layers below."""
    return stat.S_ISCHR(real.st_mode) and real.st_rdev == 0


def is_same(was: Stamp, real: os.stat_result) -> bool:
    """Whether an entry that is no directory is as its stamp says, for certain; quick."""
    return (
        was.ctime_ns == real.st_ctime_ns
        and was.ino == real.st_ino
        and was.size_bytes == real.st_size
        and not was.fresh
        and was.kind == stat.S_IFMT(real.st_mode)
    )


def is_fresh(found: Stamp, looked_ns: int) -> bool:
    """Whether what was looked at then may change again without a new time."""
    return found.ctime_ns >= looked_ns - FRESH_NS


def settled(found: Stamp, looked_ns: int) -> Stamp:
    """Return a stamp to remember: one that is too fresh to be told from a later one is marked."""
    return found._replace(fresh=True) if is_fresh(found, looked_ns) else found


def encode(stamps: Stamps) -> bytes:
    return msgspec.msgpack.encode(stamps)


def decode(packed: bytes) -> Stamps:
    """Return what `encode` was given, or raise msgspec.MsgspecError."""
    return msgspec.msgpack.decode(packed, type=dict[bytes, Stamp])
