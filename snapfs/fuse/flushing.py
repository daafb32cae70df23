"""Dirty pages of shared writable mappings, which only the kernel knows of.

All other writes have reached us when write(2) returns. Invalidating a node's pages makes the kernel
write the dirty ones first. They exist only while a writable descriptor is open (a mapping holds
one), which in a lane without opens can be of any file.
"""

from __future__ import annotations

import contextlib

import pyfuse3

from snapfs.fuse.files import FileHandlers
from snapfs.fuse.threads import notified
from snapfs.fuse.trees import Shown


async def flush_dirty_pages(operations: FileHandlers, shown: Shown) -> None:
    """Return when what mappings of this tree's files have changed was written through us."""
    for ino in operations.maybe_mapped(shown):
        with contextlib.suppress(FileNotFoundError):  # the kernel has forgotten it since
            await notified(operations.threads.notify, pyfuse3.invalidate_inode, ino)
