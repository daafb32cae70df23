"""Making a layer's data durable before the metadata says that it is committed.

One syncfs(2) does for the whole layer. The kernel tells a write error once to each open
descriptor, so after one everything that was dirty is suspect, also layers of other snapshots:
from then on each layer is synced file by file, where every file reports its own error.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
import threading
from pathlib import Path
from typing import Literal, NoReturn, TypeAlias

from snapfs.model import DataLoss

Durability: TypeAlias = Literal["full", "metadata"]
"""full: data survives a power loss once committed; metadata: only what the metastore says does."""

_XFS_FREE_EOFBLOCKS = 0x8080583A
_EOFBLOCKS_BYTES = 128

_libc = ctypes.CDLL(None, use_errno=True)


class DataSync:
    """Syncs layers of one file system. Thread-safe."""

    def __init__(self, layers: Path) -> None:
        self._layers = layers
        self._fd = os.open(layers, os.O_RDONLY | os.O_DIRECTORY)
        self._suspect = threading.Event()

    def sync(self, layer: Path) -> None:
        """Return when all data below `layer` is durable; OSError or DataLoss when it is not."""
        if not self._suspect.is_set():
            try:
                syncfs(self._fd)
            except OSError:
                self._suspect.set()
        if self._suspect.is_set():
            sync_tree(layer)
        free_preallocated(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


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
        if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        return False
    return True


def sync_tree(layer: Path) -> None:
    """Sync each file and directory below `layer`; DataLoss names the first that fails."""
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


def _sync(fd: int, shown: str) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        raise DataLoss(
            f"{shown} did not reach the disk ({error}); check the disk and make the layer anew"
        ) from error
