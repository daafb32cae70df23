"""Descriptors of files for requests that name a file by its handle, or only by its node."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snapfs.fuse.files import FileHandlers


@contextmanager
def lent(operations: FileHandlers, nodeid: int, fh: int) -> Iterator[int]:
    """Lend a descriptor by which a file is read as its user sees it. Raises OSError."""
    handle = operations.files.find(fh)
    if handle is not None and not handle.reads_past_copy:
        yield handle.fd
        return
    shown, node = operations.forest.find(nodeid) if handle is None else (handle.shown, handle.node)
    is_lower = handle is not None or operations.passing.reads_past_copy(nodeid, node)
    fd = node.tree.open_lower(node) if is_lower else shown.tree.open(node, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def read_all(fd: int, size: int, off: int) -> bytes:
    """Read all that there is. Raises OSError when a part cannot be read.

    The kernel takes less than it asked for as the end of the file, and has zeros after it.
    """
    found = os.pread(fd, size, off)
    while found and len(found) < size:
        more = os.pread(fd, size - len(found), off + len(found))
        if not more:
            break
        found += more
    return found
