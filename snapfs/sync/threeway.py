"""Three-way merge of one field: what there is there, what there is here, what both had last. Pure.

    here = last, there = last     nothing to do
    here = last, there changed    take theirs
    here changed, there = last    give ours
    both changed, to the same     nothing to do
    both changed, or last unknown a conflict

Absent is a value like others: an attribute may come and go.
"""

from __future__ import annotations

import enum
from typing import Literal, TypeAlias

Value: TypeAlias = str | None


class Unknown(enum.Enum):
    """That both sides ever had the same is not known."""

    UNKNOWN = "unknown"


Last: TypeAlias = Value | Literal[Unknown.UNKNOWN]


class Outcome(enum.Enum):
    """What becomes of a field."""

    SAME = "same"
    TAKE = "take"
    GIVE = "give"
    CONFLICT = "conflict"


class Policy(enum.Enum):
    """Who wins a conflict; with `fail` nobody does, and both keep what they have."""

    THEIRS = "theirs"
    OURS = "ours"
    FAIL = "fail"


def three_way(theirs: Value, ours: Value, last: Last) -> Outcome:
    """Say what becomes of a field, by the table above."""
    if theirs == ours:
        return Outcome.SAME
    if ours == last:
        return Outcome.TAKE
    if theirs == last:
        return Outcome.GIVE
    return Outcome.CONFLICT


def decide(outcome: Outcome, policy: Policy) -> Outcome:
    """Return what a policy makes of a conflict; of anything else, what it is."""
    if outcome is not Outcome.CONFLICT or policy is Policy.FAIL:
        return outcome
    return Outcome.TAKE if policy is Policy.THEIRS else Outcome.GIVE
