"""The mount of a lane: made, looked after and ended by the control process.

Owns the descriptor of the connection, which keeps the mount alive whatever happens to workers.
Nothing here waits for the mounted file system without a deadline. Where the descriptor came from,
`open` or a worker that outlived another control process (`adopt`), nobody else cares.
"""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from pathlib import Path

import structlog

from snapfs.fuse import control, idmapped, mounts
from snapfs.fuse.handover import FS_SUBTYPE, Connection, Init, connect, mount_again
from snapfs.fuse.modes import Mode
from snapfs.model import FailedPrecondition, Unavailable

log = structlog.get_logger(__name__)

FS_TYPE = f"fuse.{FS_SUBTYPE}"
BUSY_MOMENT_S = 0.2
_OPTIONS = ("allow_other",)


class LaneMount:
    """One mounted FUSE connection, from `open` or `adopt` to `close`."""

    def __init__(self, mountpoint: Path, connection: Connection, device: str) -> None:
        self.path = mountpoint
        self.connection = connection
        self.device = device
        """`major:minor`; it belongs to this mount until the connection has ended."""

    @classmethod
    def open(
        cls, mountpoint: Path, mode: Mode = Mode.PASSTHROUGH, *, timeout_s: float
    ) -> LaneMount:
        """Mount at `mountpoint`, which is made and cleared of a stale mount of ours.

        Raises FailedPrecondition when something else is mounted there, Unavailable when mounting
        fails.
        """
        path = real_mountpoint(mountpoint)
        clear_stale(path)
        above = mounts.mounted_at(path)
        if above:
            raise FailedPrecondition(
                f"{path}: a {above[-1].type} is mounted here; unmount it first"
            )
        try:
            path.mkdir(mode=0o711, parents=True, exist_ok=True)
            connection = connect(
                path,
                source=source_of(path),
                flags=mode.mount_flags,
                options=_OPTIONS,
                wanted=mode.wanted,
                timeout_s=timeout_s,
            )
        except OSError as error:
            raise Unavailable(_why_no_mount(path, error)) from error
        return cls(path, connection, mounts.mounted_at(path)[-1].device)

    @classmethod
    def adopt(cls, mountpoint: Path, connection: Connection, device: str, mode: Mode) -> LaneMount:
        """Take over a connection that is mounted already, and the descriptor; see `put_back`.

        Raises FailedPrecondition when it has ended, and OSError; then the descriptor is closed.
        """
        mount = cls(mountpoint, connection, device)
        try:
            in_place = mount.is_in_place
            if mount.ended:
                raise FailedPrecondition(f"{mountpoint}: what the worker serves has ended")
            if not in_place:
                mount.put_back(mode)
        except (FailedPrecondition, OSError):
            mount.close()
            raise
        return mount

    def put_back(self, mode: Mode) -> bool:
        """Mount it again where somebody unmounted it; say whether it is in place.

        What is mounted there instead, or over it, is not ours to hide. Needs Linux 5.15, and a use
        elsewhere that has kept it alive.
        """
        if self.is_in_place:
            return True
        if self.covered_by:
            return False
        try:
            self.path.mkdir(mode=0o711, parents=True, exist_ok=True)
            mount_again(
                self.path,
                self.connection.fd,
                source=source_of(self.path),
                flags=mode.mount_flags,
                options=_OPTIONS,
            )
        except OSError as error:
            log.info("lane.not_put_back", mountpoint=str(self.path), error=str(error))
            return False
        log.warning("lane.put_back", mountpoint=str(self.path))
        return self.is_in_place

    @property
    def covered_by(self) -> str:
        """The type of what is mounted at its mount point in its place; empty for nothing."""
        found = mounts.mounted_at(self.path)
        return found[-1].type if found and not self.is_in_place else ""

    @property
    def ended(self) -> bool:
        """Whether the kernel has ended the connection: unmounted everywhere, or aborted."""
        poller = select.poll()
        poller.register(self.connection.fd, select.POLLIN)
        return any(events & select.POLLERR for _, events in poller.poll(0))

    def settle(self, timeout_s: float) -> None:
        """Finish what comes after mounting: read-ahead, and that nobody wants a FLUSH.

        The kernel asks for a FLUSH at each close(2) until it is told not to; a close that waits for
        a worker which has died would hang. The one time that we use our own mount, so on a thread:
        nothing else ends a request.
        """
        found = mounts.mounted_at(self.path)
        if found and not mounts.tune(found[-1].device):
            log.debug("lane.not_tuned", mountpoint=str(self.path))
        lane = os.fsencode(self.path)
        probes = (lane, lane + b"/" + control.PROBE_NAME)
        attempt = threading.Thread(target=_open_and_close, args=probes, daemon=True)
        attempt.start()
        attempt.join(timeout_s)

    @property
    def is_in_place(self) -> bool:
        """Whether it is what is mounted at its mount point."""
        found = mounts.mounted_at(self.path)
        return bool(found) and (found[-1].type, found[-1].device) == (FS_TYPE, self.device)

    def uses(self) -> list[str]:
        """Return the bind mounts made from it, wherever they are."""
        return mounts.uses(self.device, self.path)

    def can_map_owners(self, mode: Mode) -> bool:
        """Whether idmapped clones can be made of it (FUSE_ALLOW_IDMAP, Linux 6.12)."""
        return bool(self.connection.init.offered & mode.wanted & Init.ALLOW_IDMAP)

    @property
    def resends(self) -> bool:
        """Whether what one worker has in hand comes to the next (FUSE_HAS_RESEND, Linux 6.9)."""
        return bool(self.connection.init.offered & Init.HAS_RESEND)

    def unmount(self, timeout_s: float) -> bool:
        """Unmount, by force when nobody serves what it still has to write; False when in use."""
        attempt = threading.Thread(target=self._unmount_patiently, daemon=True)
        attempt.start()
        attempt.join(timeout_s)
        if attempt.is_alive():
            log.error("lane.unmount_hangs", mountpoint=str(self.path))
            self.abort()
        return not self._is_mounted()

    def abort(self) -> None:
        """End the connection and unmount: users get errors, and do not wait for ever."""
        self._unmount(mounts.MNT_FORCE | mounts.MNT_DETACH)

    def close(self) -> None:
        """Let go of the descriptor; without a worker that has one too, the connection ends."""
        self.connection.close()

    def _is_mounted(self) -> bool:
        found = mounts.mounted_at(self.path)
        return bool(found) and found[-1].type == FS_TYPE

    def _unmount_patiently(self) -> None:
        """Unmount if nobody has a file or directory below it open for longer than a moment."""
        end_s = time.monotonic() + BUSY_MOMENT_S
        while self._unmount(0) and time.monotonic() < end_s:
            time.sleep(BUSY_MOMENT_S / 10)

    def _unmount(self, flags: int) -> bool:
        """Unmount, clones first; True when it is busy."""
        idmapped.detach_all(self.path)
        while self._is_mounted():
            try:
                mounts.unmount(self.path, flags)
            except OSError as error:
                if error.errno == errno.EBUSY:
                    return True
                log.error("lane.unmount_failed", mountpoint=str(self.path), error=str(error))
                return False
        return False


def source_of(mountpoint: Path) -> str:
    """Return what names a lane also in bind mounts that outlive it; see service/mounted.py."""
    return f"{FS_SUBTYPE}:{mountpoint}"


def clear_stale(mountpoint: Path) -> None:
    """Lazily unmount what a dead predecessor left at `mountpoint`; other mounts are left alone.

    What containers hold of it stays with them. Asks the old mount nothing, so it cannot hang.
    """
    _clear(mountpoint, mounts.MNT_DETACH)


def abort_stale(mountpoint: Path) -> None:
    """As `clear_stale`, and end what it unmounts: who uses it gets errors, and does not wait."""
    _clear(mountpoint, mounts.MNT_FORCE | mounts.MNT_DETACH)


def _clear(mountpoint: Path, flags: int) -> None:
    path = real_mountpoint(mountpoint)
    idmapped.detach_all(path)
    while (found := mounts.mounted_at(path)) and found[-1].type == FS_TYPE:
        log.warning("lane.stale_mount_cleared", mountpoint=str(path))
        try:
            mounts.unmount(path, flags)
        except OSError as error:
            raise Unavailable(
                f"{path}: a stale mount cannot be cleared: {error.strerror}"
            ) from error


def real_mountpoint(path: Path) -> Path:
    """Resolve all but the last component, which may be a mount that does not answer."""
    absolute = path.absolute()
    return absolute.parent.resolve() / absolute.name


def _open_and_close(*paths: bytes) -> None:
    try:
        for path in paths:
            os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        log.error("lane.probe_failed", error=str(error))


def _why_no_mount(mountpoint: Path, error: OSError) -> str:
    match error.errno:
        case errno.ENOENT | errno.ENXIO | errno.ENODEV:
            way_out = "load the fuse module (modprobe fuse)"
        case errno.EPERM | errno.EACCES:
            way_out = "run as root, with CAP_SYS_ADMIN and /dev/fuse"
        case _:
            way_out = "see the kernel's log"
    return f"{mountpoint}: cannot mount: {error.strerror or error}; {way_out}"
