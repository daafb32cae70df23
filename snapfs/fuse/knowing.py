"""Whether the kernel still knows a node: what it has forgotten is not to be kept for it.

A FORGET is never sent again, so one that a dead worker had read is lost. But the kernel says so
when it is told to drop the attributes of a node that it does not have.

Asking waits for nobody whom we would have to answer, so it is done on the loop's thread: the kernel
waits there only for a file that it is freeing, and frees none of which a request is under way (a
close or the end of a mapping waits for what it wrote, a read keeps the file).
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
