"""Makes files hold still: their blocks become what they will be, and who still writes is known.

Blocks, and so safe in any thread; touches no tree.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from .layer import Layer
from .syscalls import free_preallocated, is_being_written, syncfs
from .usage import Resting

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME | os.O_CLOEXEC


def settle_blocks(directory: int | bytes) -> None:
    """Give the files of a file system the blocks that they will have; slow.

    What nobody writes then keeps its st_blocks: delayed allocation is done, and what xfs took
    in advance is given back. `directory` is one of the file system.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    fd = os.open(directory, flags) if isinstance(directory, bytes) else os.dup(directory)
    try:
        syncfs(fd)
        free_preallocated(fd)
    finally:
        os.close(fd)


def quieten(layer: Layer, files: Sequence[Resting]) -> list[Resting]:
    """Sync the file system of a layer; return those of `files` that nobody can write now.

    They are to be handed to `UsageCount.rest`.
    """
    calm = [item for item in files if not item.native or not _is_written(item.path)]
    settle_blocks(layer.proc(b"."))
    return calm


def _is_written(path: bytes) -> bool:
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
