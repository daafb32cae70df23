"""Replies of linux/fuse.h in bytes, for requests that are answered past pyfuse3."""

from __future__ import annotations

import os
import struct

import pyfuse3

from snapfs.fuse.channel import INCARNATION

_SECOND_NS = 1_000_000_000
_STATX_OUT = struct.Struct("<QII16x IIQ IIIHxx QQQQ qI4x qI4x qI4x qI4x IIII 112x")
_ENTRY_OUT = struct.Struct("<QQQQII QQQ QQQ III IIII II 4x")
_OPEN_OUT = struct.Struct("<QIi")
_KSTATFS = struct.Struct("<QQQQQIII28x")
_BASIC_STATS = 0x7FF
_BTIME = 0x800


def statx(entry: pyfuse3.EntryAttributes, birth_ns: int | None) -> bytes:
    """Return fuse_statx_out; `entry` is the reply that GETATTR would get."""
    valid_s, valid_ns = divmod(int(entry.attr_timeout * _SECOND_NS), _SECOND_NS)
    times: list[int] = []
    for time_ns in (entry.st_atime_ns, birth_ns or 0, entry.st_ctime_ns, entry.st_mtime_ns):
        times += divmod(time_ns, _SECOND_NS)
    return _STATX_OUT.pack(
        valid_s,
        valid_ns,
        0,
        _BASIC_STATS | (0 if birth_ns is None else _BTIME),
        entry.st_blksize,
        0,
        entry.st_nlink,
        entry.st_uid,
        entry.st_gid,
        entry.st_mode,
        entry.st_ino & ~INCARNATION,
        entry.st_size,
        entry.st_blocks,
        0,
        *times,
        os.major(entry.st_rdev),
        os.minor(entry.st_rdev),
        0,
        0,
    )


def entry(reply: pyfuse3.EntryAttributes) -> bytes:
    """Return fuse_entry_out, for a reply as pyfuse3 would send it."""
    entry_s, entry_ns = divmod(int(reply.entry_timeout * _SECOND_NS), _SECOND_NS)
    attr_s, attr_ns = divmod(int(reply.attr_timeout * _SECOND_NS), _SECOND_NS)
    times = [divmod(it, _SECOND_NS) for it in (reply.st_atime_ns, reply.st_mtime_ns)]
    times.append(divmod(reply.st_ctime_ns, _SECOND_NS))
    return _ENTRY_OUT.pack(
        reply.st_ino,
        reply.generation,
        entry_s,
        attr_s,
        entry_ns,
        attr_ns,
        reply.st_ino & ~INCARNATION,
        reply.st_size,
        reply.st_blocks,
        *(seconds & 0xFFFFFFFF_FFFFFFFF for seconds, _ in times),
        *(nanoseconds for _, nanoseconds in times),
        reply.st_mode,
        reply.st_nlink,
        reply.st_uid,
        reply.st_gid,
        reply.st_rdev & 0xFFFFFFFF,
        reply.st_blksize,
    )


def opened(fh: int, open_flags: int, backing_id: int) -> bytes:
    """Return fuse_open_out."""
    return _OPEN_OUT.pack(fh, open_flags, backing_id)


def statfs(figures: os.statvfs_result) -> bytes:
    """Return fuse_statfs_out."""
    return _KSTATFS.pack(
        figures.f_blocks,
        figures.f_bfree,
        figures.f_bavail,
        figures.f_files,
        figures.f_ffree,
        figures.f_bsize,
        figures.f_namemax,
        figures.f_frsize,
    )
