"""The connection to the kernel: who mounts, who answers INIT, and how libfuse gets to believe it
did.

The mounting process opens /dev/fuse, mounts, reads INIT and answers it with exactly the flags that
it wants. A serving process is given the descriptor and the INIT request; it feeds libfuse an edited
copy through a socket and, in `Operations.init`, puts the real descriptor in the socket's place
(`TakeOver`). So a first start and a restart of the serving process are the same code.

Invariant: libfuse parses requests by what the *copy* says, the kernel writes them by what the
*answer* says. A flag that changes the layout of a request (SETXATTR_EXT, SECURITY_CTX,
CREATE_SUPP_GROUP) is therefore never in the answer. docs/fuse.md has a line for each flag.
"""

from __future__ import annotations

import enum
import errno
import os
import select
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from snapfs.fuse import mounts

FS_SUBTYPE = "snapfs"
MAJOR = 7
MINOR_SPOKEN = 38
"""Highest protocol minor that libfuse 3.14 parses."""
MINOR_BELIEVED = 13
"""Told to libfuse: the last minor without splice, which costs more than it saves on small requests.
"""
MAX_PAGES = 256
MAX_WRITE_BYTES = MAX_PAGES * 4096
MAX_READ_AHEAD_BYTES = 1 << 20
MAX_BACKGROUND = 64
STACK_DEPTH = 1
"""File systems of passthrough below ours, so that overlayfs can still be mounted on top."""
_OP_INIT = 26
_REQUEST = struct.Struct("<IIQQIIIHH")
_INIT_IN = struct.Struct("<IIII")
_FLAGS2 = struct.Struct("<I")
_REPLY = struct.Struct("<IiQ")
_INIT_OUT = struct.Struct("<IIIIHHIIHHII24x")


class Init(enum.IntFlag):
    """Flags of FUSE_INIT (linux/fuse.h)."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    DO_READDIRPLUS = 1 << 13
    ASYNC_DIO = 1 << 15
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    HANDLE_KILLPRIV_V2 = 1 << 28
    INIT_EXT = 1 << 30
    HAS_EXPIRE_ONLY = 1 << 35
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    PASSTHROUGH = 1 << 37
    NO_EXPORT_SUPPORT = 1 << 38
    HAS_RESEND = 1 << 39
    ALLOW_IDMAP = 1 << 40


WANTED = (
    Init.ASYNC_READ
    | Init.ATOMIC_O_TRUNC
    | Init.BIG_WRITES
    | Init.DONT_MASK
    | Init.DO_READDIRPLUS
    | Init.ASYNC_DIO
    | Init.PARALLEL_DIROPS
    | Init.POSIX_ACL
    | Init.MAX_PAGES
    | Init.CACHE_SYMLINKS
    | Init.EXPLICIT_INVAL_DATA
    | Init.HANDLE_KILLPRIV_V2
    | Init.INIT_EXT
    | Init.HAS_EXPIRE_ONLY
    | Init.NO_EXPORT_SUPPORT  # else who may open by handle opens all snapshots of the lane
    | Init.HAS_RESEND
    | Init.ALLOW_IDMAP
)
"""In every mode, and all there is to want without the channel."""
WANTED_PASSTHROUGH = WANTED | Init.PASSTHROUGH | Init.DIRECT_IO_ALLOW_MMAP | Init.NO_OPENDIR_SUPPORT
WANTED_NO_OPEN = (
    # With ATOMIC_O_TRUNC and no OPEN to carry it, O_TRUNC would be lost.
    (WANTED | Init.NO_OPEN_SUPPORT | Init.NO_OPENDIR_SUPPORT) & ~Init.ATOMIC_O_TRUNC
)
NEEDED = Init.DO_READDIRPLUS | Init.BIG_WRITES | Init.DONT_MASK
"""Without these the handlers would be asked what they cannot answer."""
BELIEVED = (
    Init.ASYNC_READ
    | Init.ATOMIC_O_TRUNC
    | Init.BIG_WRITES
    | Init.DONT_MASK
    | Init.DO_READDIRPLUS
    | Init.MAX_PAGES
)


@dataclass(frozen=True, slots=True)
class InitRequest:
    """What the kernel offers when a file system is mounted."""

    unique: int
    minor: int
    max_readahead_bytes: int
    offered: Init

    @classmethod
    def parse(cls, raw: bytes) -> InitRequest:
        """Read FUSE_INIT off the wire, or raise OSError(EPROTO)."""
        if len(raw) < _REQUEST.size + _INIT_IN.size:
            raise OSError(
                errno.EPROTO, f"the kernel's first request is {len(raw)} bytes long, not INIT"
            )
        _, opcode, unique, *_ = _REQUEST.unpack_from(raw)
        major, minor, readahead, flags = _INIT_IN.unpack_from(raw, _REQUEST.size)
        if opcode != _OP_INIT or major != MAJOR:
            raise OSError(
                errno.EPROTO, f"opcode {opcode}, protocol {major}.{minor}: not INIT of protocol 7"
            )
        if flags & Init.INIT_EXT and len(raw) >= _REQUEST.size + _INIT_IN.size + _FLAGS2.size:
            (flags2,) = _FLAGS2.unpack_from(raw, _REQUEST.size + _INIT_IN.size)
            flags |= flags2 << 32
        return cls(unique, minor, readahead, Init(flags & int(_all_flags())))

    def answer(self, wanted: Init = WANTED) -> bytes:
        """Return the reply that grants `wanted` as far as offered, or raise OSError(EPROTO)."""
        missing = NEEDED & ~self.offered
        if missing:
            raise OSError(
                errno.EPROTO, f"the kernel's FUSE lacks {missing!r}; Linux 5.10 or later has it"
            )
        granted = int(wanted & self.offered)
        body = _INIT_OUT.pack(
            MAJOR,
            min(self.minor, MINOR_SPOKEN),
            max(self.max_readahead_bytes, MAX_READ_AHEAD_BYTES),
            granted & 0xFFFFFFFF,
            MAX_BACKGROUND,
            MAX_BACKGROUND * 3 // 4,
            MAX_WRITE_BYTES,
            1,  # nanosecond times
            MAX_PAGES,
            0,
            granted >> 32,
            STACK_DEPTH if granted & Init.PASSTHROUGH else 0,
        )
        return _REPLY.pack(_REPLY.size + len(body), 0, self.unique) + body

    def copy_for_libfuse(self) -> bytes:
        """Return the INIT that makes libfuse parse what the kernel was told to send."""
        body = _INIT_IN.pack(
            MAJOR, MINOR_BELIEVED, MAX_READ_AHEAD_BYTES, int(BELIEVED & self.offered)
        )
        size = _REQUEST.size + len(body)
        return _REQUEST.pack(size, _OP_INIT, self.unique, 0, 0, 0, 0, 0, 0) + body


def _all_flags() -> Init:
    total = Init(0)
    for flag in Init:
        total |= flag
    return total


@dataclass(frozen=True, slots=True)
class Connection:
    """A mounted file system whose INIT is answered; nobody needs to serve it yet."""

    fd: int
    init: InitRequest
    journal: int
    """A memfd that lives as long as the mount; what one worker leaves there for the next."""
    inflight: int
    """The same, of requests in flight (inflight.py)."""
    places: int
    """The same, of where the kernel's nodes are (overlay, Places)."""

    @classmethod
    def of(cls, fd: int, init: InitRequest, kept: Sequence[int] = ()) -> Self:
        """Make one of descriptors that it owns from now on.

        `kept` are the memfds that an earlier process had, as `memory` gives them. An older release
        has fewer; the missing ones are new, and empty.
        """
        own = [*kept[: len(_MEMORY)], *map(_new_memory, _MEMORY[len(kept) :])]
        return cls(fd, init, *own)

    @property
    def memory(self) -> tuple[int, ...]:
        """What workers leave to each other, in an order that does not change."""
        return self.journal, self.inflight, self.places

    @property
    def fds(self) -> tuple[int, ...]:
        return self.fd, *self.memory

    def resend(self) -> bool:
        """Have the kernel send again what a dead worker has read and not answered (Linux 6.9).

        To be called before a new worker reads anything, so that these requests come first. False
        when the kernel cannot: they are never answered.
        """
        try:
            os.write(self.fd, _REPLY.pack(_REPLY.size, _NOTIFY_RESEND, 0))
        except OSError as error:
            if error.errno == errno.EINVAL:
                return False
            raise
        return True

    def close(self) -> None:
        """Let go of all descriptors; without a worker that has them too, the connection ends."""
        for fd in self.fds:
            os.close(fd)


_MEMORY = ("snapfs-journal", "snapfs-inflight", "snapfs-places")
_NOTIFY_RESEND = 7


def _new_memory(name: str) -> int:
    return os.memfd_create(name, os.MFD_CLOEXEC)


def connect(
    mountpoint: Path,
    *,
    source: str,
    subtype: str = FS_SUBTYPE,
    flags: int = 0,
    options: Iterable[str] = (),
    wanted: Init = WANTED,
    timeout_s: float,
) -> Connection:
    """Mount on `mountpoint` and answer INIT; the descriptor is non-blocking and close-on-exec.

    Raises OSError with nothing left mounted. Requests made meanwhile wait in the kernel.
    """
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        mounts.mount(source, mountpoint, f"fuse.{subtype}", flags, _mount_data(fd, options))
        try:
            init = _negotiate(fd, wanted, timeout_s)
        except OSError:
            mounts.unmount(mountpoint, mounts.MNT_FORCE | mounts.MNT_DETACH)
            raise
        return Connection.of(fd, init)
    except OSError:
        os.close(fd)
        raise


def mount_again(
    mountpoint: Path, fd: int, *, source: str, flags: int = 0, options: Iterable[str] = ()
) -> None:
    """Make one more mount of a connection that is mounted somewhere (Linux 5.15); or OSError."""
    mounts.mount(source, mountpoint, f"fuse.{FS_SUBTYPE}", flags, _mount_data(fd, options))


def _mount_data(fd: int, options: Iterable[str]) -> str:
    given = f"fd={fd},rootmode=40000,user_id=0,group_id=0,default_permissions"
    return ",".join([given, *options])


def _negotiate(fd: int, wanted: Init, timeout_s: float) -> InitRequest:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    if not poller.poll(timeout_s * 1000):
        raise OSError(errno.ETIMEDOUT, f"the kernel sent no INIT within {timeout_s} s")
    init = InitRequest.parse(os.read(fd, MAX_WRITE_BYTES + 4096))
    os.write(fd, init.answer(wanted))
    return init


class TakeOver:
    """The socket that plays /dev/fuse until libfuse has read its INIT.

    `device` is the path for pyfuse3.init; `finish` is to be called in Operations.init, where
    libfuse has read the copy and not yet written its reply (which the kernel then drops, as it
    knows no such request).
    """

    def __init__(self, fd: int, init: InitRequest) -> None:
        self._fd = fd
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            ours.send(init.copy_for_libfuse())
        self._slot = theirs.detach()
        self.device = f"/dev/fd/{self._slot}"

    def finish(self) -> None:
        """Put the real descriptor where libfuse reads and writes, and close the spare one."""
        os.dup2(self._fd, self._slot, inheritable=False)
        os.close(self._fd)
