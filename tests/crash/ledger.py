"""What a room showed after each act on a recorded disk, and what it may show after a cut.

A *view* is all that a user can see of a room, part by part. A cut after an act was acknowledged
leaves its view. One in the middle of an act leaves the view before it or after it, whole; of an act
*in parts*, which is several transactions, each part may be as before or as after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pytest

from snapfs.snapshots import copying

Moment: TypeAlias = Callable[[], int]
"""Returns the present moment of the disk."""
View: TypeAlias = Mapping[str, object]
"""Values can be compared; what is not there has no part."""


@dataclass(frozen=True)
class Step:
    """An act, and what was seen after it."""

    name: str
    began: int
    ended: int
    view: View
    in_parts: bool = False


_NOTHING = Step("nothing", -1, -1, {})


class Ledger:
    """The acts of one room, one after the other."""

    def __init__(self, now: Moment, look: Callable[[], View]) -> None:
        self._now = now
        self._look = look
        self._steps = [_NOTHING]

    @contextmanager
    def act(self, name: str, *, in_parts: bool = False) -> Iterator[None]:
        """Let the block be an act; it is acknowledged when the block ends."""
        began = self._now()
        yield
        self._steps.append(Step(name, began, self._now(), self._look(), in_parts))

    def at(self, moment: int) -> tuple[Step, Step]:
        """Return the last step acknowledged at a moment and the one under way, or the same."""
        last = max(n for n, it in enumerate(self._steps) if it.ended <= moment)
        following = self._steps[last + 1 : last + 2]
        is_under_way = following and following[0].began < moment
        return self._steps[last], following[0] if is_under_way else self._steps[last]

    def step(self, name: str) -> Step:
        """Return the step of a name."""
        return next(it for it in self._steps if it.name == name)

    def check(self, found: View, moment: int) -> None:
        """See that a room shows what it may after a cut at a moment."""
        last, under_way = self.at(moment)
        if not under_way.in_parts:
            wrong = min((_differing(found, it.view) for it in (last, under_way)), key=len)
        else:
            allowed = (last.view, under_way.view)
            wrong = [
                name
                for name in found.keys() | last.view.keys() | under_way.view.keys()
                if not any(it.get(name) == found.get(name) for it in allowed)
            ]
        assert not wrong, f"after {last.name}, in {under_way.name}:\n" + "\n".join(
            f"{it}: {found.get(it)}\n  before: {last.view.get(it)}\n  after: "
            f"{under_way.view.get(it)}"
            for it in sorted(wrong)
        )


def _differing(one: View, other: View) -> list[str]:
    return [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)]


@contextmanager
def booted(place: Path) -> Iterator[None]:
    """Let it be another boot than the one that wrote the disk at `place`, for the block."""
    boot = place.with_suffix(".boot")
    boot.write_text("after the cut")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(copying, "BOOT_ID", boot)
        yield
