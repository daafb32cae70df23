"""Makes the kernel forget the names of one mount, which disturbs no other."""

from __future__ import annotations

import os
from pathlib import Path

from snapfs.fuse import mounts
from snapfs.fuse.attach import MS_REMOUNT

_SAME_BITS = os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_NOATIME
"""statvfs(2) tells of these as mount(2) takes them."""


def drop_dentries_of(mountpoint: Path) -> None:
    """Mount anew as it is: the kernel writes back, and drops all dentries that nobody uses."""
    drop_with(mountpoint, flags_of(mountpoint))


def flags_of(mountpoint: Path) -> int:
    """Return what `drop_with` needs; asks the mount."""
    return MS_REMOUNT | os.statvfs(mountpoint).f_flag & _SAME_BITS


def drop_with(mountpoint: Path, flags: int) -> None:
    """As `drop_dentries_of`, and asks the mount nothing: nobody may be there to answer."""
    mounts.mount("", mountpoint, "", flags, "")
