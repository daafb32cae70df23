"""Whether a caller may write to a set-id file and leave it set-id (capabilities(7), CAP_FSETID).

With HANDLE_KILLPRIV_V2 the kernel leaves this to us and says in a flag what it found; libfuse does
not hand that flag on. So for the few files that have such bits we ask /proc about the caller.
"""

from __future__ import annotations

import os
import stat

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
    """Say whether process `pid` has CAP_FSETID in our user name space; False when it is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            effective = next(int(line[7:], 16) for line in status if line.startswith("CapEff:"))
        at_home = os.readlink(f"/proc/{pid}/ns/user") == os.readlink("/proc/self/ns/user")
    except (OSError, StopIteration):
        return False
    return at_home and bool(effective & _CAP_FSETID)
