"""The channel to the kernel under pyfuse3: what pyfuse3 has no words for.

A library of ours (channel_src) is loaded before pyfuse3 and stands in front of some of libfuse's
functions. By it

* requests whose opcode has a handler in `Operations.raw` come to that handler as they are;
* an open or a create can be answered with flags and a backing id of our own (`answer_open`);
* replies show 63 bits of a node's number: the highest tells incarnations apart (`INCARNATION`).

Without the library (it was not built, or SNAPFS_CHANNEL=off) pyfuse3 serves alone, `loaded()` says
why, and callers do without: raw handlers are never called, and `answer_open` must not be.

INVARIANT: the library is in the process before pyfuse3; the package's import sees to it.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import struct
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import NamedTuple

ABI = 23
"""Of the library's Python face; a library of another one is not used."""
INCARNATION = 1 << 63
"""Bit of a node's number that no reply shows: another node for the same visible inode number."""
RESENT = 1 << 63
"""Bit of a request's number: it was read before, by a worker that died (FUSE_UNIQUE_RESEND)."""

OFF = "SNAPFS_CHANNEL"
"""Environment variable; `off` leaves pyfuse3 alone."""


class Opcode(enum.IntEnum):
    """Requests of the kernel (linux/fuse.h)."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


class OpenFlags(enum.IntFlag):
    """How the kernel is to treat an open file (FOPEN_*)."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    NONSEEKABLE = 1 << 2
    CACHE_DIR = 1 << 3
    STREAM = 1 << 4
    NOFLUSH = 1 << 5
    PARALLEL_DIRECT_WRITES = 1 << 6
    PASSTHROUGH = 1 << 7


class Request(NamedTuple):
    """One request of the kernel; `body` is what follows the header."""

    unique: int
    opcode: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    body: bytes


Body = bytes | bytearray | memoryview
RawHandler = Callable[[Request], Awaitable[Body | None]]
"""Returns the body of the reply, or None when the request needs no reply. An OSError is the reply;
ENOSYS, after which the kernel asks no more, takes `NotSupported`."""


class NotSupported(Exception):
    """The kernel is to be told, for the whole mount and for good, that an operation is missing."""


class _State:
    """What loading came to."""

    library: ModuleType | None = None
    reason = "it was not loaded"


def load() -> None:
    """Load the library for all that is loaded later; failure is remembered, not raised."""
    if os.environ.get(OFF) == "off":
        _State.reason = f"{OFF}=off"
        return
    flags = sys.getdlopenflags()
    sys.setdlopenflags(flags | os.RTLD_GLOBAL)
    try:
        from snapfs.fuse import _channel
    except ImportError as error:
        _State.reason = f"the library is not built ({error})"
        return
    finally:
        sys.setdlopenflags(flags)
    if _channel.ABI != ABI:
        _State.reason = f"the library is of version {_channel.ABI}, not {ABI}; build it again"
        return
    _State.library = _channel


def loaded() -> bool:
    """Whether the library can be used."""
    return _State.library is not None


def why_not() -> str:
    """Say why the library is not used; empty when it is."""
    return "" if loaded() else _State.reason


def give_up(reason: str) -> None:
    """Use the library no more: pyfuse3 does not see it."""
    _State.library = None
    _State.reason = reason


def answer_open(fh: int, open_flags: int, backing_id: int = 0) -> None:
    """Let the reply to the OPEN or CREATE that returns `fh` say `open_flags` and `backing_id`.

    To be called just before the handler returns its FileInfo. Flags are OpenFlags.
    """
    required().answer_open(fh, open_flags, backing_id)


def mask_of(opcodes: Iterable[int]) -> int:
    """Return a bit mask of opcodes."""
    mask = 0
    for opcode in opcodes:
        mask |= 1 << opcode
    return mask


_set_id_killer: ContextVar[int | None] = ContextVar("set_id_killer", default=None)
"""Of the request that this task has in hand: a task reads it and answers it."""
NO_KILLER = -1


def set_id_killer() -> int | None:
    """The process of which the kernel says, in the present request, that it may not keep set-id
    bits; NO_KILLER when it may.

    None where it does not say: with no library, or of a request that is answered past pyfuse3.
    """
    return _set_id_killer.get()


_unique: ContextVar[int] = ContextVar("unique", default=0)
"""Number of the request that this task has in hand."""


def unique() -> int:
    """Return the number of the present request, with `RESENT` if it was sent before.

    0 where nobody knows it: without the library.
    """
    return _unique.get()


@contextmanager
def unnumbered() -> Iterator[None]:
    """Do for a block what is to count for no request, as undoing what the present one did."""
    token = _unique.set(0)
    try:
        yield
    finally:
        _unique.reset(token)


_gives_times: ContextVar[bool] = ContextVar("gives_times", default=False)


def gives_times() -> bool:
    """Say whether the present request sets times, and not just both to the present one.

    False where that is not known: without the library.
    """
    return _gives_times.get()


def note_set_id_killer(pid: int) -> None:
    """Say for a request that is answered past pyfuse3 what it says itself."""
    _set_id_killer.set(pid)


class Requests:
    """The requests of one session, read through the library."""

    def __init__(self, raw: Mapping[int, RawHandler]) -> None:
        """`raw` names the opcodes that do not go to pyfuse3. The session exists already."""
        library = required()
        library.route(mask_of(raw))
        self._receive = library.receive
        self._reply = library.reply
        self._waiting = library.waiting

    def receive(self, fd: int) -> Request | bool | None:
        """Read one request; None when there is none, True when pyfuse3 is to take it, False when
        so many were answered on the way that others should have their turn."""
        found = self._receive(fd)
        if found is True:
            number, killer, gives_times = self._waiting()
            _unique.set(number)
            _set_id_killer.set(killer)
            _gives_times.set(gives_times)
            return True
        if found is None or found is False:
            return found
        request = Request._make(found)
        _unique.set(request.unique)
        _set_id_killer.set(None)
        return request

    def answer(self, fd: int, unique: int, body: Body) -> None:
        """Send what a handler returned."""
        self._reply(fd, unique, 0, body)

    def refuse(self, fd: int, unique: int, number: int) -> None:
        """Send an errno."""
        self._reply(fd, unique, number, b"")


def adopt_session() -> bool:
    """Return whether pyfuse3's new session goes through the library; if not, it is given up."""
    if not loaded():
        return False
    if not required().is_ours():
        give_up("pyfuse3 was loaded before it, or has a libfuse of its own inside")
    return loaded()


def required() -> ModuleType:
    """Return the library; RuntimeError where it is not in use."""
    if _State.library is None:
        raise RuntimeError(f"the channel is not in use: {_State.reason}")
    return _State.library


_BACKING_OPEN = 1 << 30 | 16 << 16 | 229 << 8 | 1
_BACKING_CLOSE = 1 << 30 | 4 << 16 | 229 << 8 | 2
_BACKING_MAP = struct.Struct("<iIQ")


def backing_open(device: int, fd: int) -> int:
    """Return an id under which the kernel may use the file behind `fd` (FUSE_DEV_IOC_BACKING_OPEN).

    `device` is the FUSE descriptor. Raises OSError: EPERM when passthrough was not negotiated,
    ELOOP when the file's file system is itself stacked, EOPNOTSUPP when it is no regular file.
    """
    wish = bytearray(_BACKING_MAP.pack(fd, 0, 0))  # mutable, or ioctl would lose the result
    backing_id: int = fcntl.ioctl(device, _BACKING_OPEN, wish)
    if backing_id <= 0:
        raise OSError(errno.EIO, f"the kernel gave backing id {backing_id}")
    return backing_id


def backing_close(device: int, backing_id: int) -> None:
    """Give an id back; files open by it stay open. OSError(ENOENT) when there is none such."""
    fcntl.ioctl(device, _BACKING_CLOSE, struct.pack("<I", backing_id))
