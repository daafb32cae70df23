"""Refusals of volumes that callers tell apart by name, beside those of the model."""

from __future__ import annotations

from snapfs.model import FailedPrecondition, InvalidArgument, NotFound
from snapfs.volumes.ids import BranchId, VolumeSnapshotId


class VolumeSetNotFound(NotFound):
    """No set of this id or name."""


class VolumeSnapshotNotFound(NotFound):
    """No snapshot of this id in the set, or nothing that a reference resolves to."""


class BranchNotFound(NotFound):
    """No branch of this id or name in the set."""


class VolumeNotFound(NotFound):
    """No volume of this id, name or mount path."""


class Ambiguous(InvalidArgument):
    """A short id or a name that more than one thing has."""


class SnapshotImportMismatch(FailedPrecondition):
    """What is to extend a branch does not begin at its tip: somebody moved it meanwhile."""

    def __init__(
        self, message: str, *, branch: BranchId, expected: VolumeSnapshotId, tip: VolumeSnapshotId
    ) -> None:
        super().__init__(message)
        self.branch = branch
        self.expected = expected
        """What the tip was thought to be."""
        self.tip = tip
        """What it is."""


class BlobMismatch(FailedPrecondition):
    """A snapshot's data was to be set or cleared, and is not what the caller thought."""
