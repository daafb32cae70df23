"""The operations that pyfuse3 has no handlers for, as handlers of raw requests.

    spaces      what is in files: fallocate, SEEK_DATA and SEEK_HOLE, copy_file_range
    inodes      what is known of a node: statx, inode flags, statfs, syncfs
    nameless    O_TMPFILE
    setting     setxattr with its flags

They obey the rules of all handlers: a change passes the tree's gate, copies up what it needs, and
what may block goes to a thread. Where the kernel names an open file it is the file that is used;
handle 0 (a lane without opens), and one of a dead worker, is looked up by its node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from snapfs.fuse.channel import RawHandler
from snapfs.fuse.inodes import InodeRequests
from snapfs.fuse.nameless import NamelessRequests
from snapfs.fuse.setting import SettingRequests
from snapfs.fuse.spaces import SpaceRequests

if TYPE_CHECKING:
    from snapfs.fuse.operations import OverlayOperations


def handlers(operations: OverlayOperations) -> dict[int, RawHandler]:
    """Return the handlers for a session, by opcode."""
    return {
        **SpaceRequests(operations).handlers(),
        **InodeRequests(operations).handlers(),
        **NamelessRequests(operations).handlers(),
        **SettingRequests(operations).handlers(),
    }
