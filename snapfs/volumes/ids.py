"""Identities of what volumes are made of: random UUIDs in their usual form, and short forms. Pure.

An id is made once, on any host, and travels; what a host calls a row inside its own store (an oid)
does not. The short form of an id is its first 8 and its last 4 digits.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from typing import NewType, TypeAlias

from snapfs.model import InvalidArgument

VolumeSetId = NewType("VolumeSetId", str)
"""A tree of snapshots with its branches; the same on every host that has it."""

VolumeSnapshotId = NewType("VolumeSnapshotId", str)
"""A point of a set's history; the same on every host that has it."""

BranchId = NewType("BranchId", str)
"""A line of history with a tip; keeps its identity when it is renamed."""

VolumeId = NewType("VolumeId", str)
"""A working copy, of one host."""

NewId: TypeAlias = Callable[[], str]
"""Gives an id that nothing has; tests give known ones."""

_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_SHORT = re.compile(r"[0-9a-f]{12}")
_PART = re.compile(r"[0-9a-f]{4,12}")


def new_id() -> str:
    """Return a random id."""
    return str(uuid.uuid4())


def check_id(text: str, what: str) -> str:
    """Return `text`, or raise InvalidArgument when it is not an id in its usual form."""
    if not _ID.fullmatch(text):
        raise InvalidArgument(
            f"{text[:64]!r} is not the id of a {what}; an id is a UUID in lower case"
        )
    return text


def is_id(text: str) -> bool:
    """Say whether `text` has the form of an id."""
    return _ID.fullmatch(text) is not None


def short(identity: str) -> str:
    """Return the short form of an id: first 8 and last 4 digits."""
    return identity[:8] + identity[-4:]


def is_short(text: str) -> bool:
    """Say whether `text` has the form of a whole short id."""
    return _SHORT.fullmatch(text) is not None


def may_be_short(text: str) -> bool:
    """Say whether `text` may be a short id or the beginning of one: 4 to 12 digits."""
    return _PART.fullmatch(text) is not None
