"""Idmapped clones of a lane's mount: the same trees with other owners (mount_setattr(2)).

Clients bind-mount a snapshot from a clone instead of the lane, so they need to know nothing of id
mappings: a bind mount of an idmapped one is idmapped too. There is one clone for each mapping in
use, at `<lane>.idmap/<mapping>`. Nothing on disk is changed; the kernel translates
(FUSE_ALLOW_IDMAP, Linux 6.12).

A mapping is handed to the kernel as a user namespace, which a short-lived process makes. Whoever
unmounts the lane unmounts its clones first (`detach_all`), else the connection would live on.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import subprocess
import threading
from pathlib import Path

import structlog

from snapfs.fuse import mounts
from snapfs.model import SnapshotId, Unavailable
from snapfs.snapshots.idmapping import IdMapping, IdRange

log = structlog.get_logger(__name__)

NAMESPACE_TIMEOUT_S = 10.0

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442  # the same on all machines
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_IDMAP = 0x00100000
_MS_PRIVATE = 1 << 18

_syscall = ctypes.CDLL(None, use_errno=True).syscall


class _MountAttributes(ctypes.Structure):
    _fields_ = [
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    ]


class Clones:
    """The idmapped clones of one lane's mount. Thread-safe; never waits for a worker."""

    def __init__(self, lane: Path) -> None:
        self._lane = lane
        self._lock = threading.Lock()
        self._users: dict[Path, set[SnapshotId]] = {}

    def directory(self, mapping: IdMapping, snapshot_id: SnapshotId) -> Path:
        """Return the snapshot's directory in the clone of a mapping, made if need be.

        Raises Unavailable when the kernel refuses.
        """
        clone = mounts.clones_of(self._lane) / _name(mapping)
        with self._lock:
            if not self._is_up(clone):
                _make(self._lane, clone, mapping)
            self._users.setdefault(clone, set()).add(snapshot_id)
        return clone / str(snapshot_id)

    def drop(self, snapshot_id: SnapshotId) -> None:
        """A snapshot is not mounted any more; what containers have mounted stays theirs."""
        with self._lock:
            for clone, users in list(self._users.items()):
                users.discard(snapshot_id)
                if not users:
                    del self._users[clone]
            self._sweep()

    def _sweep(self) -> None:
        """Unmount clones that nobody asked for, or not since an earlier control process."""
        with contextlib.suppress(FileNotFoundError):
            for clone in list(mounts.clones_of(self._lane).iterdir()):
                if clone not in self._users:
                    _detach(clone)

    def _is_up(self, clone: Path) -> bool:
        """Whether the clone is one of what is mounted at the lane now."""
        there, lane = mounts.mounted_at(clone), mounts.mounted_at(self._lane)
        if there and lane and there[-1].device == lane[-1].device:
            return True
        if there:
            _detach(clone)
        return False


def detach_all(lane: Path) -> None:
    """Unmount all clones of a lane, whoever made them; users keep what they bind-mounted."""
    above = f"{mounts.clones_of(lane)}/"
    for found in reversed(mounts.mount_table()):
        if found.path.startswith(above):
            _detach(Path(found.path))


def _detach(clone: Path) -> None:
    try:
        while mounts.mounted_at(clone):
            mounts.unmount(clone, mounts.MNT_DETACH)
        clone.rmdir()
    except OSError as error:
        log.error("lane.clone_left", mountpoint=str(clone), error=str(error))


def _name(mapping: IdMapping) -> str:
    """Return a name of bounded length that no other mapping has."""
    said = "_".join(_written(ranges).replace("\n", ",") for ranges in (mapping.uids, mapping.gids))
    return hashlib.sha256(said.encode()).hexdigest()[:24]


def _written(ranges: tuple[IdRange, ...]) -> str:
    """Write ranges as /proc/PID/uid_map wants them."""
    return "\n".join(f"{it.container} {it.host} {it.size}" for it in ranges)


def _make(lane: Path, clone: Path, mapping: IdMapping) -> None:
    try:
        clone.mkdir(mode=0o711, parents=True, exist_ok=True)
        namespace = user_namespace(mapping)
        try:
            _mount_clone(lane, clone, namespace)
        finally:
            os.close(namespace)
    except (OSError, subprocess.SubprocessError) as error:
        with contextlib.suppress(OSError):
            clone.rmdir()
        raise Unavailable(
            f"{clone}: cannot mount with mapped owners: {error}; see the kernel's log"
        ) from error
    log.info("lane.clone_mounted", mountpoint=str(clone))


def _mount_clone(lane: Path, clone: Path, namespace: int) -> None:
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    tree = _call(_OPEN_TREE, _AT_FDCWD, os.fsencode(lane), flags, path=lane)
    try:
        wanted = _MountAttributes(_MOUNT_ATTR_IDMAP, 0, _MS_PRIVATE, namespace)
        size = ctypes.sizeof(wanted)
        _call(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.byref(wanted), size, path=clone)
        empty = _MOVE_MOUNT_F_EMPTY_PATH
        _call(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(clone), empty, path=clone)
    finally:
        os.close(tree)


def user_namespace(mapping: IdMapping) -> int:
    """Return a descriptor of a user namespace with a mapping; no process stays in it."""
    with subprocess.Popen(
        ["unshare", "--user", "--", "sh", "-c", "echo; read _"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as inside:
        try:
            return _mapped(inside, mapping)
        finally:
            inside.kill()


def _mapped(inside: subprocess.Popen[bytes], mapping: IdMapping) -> int:
    watchdog = threading.Timer(NAMESPACE_TIMEOUT_S, inside.kill)
    watchdog.start()
    try:
        if inside.stdout is None or not inside.stdout.readline():
            said = inside.stderr.read().decode(errors="replace") if inside.stderr else ""
            raise OSError(f"no user namespace can be made: {said.strip()}")
    finally:
        watchdog.cancel()
    process = Path(f"/proc/{inside.pid}")
    (process / "uid_map").write_text(_written(mapping.uids))
    (process / "gid_map").write_text(_written(mapping.gids))
    return os.open(process / "ns/user", os.O_RDONLY | os.O_CLOEXEC)


def _call(number: int, *arguments: object, path: Path) -> int:
    result: int = _syscall(ctypes.c_long(number), *map(_argument, arguments))
    if result < 0:
        failed = ctypes.get_errno()
        raise OSError(failed, os.strerror(failed), str(path))
    return result


def _argument(value: object) -> object:
    return ctypes.c_long(value) if isinstance(value, int) else value
