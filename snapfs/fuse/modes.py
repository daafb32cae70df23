"""What a lane's mount is, for good: flags of INIT hold as long as the connection does.

A successor of a worker serves in the mode of the mount that it finds, whatever the configuration
says by then.
"""

from __future__ import annotations

import enum

from snapfs.fuse import channel, mounts
from snapfs.fuse.handover import WANTED, WANTED_NO_OPEN, WANTED_PASSTHROUGH, Init

GOES_WITHOUT = "the lane's mode goes without"
"""Why a lane does not have a feature that it is not to have."""


class Mode(enum.Enum):
    """How the kernel and a worker share the work; docs/lanes.md compares them."""

    PASSTHROUGH = "passthrough"
    READONLY = "readonly"
    """The same on a read-only super block: for views, whose reads then change no atime."""

    NO_OPEN = "no-open"
    """Files are known by node and never opened: for many small files."""

    @property
    def is_writable(self) -> bool:
        return self is not Mode.READONLY

    @property
    def mount_flags(self) -> int:
        """Flags of mount(2)."""
        return 0 if self.is_writable else mounts.MS_RDONLY

    @property
    def wanted(self) -> Init:
        """What is granted of what the kernel offers."""
        if not channel.loaded():
            return WANTED
        return WANTED_NO_OPEN if self is Mode.NO_OPEN else WANTED_PASSTHROUGH
