"""Whether a volume's snapshot extends a branch or forks one. Pure.

base   branch asked for      mode    what happens
none   any                   any     fork: a new root
some   one that ends at base any     extend it
some   another, or new       any     fork under that name
some   none                  auto    extend where the base has no children, else fork, unnamed
some   none                  manual  fork, unnamed
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from snapfs.volumes.ids import BranchId


@dataclass(frozen=True, slots=True)
class Fork:
    """Make a branch; an empty name is an unnamed one."""

    name: str


@dataclass(frozen=True, slots=True)
class Extend:
    """Move this branch's tip."""

    branch: BranchId


Growth: TypeAlias = Fork | Extend


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What the rule must know of a volume's base."""

    branches: tuple[tuple[BranchId, str], ...]
    """Ids and names of the branches that end there."""
    has_children: bool


def choose(base: Base | None, name: str, *, auto: bool = True) -> Growth:
    """Return what a snapshot on `base` does, with a branch's name given or "" for none."""
    if base is None:
        return Fork(name)
    if name:
        ending = next((branch for branch, called in base.branches if called == name), None)
        return Fork(name) if ending is None else Extend(ending)
    if auto and not base.has_children and base.branches:
        return Extend(base.branches[0][0])
    return Fork("")
