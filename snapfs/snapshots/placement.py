"""Which lane shows a snapshot: its label decides, else the configuration by kind. Pure.

A lane is served by one worker or shared by several, each of which is a lane by itself with a name
of its own: `main`, `main-2`, `main-3`. People choose the first name, the service the worker.

Decided once, when the snapshot is made, and kept in its row: a snapshot that is mounted never
moves, so a label that is changed later changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from snapfs.model import InvalidArgument, Kind, Labels, LaneName

LANE_LABEL = "containerd.io/snapshot/snapfs.lane"


def workers_of(lane: LaneName, count: int) -> tuple[LaneName, ...]:
    """Return the names of the first `count` workers that a lane is shared by."""
    return (lane, *(LaneName(f"{lane}-{number}") for number in range(2, count + 1)))


@dataclass(frozen=True, slots=True)
class Placement:
    """The lanes that there are and the rule among them."""

    writable: Mapping[LaneName, bool]
    """Every lane, with whether it takes active snapshots."""
    active: LaneName
    """For active snapshots without a label."""
    view: LaneName

    def choose(self, kind: Kind, labels: Labels | None) -> LaneName:
        """Return the lane for a new snapshot; InvalidArgument when its label names none."""
        fallback = self.active if kind is Kind.ACTIVE else self.view
        wanted = LaneName((labels or {}).get(LANE_LABEL) or fallback)
        fitting = [
            name for name, writable in self.writable.items() if writable or kind is Kind.VIEW
        ]
        if wanted in fitting:
            return wanted
        reason = "is read-only" if wanted in self.writable else "does not exist"
        raise InvalidArgument(
            f"label {LANE_LABEL}: lane {wanted!r} {reason}; "
            f"lanes for a new {kind.word} are {', '.join(fitting)}"
        )
