"""What readers of anchors get: an entry is a fact with its name and the revision it came with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from snapfs.anchors.facts import Ref
from snapfs.anchors.schema import FactBody
from snapfs.store import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    name: str
    at_ns: int
    """From when it holds, nanoseconds since 1970."""
    author: str = ""
    reason: str = ""
    revision: int = 0
    """Revision of this store in which it was put or arrived; what compare-and-set compares."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Put(_Entry):
    """The name stands for `ref`."""

    ref: Ref


@dataclass(frozen=True, slots=True, kw_only=True)
class Deleted(_Entry):
    """The name stands for nothing."""

    ref: ClassVar[None] = None


Entry: TypeAlias = Put | Deleted


def entry(name: str, row: Row[FactBody]) -> Entry:
    """Return the entry that a fact of the anchor `name` is."""
    fact = row.body.fact
    if fact.ref is None:
        return Deleted(
            name=name,
            at_ns=fact.at_ns,
            author=fact.author,
            reason=fact.reason,
            revision=row.create_rev,
        )
    return Put(
        name=name,
        at_ns=fact.at_ns,
        ref=fact.ref,
        author=fact.author,
        reason=fact.reason,
        revision=row.create_rev,
    )
