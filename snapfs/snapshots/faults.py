"""Operating-system errors as refusals: one table, used wherever this room touches files.

A missing or an unexpected file is a failed precondition, never NotFound or AlreadyExists: those two
speak of snapshots, and containerd acts on them.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from snapfs.model import (
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    PermissionDenied,
    ResourceExhausted,
    SnapfsError,
    Unavailable,
)

_REFUSALS: dict[int, tuple[type[SnapfsError], str]] = {
    errno.ENOSPC: (ResourceExhausted, "free some space"),
    errno.EDQUOT: (ResourceExhausted, "raise the quota or free some space"),
    errno.EMFILE: (ResourceExhausted, "raise the limit of open files"),
    errno.ENFILE: (ResourceExhausted, "raise fs.file-max"),
    errno.ENOMEM: (ResourceExhausted, "free some memory"),
    errno.EMLINK: (ResourceExhausted, "remove some snapshots"),
    errno.EPERM: (PermissionDenied, "run as root and look for immutable files (lsattr)"),
    errno.EACCES: (PermissionDenied, "run as root"),
    errno.EROFS: (FailedPrecondition, "remount the root's file system read-write"),
    errno.EBUSY: (FailedPrecondition, "unmount what is mounted there"),
    errno.ENOTDIR: (FailedPrecondition, "run `snapfs fsck`"),
    errno.EOPNOTSUPP: (FailedPrecondition, "use a file system with extended attributes"),
    errno.ENOENT: (FailedPrecondition, "run `snapfs fsck`"),
    errno.EEXIST: (FailedPrecondition, "run `snapfs fsck`"),
    errno.EIO: (DataLoss, "check the disk"),
    errno.ETIMEDOUT: (DeadlineExceeded, "try again"),
    errno.ESHUTDOWN: (Unavailable, "try again when the service is up"),
}


def refusal(error: OSError, doing: str) -> SnapfsError:
    """Return what `error` means for somebody who asked for `doing`."""
    kind, way_out = _REFUSALS.get(error.errno or 0, (Internal, "see the system's log"))
    named = f" ({error.filename!s})" if error.filename else ""
    return kind(f"cannot {doing}{named}: {(error.strerror or str(error)).lower()}; {way_out}")


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Say what a refusal of the block is about, by the name that who asked knows."""
    try:
        yield
    except FailedPrecondition as error:
        raise FailedPrecondition(f"{what}: {error}") from error


@contextmanager
def refusing(doing: str) -> Iterator[None]:
    """Turn an OSError of the block into a SnapfsError that says what could not be done."""
    try:
        yield
    except OSError as error:
        raise refusal(error, doing) from error
