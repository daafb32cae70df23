"""What every room talks about: ids, snapshot states, usage, labels, mounts, errors.

Pure: no I/O, no clock. Terms are those of containerd's snapshots package; see docs/glossary.md.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NewType, TypeAlias

SnapshotId = NewType("SnapshotId", int)
"""Identity of a snapshot and name of its layer directory; from 1, never reused, kept by commit."""

LaneName = NewType("LaneName", str)
"""One FUSE mount and its worker; a snapshot's directory is in one of them."""

MAIN_LANE = LaneName("main")
"""The lane of snapshots for which nothing else was chosen."""

Labels: TypeAlias = Mapping[str, str]

MAX_LABEL_BYTES = 4096
"""Longest key plus value of one label, in UTF-8 bytes (containerd, labels.Validate)."""

MAX_NAME_BYTES = 32 * 1024
"""Longest key or name, in UTF-8 bytes (bbolt's limit on a key)."""


class Code(enum.Enum):
    """What kind of refusal an error is; each adapter maps these to its own codes."""

    NOT_FOUND = "not found"
    ALREADY_EXISTS = "already exists"
    INVALID_ARGUMENT = "invalid argument"
    FAILED_PRECONDITION = "failed precondition"
    CONFLICT = "conflict"
    COMPACTED = "compacted"
    TOO_LARGE = "too large"
    RESOURCE_EXHAUSTED = "resource exhausted"
    UNAVAILABLE = "unavailable"
    DEADLINE_EXCEEDED = "deadline exceeded"
    PERMISSION_DENIED = "permission denied"
    NOT_IMPLEMENTED = "not implemented"
    DATA_LOSS = "data loss"
    INTERNAL = "internal"


class SnapfsError(Exception):
    """Base of every refusal by the store, the snapshots and what stands on them.

    The message names the object, the refusal and, where there is one, the way out.
    """

    code: ClassVar[Code] = Code.INTERNAL


class NotFound(SnapfsError):
    code = Code.NOT_FOUND


class AlreadyExists(SnapfsError):
    code = Code.ALREADY_EXISTS


class InvalidArgument(SnapfsError):
    code = Code.INVALID_ARGUMENT


class FailedPrecondition(SnapfsError):
    code = Code.FAILED_PRECONDITION


class Conflict(SnapfsError):
    """An update against a revision that is no longer the object's."""

    code = Code.CONFLICT

    def __init__(self, message: str, *, expected: int, actual: int) -> None:
        super().__init__(message)
        self.expected = expected
        self.actual = actual


class Compacted(SnapfsError):
    code = Code.COMPACTED


class TooLarge(SnapfsError):
    code = Code.TOO_LARGE


class ResourceExhausted(SnapfsError):
    code = Code.RESOURCE_EXHAUSTED


class Unavailable(SnapfsError):
    code = Code.UNAVAILABLE


class DeadlineExceeded(SnapfsError):
    code = Code.DEADLINE_EXCEEDED


class PermissionDenied(SnapfsError):
    code = Code.PERMISSION_DENIED


class NotImplementedYet(SnapfsError):
    code = Code.NOT_IMPLEMENTED


class DataLoss(SnapfsError):
    """Stored bytes are not what was written: a damaged or foreign file."""

    code = Code.DATA_LOSS


class Internal(SnapfsError):
    code = Code.INTERNAL


class Kind(enum.Enum):
    """Kinds of snapshot, with containerd's wire numbers."""

    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3

    @property
    def word(self) -> str:
        """The lower-case word that filters and people use."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Usage:
    """A snapshot's own data, parents excluded."""

    size_bytes: int = 0
    """Sum of st_blocks * 512 over distinct inodes, directories and root included."""
    inodes: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.size_bytes + other.size_bytes, self.inodes + other.inodes)


@dataclass(frozen=True, slots=True)
class Quota:
    """What a snapshot's own data may take at most; None is no limit."""

    size_bytes: int | None = None
    """Counted as in `Usage`."""
    inodes: int | None = None


@dataclass(frozen=True, slots=True)
class Unbound:
    """Files that the kernel may go on to write past a quota, until they are closed."""

    files: int = 0
    paths: tuple[str, ...] = ()
    """Of the first few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Snapshot:
    id: SnapshotId
    name: str
    """Key of an active or a view, name of a committed: one name space."""
    parent: str = ""
    """Name of the direct parent; empty for a base."""
    parent_ids: tuple[SnapshotId, ...] = ()
    """The whole chain: index 0 is the direct parent, the last is the base."""
    labels: Labels = field(default_factory=dict)
    created_ns: int = 0
    updated_ns: int = 0
    owner: str = ""
    """Client with a collector of its own that made it; empty for what we and people made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Active(_Snapshot):
    """A read-write snapshot."""

    kind: ClassVar[Kind] = Kind.ACTIVE
    lane: LaneName = MAIN_LANE


@dataclass(frozen=True, slots=True, kw_only=True)
class View(_Snapshot):
    """A read-only look at a committed snapshot."""

    kind: ClassVar[Kind] = Kind.VIEW
    lane: LaneName = MAIN_LANE


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed(_Snapshot):
    """An immutable snapshot that others may have as parent."""

    kind: ClassVar[Kind] = Kind.COMMITTED
    usage: Usage = Usage()
    digest: bytes = b""
    """SHA-256 of all that is in its layer (snapfs.seals), once that is known."""


Snapshot: TypeAlias = Active | View | Committed
Mountable: TypeAlias = Active | View


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One mount(2) that a client makes, as containerd.types.Mount says it."""

    type: str
    source: str
    target: str = ""
    options: tuple[str, ...] = ()


def check_name(name: str, what: str) -> str:
    """Return `name`, or raise InvalidArgument when it is empty or too long for a `what`."""
    if not name:
        raise InvalidArgument(f"{what} is empty; give a name")
    size = len(name.encode("utf-8", "surrogatepass"))
    if size > MAX_NAME_BYTES:
        raise InvalidArgument(f"{what} is {size} bytes long; at most {MAX_NAME_BYTES} are allowed")
    return name


def check_labels(labels: Labels) -> dict[str, str]:
    """Return a copy of `labels`, or raise InvalidArgument naming the label over the limit."""
    for key, value in labels.items():
        if not key:
            raise InvalidArgument("a label key is empty; give it a name")
        size = len(key.encode()) + len(value.encode())
        if size > MAX_LABEL_BYTES:
            raise InvalidArgument(
                f"label {key[:64]!r}: key and value are {size} bytes; "
                f"at most {MAX_LABEL_BYTES} are allowed"
            )
    return dict(labels)
