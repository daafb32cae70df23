"""A lane's connection in the service manager's store, so that it outlives all our processes.

What is kept for each lane: the FUSE descriptor, the memory that workers leave to each other, and a
record of what was mounted. With it the next control process goes on under a mount whose worker and
control process have died together. The descriptors are dups of one connection: as long as any is
open, the mount waits.

Names in the store are `LANE.PART`. A descriptor whose connection has ended leaves the store by
itself (systemd polls it); the others are dropped with the lane.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol

import msgspec
import structlog

from snapfs import __version__
from snapfs.fuse import adoption, control
from snapfs.fuse.handover import Connection
from snapfs.fuse.lanemount import LaneMount
from snapfs.fuse.modes import Mode
from snapfs.fuse.process import WorkerSettings
from snapfs.model import FailedPrecondition, SnapfsError

_PARTS = ("fuse", "journal", "inflight", "places")
"""In the order of `Connection.fds`."""
_RECORD = "record"
MAX_RECORD_BYTES = 64 * 1024

log = structlog.get_logger(__name__)


class Store(Protocol):
    """Keeps descriptors over a restart; see systemd.DescriptorStore."""

    def take(self, name: str, /) -> int | None:
        """Return a descriptor that an earlier process left, once; it is the caller's then."""

    def keep(self, name: str, fd: int, /) -> None:
        """Leave a dup of a descriptor, in the place of one of the same name."""

    def drop(self, name: str, /) -> None:
        """Let go of what is kept under a name."""


class NoStore:
    """There is nobody to keep anything."""

    def take(self, name: str, /) -> int | None:
        return None

    def keep(self, name: str, fd: int, /) -> None:
        pass

    def drop(self, name: str, /) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Kept:
    """A mount that was waiting in the store; no worker serves it."""

    mount: LaneMount
    mode: Mode


def keep(store: Store, settings: WorkerSettings, mount: LaneMount) -> None:
    """Leave what a successor of all our processes needs of a lane."""
    served = control.Served.of(settings.root, settings.mountpoint, mount.device)
    init, lane = mount.connection.init, settings.lane
    record = control.Welcome.of(__version__, lane, served, init, settings.mode)
    fd = os.memfd_create("snapfs-record", os.MFD_CLOEXEC)
    try:
        os.pwrite(fd, control.encode(record), 0)
        store.keep(f"{settings.lane}.{_RECORD}", fd)
    finally:
        os.close(fd)
    for part, fd in zip(_PARTS, mount.connection.fds, strict=True):
        store.keep(f"{settings.lane}.{part}", fd)


def drop(store: Store, lane: str) -> None:
    """Let the store go of a lane."""
    for part in (_RECORD, *_PARTS):
        store.drop(f"{lane}.{part}")


def take(store: Store, settings: WorkerSettings) -> Kept | None:
    """Return the mount of a lane that an earlier control process left; None when there is none that
    this lane could go on with."""
    fds = {part: store.take(f"{settings.lane}.{part}") for part in (_RECORD, *_PARTS)}
    left = [fd for fd in fds.values() if fd is not None]
    try:
        record, fuse = fds[_RECORD], fds["fuse"]
        if record is None or fuse is None:
            return None
        welcome = control.decode(os.pread(record, MAX_RECORD_BYTES, 0))
        if not isinstance(welcome, control.Welcome):
            raise FailedPrecondition("the record says nothing of a lane")
        adoption.check(welcome, settings)
        memory = [fd for part in _PARTS[1:] if (fd := fds[part]) is not None]
        if len(memory) < len(_PARTS) - 1:
            memory = []  # of another release: begin anew
        left = [fd for fd in left if fd not in (fuse, *memory)]
        connection = Connection.of(fuse, welcome.init, memory)
        mode = Mode(welcome.mode)
        mount = LaneMount.adopt(settings.mountpoint, connection, welcome.served.device, mode)
        return Kept(mount, mode)
    except (SnapfsError, OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.warning("lane.not_taken_from_store", lane=settings.lane, reason=str(error))
        return None
    finally:
        for fd in left:
            os.close(fd)


def discard(store: Store, lane: str) -> None:
    """Close what an earlier control process left of a lane that needs none of it."""
    for part in (_RECORD, *_PARTS):
        fd = store.take(f"{lane}.{part}")
        if fd is not None:
            os.close(fd)
