"""What callers may do that the kernel leaves to us: capabilities(7), asked of /proc.

Whether who writes to a set-id file leaves it set-id (CAP_FSETID): with HANDLE_KILLPRIV_V2 the
kernel says in a flag what it found. libfuse does not hand that on: the channel reads it from the
request. Without the channel, and for requests that have no such flag (fallocate, copy_file_range,
an ACL that is set), we ask /proc about the caller, for the few files that have such bits. So we do
to list trusted attributes (CAP_SYS_ADMIN), for files that have any.
"""

from __future__ import annotations

import os
import stat

from snapfs.fuse import channel

_CAP_FSETID = 1 << 4
_CAP_SYS_ADMIN = 1 << 21


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
    return _has(_status(pid), pid, _CAP_FSETID)


def keeps_set_group(uid: int, pid: int, gid: int) -> bool:
    """Say whether who sets an ACL on a file of group `gid` may leave it set-group-id.

    False when the process is gone, or its ids are of another user name space. A request of root's
    need not be the process's own: an overlay on top asks as who mounted it.
    """
    status = _status(pid) if uid else {}
    if not uid or _has(status, pid, _CAP_FSETID):
        return True
    groups = {*status.get("Groups", "").split(), *status.get("Gid", "").split()[3:]}
    return str(gid) in groups


def sees_trusted(uid: int, pid: int) -> bool:
    """Say whether a request may list trusted attributes (xattr(7)): the process has CAP_SYS_ADMIN,
    or it is root's."""
    return not uid or _has(_status(pid), pid, _CAP_SYS_ADMIN)


def _has(status: dict[str, str], pid: int, capability: int) -> bool:
    if not int(status.get("CapEff", "0"), 16) & capability:
        return False
    try:
        return os.readlink(f"/proc/{pid}/ns/user") == os.readlink("/proc/self/ns/user")
    except OSError:
        return False


def _status(pid: int) -> dict[str, str]:
    """Read /proc/PID/status; nothing when the process is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as lines:
            return dict(line.rstrip("\n").split(":\t", 1) for line in lines if ":\t" in line)
    except OSError:
        return {}
