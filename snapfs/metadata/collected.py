"""What a collection did, as it is counted, shown and kept."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

NAMED = 100
"""Failures that are named; names may be long, and all must fit one message."""


@dataclass(slots=True)
class Collected:
    """What a run did."""

    began_ns: int
    marked: int = 0
    removed: dict[str, int] = field(default_factory=dict)
    """Rows by the name of their table."""
    failed: list[str] = field(default_factory=list)
    """The first that could not be removed and will be tried again, at most NAMED."""
    failures: int = 0
    """How many there were."""
    mark_ns: int = 0
    elapsed_ns: int = 0
    waited_ns: int = 0
    """Of that for snapshotters, which are no work of ours."""

    def fail(self, name: str) -> None:
        """Count what could not be removed."""
        self.failures += 1
        if len(self.failed) < NAMED:
            self.failed.append(name)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as waiting."""
        began = time.monotonic_ns()
        try:
            yield
        finally:
            self.waited_ns += time.monotonic_ns() - began
