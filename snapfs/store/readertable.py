"""LMDB's reader table: a file that can be written through a map whatever the disk says.

LMDB writes the table, `lock.mdb`, through a shared map. The kernel cannot say ENOSPC to such a
write: it ends the process with SIGBUS. So the file gets its blocks beforehand, and they are written
in place.

btrfs wants room for metadata all the same, within the limit on the subvolume that the file is in
(a qgroup). So there the file is in a subvolume of its own, which that limit does not count, and
`lock.mdb` is a symbolic link to it. Nothing else is in it: a snapshot of the subvolume around it
shows an empty directory in its place, and is a whole store.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from contextlib import suppress
from pathlib import Path

from snapfs import ioctls
from snapfs.store import space

FILE_NAME = "lock.mdb"
APART = "readers"
"""The subvolume, in the store's directory."""

FILE_BYTES = 128 * 1024
"""More than LMDB wants for `environment.MAX_READERS`; it takes what is there."""

_BLOCK_BYTES = 512
_MAKE_SUBVOLUME = 0x5000940E  # BTRFS_IOC_SUBVOL_CREATE of linux/btrfs.h
_ARGUMENTS = struct.Struct("=q4088s")
_NOT_HERE = frozenset({*ioctls.NO_SUCH, errno.EPERM, errno.EACCES})
_PLACEHOLDER_INO = 2
"""Of what a snapshot has in place of a subvolume in it: a directory that takes no files."""


def reserve(path: Path) -> None:
    """Give the table of the store in `path` place and blocks; OSError when the disk is full.

    A table that is there is left where it is, as others may have it open; one that has its blocks
    is left alone: xfs would refuse on a full disk.

    Call it only while this process has no environment open there: closing the file would end
    LMDB's own locks on it (fcntl(2), POSIX locks).
    """
    settle(path)
    fd = os.open(path / FILE_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        found = os.fstat(fd)
        if min(found.st_size, found.st_blocks * _BLOCK_BYTES) < FILE_BYTES:
            os.posix_fallocate(fd, 0, FILE_BYTES)
    finally:
        os.close(fd)


def hold(path: Path) -> int:
    """Return a descriptor that stands for the table of the store in `path` (`is_another`).

    It is one of O_PATH, which may be closed at any time: that ends no locks on the file.
    """
    return os.open(path / FILE_NAME, os.O_PATH | os.O_CLOEXEC)


def is_another(path: Path, held: int) -> bool:
    """Say whether the store in `path` has another table now than the one that is held.

    Numbers that were written down would not tell: btrfs gives the device of a subvolume that was
    deleted to the next one, while files in it are open.
    """
    try:
        found = (path / FILE_NAME).stat()
    except FileNotFoundError:
        return False
    ours = os.fstat(held)
    return ours.st_nlink == 0 or not os.path.samestat(ours, found)


def settle(path: Path) -> None:
    """Make the place for a table that is not there: apart where that is needed and can be.

    Its name comes last: a reader who makes a table of its own in that moment wins.
    """
    name, apart = path / FILE_NAME, path / APART
    if name.exists() or (os.path.lexists(name) and not name.is_symlink()):
        return
    _remove_placeholder(apart)
    if not _make_subvolume(apart):
        if not name.is_symlink():
            return
        apart.mkdir(mode=0o700, exist_ok=True)  # the store was copied to where there are none
    space.write_in_place(apart)
    with suppress(FileExistsError):
        name.symlink_to(f"{APART}/{FILE_NAME}")


def _remove_placeholder(apart: Path) -> None:
    """Remove what a snapshot has in place of the subvolume, one process at a time.

    rmdir(2) takes an empty subvolume as well: what was seen to be the former must be so still.
    """
    with suppress(FileNotFoundError):
        if apart.stat().st_ino != _PLACEHOLDER_INO:
            return
        fd = os.open(apart.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if apart.stat().st_ino == _PLACEHOLDER_INO:
                apart.rmdir()
        finally:
            os.close(fd)


def _make_subvolume(path: Path) -> bool:
    """Make `path` an empty subvolume; False where the file system has none, or not for us."""
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _MAKE_SUBVOLUME, bytearray(_ARGUMENTS.pack(0, os.fsencode(path.name))))
        path.chmod(0o700)
    except FileExistsError:
        return True
    except OSError as error:
        if error.errno in _NOT_HERE:
            return False
        raise
    else:
        return True
    finally:
        os.close(fd)
