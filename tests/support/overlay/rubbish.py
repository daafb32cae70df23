"""What is left in a work directory: files that nobody uses any more."""

from __future__ import annotations

import os
from pathlib import Path


def rubbish(work: Path) -> list[str]:
    """Names of half-made, kept and linked files in what `work` has of ours.

    Without the marks of copies that are not durable yet, which stay for seconds where there are any
    (overlay/unsynced.py).
    """
    names = os.listdir(work / "snapfs")
    return sorted(it for it in names if it[0] in "tol" and not it.startswith("tn"))
