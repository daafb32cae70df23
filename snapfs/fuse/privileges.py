"""What callers may do that the kernel leaves to us: capabilities(7), asked of /proc.

Whether who writes to a set-id file leaves it set-id (CAP_FSETID): with HANDLE_KILLPRIV_V2 the
kernel says in a flag what it found. libfuse does not hand that on: the channel reads it from the
request. Whether such a caller is of the file's group it does not say, and for the few files for
which it matters we ask /proc. Without the channel, and for requests that have no such flag
(fallocate, copy_file_range, an ACL that is set), we ask about CAP_FSETID too, for the few files
that have such bits. So we do to list trusted attributes (CAP_SYS_ADMIN), for files that have any.
"""

from __future__ import annotations

import os
import stat

from snapfs.fuse import channel

_CAP_FSETID = 1 << 4
_CAP_SYS_ADMIN = 1 << 21


def has_set_id(mode: int) -> bool:
    """Say whether a write takes bits from this mode, if the wrong one writes (chmod(2))."""
    return stat.S_ISREG(mode) and bool(mode & (stat.S_ISUID | stat.S_ISGID))


def without_set_id(mode: int, *, in_group: bool) -> int:
    """Return the permission bits that a write leaves by who has no right to set-id bits.

    One of the file's group keeps the set-group bit of a file that is not run by the group, where it
    once meant mandatory locks; since Linux 6.2, others do not (setattr_should_drop_sgid()).
    """
    mode &= ~stat.S_ISUID
    if mode & stat.S_IXGRP or not in_group:
        mode &= ~stat.S_ISGID
    return stat.S_IMODE(mode)


def left_by_write(mode: int, gid: int, pid: int) -> int:
    """Return the permission bits that the present request's write leaves of a file of group `gid`.

    Where the kernel does not say whose it is and whether that has CAP_FSETID in the initial user
    name space, process `pid` is asked; what is gone has no right and no group.
    """
    killer = channel.set_id_killer()
    if killer is None:
        return left_by(pid, mode, gid)
    if killer == channel.NO_KILLER:
        return stat.S_IMODE(mode)
    return without_set_id(mode, in_group=is_in_group(killer, gid))


def left_by(pid: int, mode: int, gid: int) -> int:
    """As `left_by_write` when a process writes, whatever the present request says."""
    if has_right(pid):
        return stat.S_IMODE(mode)
    return without_set_id(mode, in_group=is_in_group(pid, gid))


def is_in_group(pid: int, gid: int) -> bool:
    """Say whether a process is of a group; False when it is gone."""
    return str(gid) in _groups(_status(pid))


def has_right(pid: int) -> bool:
    """Ask whether a process has CAP_FSETID."""
    return _has(_status(pid), pid, _CAP_FSETID)


def keeps_set_group(uid: int, pid: int, gid: int) -> bool:
    """Say whether who sets an ACL on a file of group `gid` may leave it set-group-id.

    False when the process is gone, or its ids are of another user name space. A request of root's
    need not be the process's own: an overlay on top asks as who mounted it.
    """
    status = _status(pid) if uid else {}
    if not uid or _has(status, pid, _CAP_FSETID):
        return True
    return str(gid) in _groups(status)


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


def _groups(status: dict[str, str]) -> set[str]:
    return {*status.get("Groups", "").split(), *status.get("Gid", "").split()[3:]}


def _status(pid: int) -> dict[str, str]:
    """Read /proc/PID/status; nothing when the process is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as lines:
            return dict(line.rstrip("\n").split(":\t", 1) for line in lines if ":\t" in line)
    except OSError:
        return {}
