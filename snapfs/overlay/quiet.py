"""Tells which files nobody can write, also not the kernel through a mapping.

Blocks, and so safe in any thread; touches no tree.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from .syscalls import is_being_written
from .usage import Resting

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME | os.O_CLOEXEC


def not_written(files: Sequence[Resting]) -> list[Resting]:
    """Return those that nobody can write; to be handed to `UsageCount.rest` after a sync."""
    return [item for item in files if not item.native or not is_written(item.path)]


def is_written(path: bytes) -> bool:
    """Whether somebody may write to a regular file, or nobody can say."""
    try:
        fd = os.open(path, _READ)
    except OSError:
        return True
    try:
        return is_being_written(fd)
    finally:
        os.close(fd)


def ignore_lease_signals() -> None:
    """Let the kernel's word that a lease is wanted back pass: each is given back at once."""
    signal.signal(signal.SIGIO, signal.SIG_IGN)
