"""Errors of the operating system reach callers as refusals with a way out."""

import errno
import os

import pytest

from snapfs.model import (
    DataLoss,
    FailedPrecondition,
    Internal,
    PermissionDenied,
    ResourceExhausted,
)
from snapfs.snapshots.faults import refusing


@pytest.mark.parametrize(
    ("number", "kind", "way_out"),
    [
        (errno.ENOSPC, ResourceExhausted, "free some space"),
        (errno.EDQUOT, ResourceExhausted, "raise the quota"),
        (errno.EMFILE, ResourceExhausted, "limit of open files"),
        (errno.EACCES, PermissionDenied, "run as root"),
        (errno.EROFS, FailedPrecondition, "read-write"),
        (errno.ENOENT, FailedPrecondition, "fsck"),
        (errno.EEXIST, FailedPrecondition, "fsck"),
        (errno.EIO, DataLoss, "check the disk"),
        (errno.ENOTTY, Internal, "log"),
    ],
)
def test_each_errno_has_its_code_and_names_what_was_tried(number, kind, way_out):
    with pytest.raises(kind) as refused, refusing("make a directory"):
        raise OSError(number, os.strerror(number), "/layers/7")
    said = str(refused.value)
    assert said.startswith("cannot make a directory (/layers/7): ")
    assert way_out in said
    assert isinstance(refused.value.__cause__, OSError)
