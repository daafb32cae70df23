"""What a backup and a restore tell of while they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one kind of work is."""

    step: Literal["layers", "content"]
    done: int
    total: int


Report: TypeAlias = Callable[[Progress], None]
