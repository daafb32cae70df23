"""What a new entry takes over from its directory's default ACL (posix_acl_create in the kernel).

Pure. The format is that of `system.posix_acl_*` values: version 2, then (tag, permissions, id)
each.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"
NAMES = frozenset((ACCESS, DEFAULT))

_HEADER = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 1, 2, 4, 8, 16, 32


def inherit(default: bytes, mode: int) -> tuple[int, bytes | None]:
    """Return (permission bits, access ACL or None when the bits say it all) for a new entry.

    `mode` is what the creator asked for, before any umask: a default ACL takes the umask's place.
    """
    entries = list(_ENTRY.iter_unpack(default[_HEADER.size :]))
    masked = any(tag == _MASK for tag, _, _ in entries)
    shifts = {_USER_OBJ: 6, (_MASK if masked else _GROUP_OBJ): 3, _OTHER: 0}
    result = []
    for tag, allowed, who in entries:
        shift = shifts.get(tag)
        if shift is not None:
            allowed &= mode >> shift & 7
            mode = mode & ~(7 << shift) | allowed << shift
        result.append((tag, allowed, who))
    if not masked and not any(tag in (_USER, _GROUP) for tag, _, _ in entries):
        return mode, None
    packed = b"".join(_ENTRY.pack(*entry) for entry in result)
    return mode, default[: _HEADER.size] + packed


def translated(value: bytes, uid: Callable[[int], int], gid: Callable[[int], int]) -> bytes:
    """Return an ACL with its named users and groups replaced."""
    change = {_USER: uid, _GROUP: gid}
    entries = (
        (tag, allowed, change[tag](who) if tag in change else who)
        for tag, allowed, who in _ENTRY.iter_unpack(value[_HEADER.size :])
    )
    return value[: _HEADER.size] + b"".join(_ENTRY.pack(*entry) for entry in entries)
