"""Owners of a snapshot as a user namespace sees them: two labels, read once. Pure.

Layers store the owners that a container sees. The labels say which owners of the host those are for
a container with a user namespace: `CONTAINER-ID:HOST-ID:SIZE[,...]`, as containerd writes them.
Owners that no range covers are shown as nobody.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass

from snapfs.model import InvalidArgument, Labels

UID_LABEL = "containerd.io/snapshot/uidmapping"
GID_LABEL = "containerd.io/snapshot/gidmapping"
MAX_RANGES = 340
"""As many as a user namespace can have (user_namespaces(7))."""
NOBODY = 65534
"""Shown for an owner that no range covers, as the kernel does (kernel.overflowuid)."""
_IDS = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class IdRange:
    """`size` owners, from `container` in the layers and from `host` on the host."""

    container: int
    host: int
    size: int


EVERYBODY = (IdRange(0, 0, _IDS),)


@dataclass(frozen=True, slots=True)
class IdMapping:
    """How the owners in a snapshot's layers are shown; implements overlay.Owners."""

    uids: tuple[IdRange, ...] = EVERYBODY
    gids: tuple[IdRange, ...] = EVERYBODY

    @classmethod
    def of(cls, labels: Labels | None) -> IdMapping | None:
        """Read a snapshot's labels; None without any. InvalidArgument says what is wrong."""
        found = labels or {}
        if not found.get(UID_LABEL) and not found.get(GID_LABEL):
            return None
        return cls(_ranges(found, UID_LABEL), _ranges(found, GID_LABEL))

    def shown_uid(self, uid: int) -> int:
        return _shown(self.uids, uid)

    def shown_gid(self, gid: int) -> int:
        return _shown(self.gids, gid)

    def stored_uid(self, uid: int) -> int:
        """Return what is stored for an owner of the host; EOVERFLOW when no range has it."""
        return _stored(self.uids, uid)

    def stored_gid(self, gid: int) -> int:
        return _stored(self.gids, gid)


def _ranges(labels: Labels, label: str) -> tuple[IdRange, ...]:
    text = labels.get(label)
    if not text:
        return EVERYBODY
    ranges = tuple(_range(label, part) for part in text.split(","))
    if len(ranges) > MAX_RANGES:
        raise InvalidArgument(f"label {label} has {len(ranges)} ranges; at most {MAX_RANGES} work")
    for of, first in (
        ("container", ((it.container, it.size) for it in ranges)),
        ("host", ((it.host, it.size) for it in ranges)),
    ):
        if _overlap(first):
            raise InvalidArgument(f"label {label} {text!r}: {of} ids overlap; give each once")
    return ranges


def _range(label: str, text: str) -> IdRange:
    words = text.split(":")
    if len(words) != 3 or not all(word.isascii() and word.isdigit() for word in words):
        raise InvalidArgument(
            f"label {label}: {text!r} is not CONTAINER-ID:HOST-ID:SIZE; join several with commas"
        )
    container, host, size = (int(word) for word in words)
    if not 0 < size <= _IDS or max(container, host) + size > _IDS:
        raise InvalidArgument(f"label {label}: {text!r} is empty or ends after id {_IDS - 1}")
    return IdRange(container, host, size)


def _overlap(ranges: Iterable[tuple[int, int]]) -> bool:
    end = 0
    for first, size in sorted(ranges):
        if first < end:
            return True
        end = first + size
    return False


def _shown(ranges: tuple[IdRange, ...], number: int) -> int:
    for it in ranges:
        if it.container <= number < it.container + it.size:
            return number - it.container + it.host
    return NOBODY


def _stored(ranges: tuple[IdRange, ...], number: int) -> int:
    for it in ranges:
        if it.host <= number < it.host + it.size:
            return number - it.host + it.container
    raise OSError(errno.EOVERFLOW, os.strerror(errno.EOVERFLOW))
