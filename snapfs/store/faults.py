"""What LMDB and the system say, in our errors: the one table between the two."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb

from snapfs.model import (
    DataLoss,
    FailedPrecondition,
    Internal,
    PermissionDenied,
    ResourceExhausted,
    SnapfsError,
    Unavailable,
)

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_ROOM_BYTES = 1 << 20
_DAMAGE = (
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.InvalidError,
    lmdb.VersionMismatchError,
)


def os_code(error: lmdb.Error) -> int:
    """Return the errno behind an error of LMDB's, or 0 when it is of LMDB's own making."""
    return max(error.code or 0, 0)


def is_no_space(path: Path, error: lmdb.Error) -> bool:
    """Say whether the disk, a quota or a file size limit stopped it.

    LMDB calls a short write an input/output error, though a full disk is what makes writes short;
    after one, there is no room for another.
    """
    code = os_code(error)
    return code in NO_SPACE or (code == errno.EIO and not _has_room(path))


def _has_room(path: Path) -> bool:
    """Say whether a file like the data file could grow."""
    try:
        fd = os.open(path, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, (path / "data.mdb").stat().st_size, _ROOM_BYTES)
        finally:
            os.close(fd)
    except OSError as error:
        return error.errno not in NO_SPACE
    return True


def from_lmdb(path: Path, error: lmdb.Error) -> SnapfsError:
    """Return the error to raise for what LMDB said of the store at `path`."""
    if isinstance(error, _DAMAGE):
        return DataLoss(f"{path}/data.mdb is damaged ({error}); restore it from a copy")
    if isinstance(error, lmdb.ReadersFullError):
        return Unavailable(f"store {path} has all its reader slots in use; end some readers")
    if isinstance(error, lmdb.MapFullError):
        return ResourceExhausted(f"store {path} has reached its map's limit; raise the limit")
    if is_no_space(path, error):
        return ResourceExhausted(f"no space for the store {path} ({error}); free some and repeat")
    return from_errno(path, os_code(error), str(error))


def from_os(path: Path, error: OSError) -> SnapfsError:
    """Return the error to raise for what the system said of a file of the store at `path`."""
    if error.errno in NO_SPACE:
        return ResourceExhausted(f"no space for the store {path} ({error}); free some and repeat")
    return from_errno(path, error.errno or 0, str(error))


def from_errno(path: Path, number: int, text: str) -> SnapfsError:
    if number == errno.EROFS:
        return FailedPrecondition(
            f"store {path} lies on a file system that is read-only here ({text}); "
            "mount it read-write"
        )
    if number in (errno.EACCES, errno.EPERM):
        return PermissionDenied(
            f"store {path} may not be opened this way ({text}); run as its owner"
        )
    if number == errno.EIO:
        return DataLoss(f"the disk under the store {path} fails ({text}); check it and restart")
    return Internal(f"store {path}: {text}")


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn LMDB's and the system's errors about the store at `path` into SnapfsError."""
    try:
        yield
    except lmdb.Error as error:
        raise from_lmdb(path, error) from error
    except OSError as error:
        raise from_os(path, error) from error
