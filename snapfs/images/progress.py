"""What an import or an export tells of while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

REPORT_EVERY_BYTES = 4 << 20
"""How often a step tells how far it is."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one step is."""

    step: Literal["read", "unpack", "write", "done"]
    what: str
    """Digest of a blob or a layer, or the name of an image."""
    done_bytes: int = 0
    total_bytes: int = 0
