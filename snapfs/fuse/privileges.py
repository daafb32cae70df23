"""Whether a caller may write to a set-id file and leave it set-id (capabilities(7), CAP_FSETID).

With HANDLE_KILLPRIV_V2 the kernel leaves this to us and says in a flag what it found. libfuse does
not hand that flag on: the channel reads it from the request. Without the channel, and for requests
that have no such flag (fallocate, copy_file_range), we ask /proc about the caller, for the few
files that have such bits.
"""

from __future__ import annotations

import os
import stat

from snapfs.fuse import channel

_CAP_FSETID = 1 << 4


def loses_set_id(mode: int) -> bool:
    """Say whether a write by an unprivileged caller takes bits from this mode (chmod(2))."""
    if not stat.S_ISREG(mode):
        return False
    return (
        bool(mode & stat.S_ISUID)
        or mode & (stat.S_ISGID | stat.S_IXGRP) == stat.S_ISGID | stat.S_IXGRP
    )


def without_set_id(mode: int) -> int:
    """Return the permission bits that such a write leaves."""
    mode &= ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        mode &= ~stat.S_ISGID
    return stat.S_IMODE(mode)


def keeps_set_id(pid: int) -> bool:
    """Say whether the present request's caller has CAP_FSETID in the initial user name space.

    Where the kernel does not say it, process `pid` is asked; False when that is gone.
    """
    kills = channel.kills_set_id()
    return has_right(pid) if kills is None else not kills


def has_right(pid: int) -> bool:
    """Ask about a process, whatever the present request says."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            effective = next(int(line[7:], 16) for line in status if line.startswith("CapEff:"))
        at_home = os.readlink(f"/proc/{pid}/ns/user") == os.readlink("/proc/self/ns/user")
    except (OSError, StopIteration):
        return False
    return at_home and bool(effective & _CAP_FSETID)
