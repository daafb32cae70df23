"""Linux calls on files that the os module does not offer. No rules of the overlay live here.

Every function raises OSError with the errno of the call.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import sys
from pathlib import Path
from typing import NamedTuple

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_COLLAPSE_RANGE = 0x08
FALLOC_FL_ZERO_RANGE = 0x10
FALLOC_FL_INSERT_RANGE = 0x20
FALLOC_FL_UNSHARE_RANGE = 0x40

FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_FSSETXATTR = 0x401C5820

FS_SYNC_FL = 0x00000008
FS_IMMUTABLE_FL = 0x00000010
FS_APPEND_FL = 0x00000020
FS_NODUMP_FL = 0x00000040
FS_NOATIME_FL = 0x00000080
FS_VERITY_FL = 0x00100000
FS_PROJINHERIT_FL = 0x20000000
FS_CASEFOLD_FL = 0x40000000

FS_XFLAG_IMMUTABLE = 0x00000008
FS_XFLAG_APPEND = 0x00000010
FS_XFLAG_RTINHERIT = 0x00000100
FS_XFLAG_PROJINHERIT = 0x00000200

_AT_SYMLINK_NOFOLLOW = 0x100
_STATX_BTIME = 0x800
_STATX_BYTES = 256
_STATX_TIME = struct.Struct("<qI")
_STATX_BTIME_OFFSET = 80
_STATFS_BYTES = 256

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong)
_statx = _libc.statx
_statx.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_char_p,
)
_fstatfs = _libc.fstatfs
_fstatfs.argtypes = (ctypes.c_int, ctypes.c_char_p)
_syncfs = _libc.syncfs
_syncfs.argtypes = (ctypes.c_int,)


class Statx(NamedTuple):
    """What statx(2) says beyond stat(2)."""

    attributes: int
    """STATX_ATTR_*; immutable and append-only are the bits of FS_IMMUTABLE_FL and FS_APPEND_FL."""
    birth_ns: int | None
    """None where the file system keeps no birth times."""


class ExtendedFlags(NamedTuple):
    """struct fsxattr."""

    xflags: int
    extent_size: int
    extents: int
    project: int
    cow_extent_size: int
    padding: bytes

    def pack(self) -> bytes:
        return _FSXATTR.pack(*self)

    @classmethod
    def unpack(cls, raw: bytes) -> ExtendedFlags:
        return cls._make(_FSXATTR.unpack(raw))


_FSXATTR = struct.Struct("<IIIII8s")
FSXATTR_BYTES = _FSXATTR.size


def _fail(what: object) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what)


def fallocate(fd: int, mode: int, offset_bytes: int, length_bytes: int) -> None:
    """Manipulate a file's space (fallocate(2)); `mode` is FALLOC_FL_*. May block."""
    while _fallocate(fd, mode, offset_bytes, length_bytes):
        error = _fail(f"fd {fd}")
        if error.errno != errno.EINTR:
            raise error


def syncfs(path: bytes | Path) -> None:
    """Write the whole file system of a directory to disk. Blocks; raises what writeback met."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syncfs_of(fd)
    finally:
        os.close(fd)


def syncfs_of(fd: int) -> None:
    """As `syncfs`, by a descriptor; raises what writeback met since that was opened."""
    if _syncfs(fd):
        raise _fail(f"fd {fd}")


def magic_of(fd: int) -> int:
    """Return the type of a file system (statfs(2), f_type)."""
    answer = ctypes.create_string_buffer(_STATFS_BYTES)
    if _fstatfs(fd, answer):
        raise _fail(f"fd {fd}")
    return int.from_bytes(answer.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder)


def statx(fd: int, path: bytes) -> Statx:
    """Ask for attributes and birth time of `path` itself, relative to a directory descriptor."""
    answer = ctypes.create_string_buffer(_STATX_BYTES)
    if _statx(fd, path, _AT_SYMLINK_NOFOLLOW, _STATX_BTIME, answer):
        raise _fail(path)
    mask, _, attributes = struct.unpack_from("<IIQ", answer)
    birth_ns = None
    if mask & _STATX_BTIME:
        seconds, nanoseconds = _STATX_TIME.unpack_from(answer, _STATX_BTIME_OFFSET)
        birth_ns = seconds * 1_000_000_000 + nanoseconds
    return Statx(attributes, birth_ns)


def get_flags(fd: int) -> int:
    """Return a file's FS_*_FL (FS_IOC_GETFLAGS)."""
    answer = bytearray(8)  # the kernel fills an int, whatever the number of the call says
    fcntl.ioctl(fd, FS_IOC_GETFLAGS, answer)
    return int.from_bytes(answer[:4], "little")


def set_flags(fd: int, flags: int) -> None:
    """Set a file's FS_*_FL (FS_IOC_SETFLAGS)."""
    fcntl.ioctl(fd, FS_IOC_SETFLAGS, flags.to_bytes(8, "little"))


def get_extended(fd: int) -> ExtendedFlags:
    """Return what FS_IOC_FSGETXATTR says."""
    answer = bytearray(FSXATTR_BYTES)
    fcntl.ioctl(fd, FS_IOC_FSGETXATTR, answer)
    return ExtendedFlags.unpack(bytes(answer))


def set_extended(fd: int, flags: ExtendedFlags) -> None:
    """Do FS_IOC_FSSETXATTR."""
    fcntl.ioctl(fd, FS_IOC_FSSETXATTR, flags.pack())
