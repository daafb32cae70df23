"""Making a layer's data durable before the metadata says that it is committed.

One syncfs(2) does for the whole layer. The kernel tells a write error once to each open
descriptor, so after one everything that was dirty is suspect, also layers of other snapshots:
from then on each layer is synced file by file, where every file reports its own error.

That error is told once too, perhaps to the program that wrote, and what was not written stays in
memory and looks as if it had been. So each file is also read back from the disk and compared with
what memory shows, as long as the machine runs: a mark in the root tells later processes.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
import threading
from contextlib import suppress
from pathlib import Path
from typing import Literal, NoReturn, TypeAlias

import structlog

from snapfs import ioctls
from snapfs.model import DataLoss
from snapfs.seals.reading import digest

Durability: TypeAlias = Literal["full", "metadata"]
"""full: data survives a power loss once committed; metadata: only what the metastore says does."""

MARK = "write-error"
"""In a root whose file system had a write error: the boot during which it had."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})

_XFS_FREE_EOFBLOCKS = 0x8080583A
_EOFBLOCKS_BYTES = 128

_libc = ctypes.CDLL(None, use_errno=True)

log = structlog.get_logger(__name__)


class DataSync:
    """Syncs layers of one file system. Thread-safe."""

    def __init__(self, layers: Path) -> None:
        self._mark = layers.parent / MARK
        self._fd = os.open(layers, os.O_RDONLY | os.O_DIRECTORY)
        self._suspect = threading.Event()
        if _is_of_this_boot(self._mark):
            self._suspect.set()

    def sync(self, layer: Path) -> None:
        """Return when all data below `layer` is durable; OSError or DataLoss when it is not."""
        if not self._suspect.is_set():
            try:
                syncfs(self._fd)
            except OSError as error:
                self._doubt(error)
        if self._suspect.is_set():
            sync_tree(layer)
        free_preallocated(self._fd)

    def _doubt(self, error: OSError) -> None:
        self._suspect.set()
        try:
            self._mark.write_bytes(_BOOT.read_bytes())
        except OSError as other:  # this process knows
            log.error("layers.mark_failed", error=str(other))
        log.warning("layers.write_error", error=str(error))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _is_of_this_boot(mark: Path) -> bool:
    """Say whether a mark counts; one of an earlier boot goes, as what memory showed went."""
    try:
        if mark.read_bytes() == _BOOT.read_bytes():
            return True
    except FileNotFoundError:
        return False
    with suppress(OSError):  # a root that cannot be written
        mark.unlink()
    return False


def syncfs(fd: int) -> None:
    """Write all dirty data of the file system that holds `fd`."""
    if _libc.syncfs(fd) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def settle_blocks(path: Path) -> None:
    """Give all files of the file system that holds `path` the blocks that they are to have.

    What nobody writes keeps its st_blocks from then on: delayed allocation is done, and what xfs
    took in advance, and would take back minutes later, is given back. OSError tells of a write
    error since the file system was mounted, or since the last call.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syncfs(fd)
        free_preallocated(fd)
    finally:
        os.close(fd)


def give_back(path: Path) -> bool:
    """As settle_blocks, but only what was taken in advance; False where nothing ever is."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return free_preallocated(fd)
    finally:
        os.close(fd)


def free_preallocated(fd: int) -> bool:
    """Take back what a file system allocated behind the ends of files (xfs_fs.h, EOFBLOCKS).

    False on other file systems than xfs, which have nothing of the kind.
    """
    wish = struct.pack("II", 1, 1).ljust(_EOFBLOCKS_BYTES, b"\0")  # version; wait for dirty files
    try:
        fcntl.ioctl(fd, _XFS_FREE_EOFBLOCKS, wish)
    except OSError as error:
        if error.errno not in ioctls.NO_SUCH:
            raise
        return False
    return True


def sync_tree(layer: Path) -> None:
    """Sync each file and directory below `layer`, and read the files back from the disk.

    DataLoss names the first that fails, or that the disk has otherwise.
    """
    for directory, _, files, fd in os.fwalk(layer, onerror=_refuse, follow_symlinks=False):
        for name in files:
            _sync_file(name, fd, directory)
        _sync(fd, directory)


def _refuse(error: OSError) -> NoReturn:
    raise error


def _sync_file(name: str, directory_fd: int, directory: str) -> None:
    found = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    if not stat.S_ISREG(found.st_mode):
        return
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory_fd)
    try:
        _sync(fd, f"{directory}/{name}")
    finally:
        os.close(fd)
    raw = os.fsencode(name)
    there = digest(raw, directory_fd, from_disk=True)
    if there != digest(raw, directory_fd, from_disk=False):
        raise _lost(f"{directory}/{name}", "the disk has other data than memory")


def _sync(fd: int, shown: str) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        first = "make room" if error.errno in _NO_ROOM else "check the disk"
        raise _lost(shown, str(error), first) from error


def _lost(shown: str, why: str, first: str = "check the disk") -> DataLoss:
    """Return what is so also where only room was lacking: memory may have let go of the data."""
    return DataLoss(f"{shown} did not reach the disk ({why}); {first} and make the layer anew")
