"""Which processes may write files of a snapshot (proc(5)), whatever mount they have them from.

A worker knows the files and not who has them open, and of a mount that has ended not even those.
The kernel shows each process's descriptors and mappings with the numbers that we gave the files,
which tell the snapshot. A number in another file system may be the same, so the mount must be of
this lane, or one that its process cannot name any more.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from snapfs import processes
from snapfs.fuse import mounts
from snapfs.model import SnapshotId
from snapfs.overlay import identity

LOOK_S = 2.0
"""After which it is enough to name those that were found."""


def writers(snapshot_id: SnapshotId, source: str) -> list[int]:
    """Return the processes that have a file of a snapshot open for writing or mapped so; `source`
    is what the lane's mounts are named by."""
    until_s = time.monotonic() + LOOK_S
    key = identity.root(snapshot_id) >> identity.LOW_BITS
    found: list[int] = []
    for pid in processes.running():
        if _maps(pid, key) or _has_open(pid, key, source):
            found.append(pid)
        if time.monotonic() > until_s:
            break
    return found


def _has_open(pid: int, key: int, source: str) -> bool:
    written = set(_mounts_written(pid, key))
    if not written:
        return False
    try:
        sources = {it.number: it.source for it in mounts.mount_table(str(pid))}
    except OSError:
        return False
    return any(sources.get(number, source) == source for number in written)


def _mounts_written(pid: int, key: int) -> Iterator[int]:
    """Yield the mount of each descriptor with which a file of a snapshot can be written."""
    for fd in processes.listed(pid, "fdinfo"):
        told = processes.fields(processes.read(pid, f"fdinfo/{fd}"))
        flags = int(told.get("flags", "0"), 8)
        if flags & os.O_ACCMODE and not flags & os.O_PATH and _is_of(told.get("ino", ""), key):
            yield int(told.get("mnt_id", "0"))


def _maps(pid: int, key: int) -> bool:
    """Whether a process has a shared mapping of a snapshot's file that it may write through."""
    lines = (line.split(maxsplit=5) for line in processes.read(pid, "maps").splitlines())
    return any(
        len(it) == 6 and it[1][1] == "w" and it[1][3] == "s" and _is_of(it[4], key) for it in lines
    )


def _is_of(ino: str, key: int) -> bool:
    return ino.isdecimal() and int(ino) >> identity.LOW_BITS == key
