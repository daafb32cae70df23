"""Whether the kernel still knows a node: what it has forgotten is not to be kept for it.

A FORGET is never sent again, so one that a dead worker had read is lost. But the kernel says so
when it is told to drop the attributes of a node that it does not have.
"""

from __future__ import annotations

import pyfuse3

from snapfs.fuse.channel import INCARNATION


def kernel_knows(ino: int) -> bool:
    """Whether the kernel has a file by either of its numbers; not once the mount has ended."""
    return kernel_has(ino) or kernel_has(ino | INCARNATION)


def kernel_has(nodeid: int) -> bool:
    """Whether the kernel has a file by one number; it learns of one by the reply that names it."""
    try:
        pyfuse3.invalidate_inode(nodeid, attr_only=True)
    except OSError:
        return False
    return True
