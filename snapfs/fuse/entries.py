"""Names and attributes as they go over the wire (linux/fuse.h), for replies past pyfuse3."""

from __future__ import annotations

import stat
import struct

from snapfs.fuse.attributes import View
from snapfs.overlay import Attributes

_ENTRY = struct.Struct("<QQQQII QQQQQQ IIIIIIIIII")
_DIRENT = struct.Struct("<QQII")
_SECOND_NS = 1_000_000_000
NOTHING = bytes(_ENTRY.size)
"""An entry that hands no node to the kernel."""


def entry(view: View, attributes: Attributes, nodeid: int, *, lasting: bool) -> bytes:
    """Return fuse_entry_out for a node; `lasting` attributes may be cached."""
    valid_s, valid_ns = _split(int(view.timeout_s * _SECOND_NS))
    uid, gid, nlink = attributes.uid, attributes.gid, attributes.nlink
    if view.owners is not None:
        uid, gid = view.owners.shown(uid, gid)
    if view.static_nlink and stat.S_ISDIR(attributes.mode):
        nlink = 1
    times = [_split(ns) for ns in (attributes.atime_ns, attributes.mtime_ns, attributes.ctime_ns)]
    return _ENTRY.pack(
        nodeid,
        0,
        valid_s,
        valid_s if lasting else 0,
        valid_ns,
        valid_ns if lasting else 0,
        attributes.ino,
        attributes.size,
        attributes.blocks,
        *(seconds & 0xFFFFFFFF_FFFFFFFF for seconds, _ in times),
        *(nanoseconds for _, nanoseconds in times),
        attributes.mode,
        nlink,
        uid,
        gid,
        attributes.rdev & 0xFFFFFFFF,
        attributes.blksize,
        0,
    )


def absent(view: View) -> bytes:
    """Return the entry that lets the kernel remember that a name does not exist."""
    valid_s, valid_ns = _split(int(view.timeout_s * _SECOND_NS))
    return _ENTRY.pack(0, 0, valid_s, 0, valid_ns, *([0] * 17))


def dirent(ino: int, key: int, name: bytes, kind: int) -> bytes:
    """Return fuse_dirent, padded; `kind` is S_IFMT bits, `key` the place to read on from."""
    record = _DIRENT.pack(ino, key, len(name), kind >> 12) + name
    return record + bytes(-len(record) % 8)


def _split(time_ns: int) -> tuple[int, int]:
    return divmod(time_ns, _SECOND_NS)
