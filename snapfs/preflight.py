"""What must hold before `snapfs serve` touches anything, each with its way out.

Sync, run once at start. Every refusal is a FailedPrecondition or PermissionDenied that names the
object and what to do.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from snapfs.model import MAIN_LANE, FailedPrecondition, InvalidArgument, PermissionDenied
from snapfs.snapshots import LayerReader, roots

log = structlog.get_logger(__name__)

FUSE_DEVICE = Path("/dev/fuse")
_PROBE_XATTR = "trusted.overlay.opaque"


def check_privileges() -> None:
    """Refuse to run as anyone but root: mounts and trusted attributes need it."""
    if os.geteuid() != 0:
        raise PermissionDenied(
            f"snapfs serve needs root to mount and to keep owners, not user {os.geteuid()}; "
            "start it with sudo or as the systemd service"
        )


def check_fuse_device(device: Path = FUSE_DEVICE) -> None:
    """Refuse a system without a usable FUSE device."""
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise FailedPrecondition(
            f"{device} cannot be opened ({error.strerror}); load the module with "
            "`modprobe fuse`, or in a container pass the device in (--device /dev/fuse)"
        ) from error
    os.close(descriptor)


def check_layers_filesystem(root: Path) -> None:
    """Refuse a root whose filesystem cannot hold layers: trusted attributes and whiteouts.

    Creates `root` when it is missing. Tries the real thing in a directory of its own; a full disk
    leaves nothing to try with, and is no reason to refuse a root that holds layers: somebody must
    be able to remove some.
    """
    way_out = (
        "choose a root on ext4, xfs, btrfs or tmpfs with --root, "
        "or give it a file system of its own: snapfs init --image 20G"
    )
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(prefix=roots.PROBE, dir=root) as probe:
            os.setxattr(probe, _PROBE_XATTR, b"y")
            os.mknod(Path(probe, "whiteout"), stat.S_IFCHR | 0o600, os.makedev(0, 0))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and (root / "metadata").is_dir():
            log.warning("root.full", root=str(root), error=error.strerror)
            return
        if error.errno == errno.EROFS:
            raise FailedPrecondition(
                f"root {root} is on a file system that is read-only; make it writable "
                "(`mount -o remount,rw`), or choose another root with --root"
            ) from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        raise FailedPrecondition(
            f"root {root}: its file system cannot hold layers "
            f"(trusted extended attributes and 0:0 devices): {error.strerror}; {way_out}"
        ) from error


def group_number(name: str) -> int:
    """Return the number of the group of `service.group`; InvalidArgument if there is none."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise InvalidArgument(
            f"service.group: there is no group {name!r}; make it, or leave the setting out"
        ) from None


@contextmanager
def hold_state(state: Path) -> Iterator[None]:
    """Hold the state directory for this process; FailedPrecondition names another holder.

    The lock is flock(2) on `<state>/lock`, so it ends with the process however that ends.
    """
    descriptor = _open_lock(state)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 4096, 0).decode(errors="replace").strip() or "a process"
            raise FailedPrecondition(
                f"state directory {state} is held by {holder}; "
                "stop that one, or give this one its own with --state"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()} ({_command_line()})\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _open_lock(state: Path) -> int:
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o711)
        return os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        is_other = isinstance(error, (FileExistsError, NotADirectoryError))
        why = "no directory" if is_other else (error.strerror or str(error)).lower()
        raise FailedPrecondition(
            f"state directory {state} cannot be used ({why}); name another with --state"
        ) from error


def _command_line() -> str:
    raw = Path("/proc/self/cmdline").read_bytes()[:2048]
    return raw.rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")


def check_formats(root: Path) -> None:
    """Raise FailedPrecondition when this release cannot read what a root holds; changes nothing."""
    roots.read_record(root)
    LayerReader.open(root, MAIN_LANE).close()
