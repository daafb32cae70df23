"""Extended attributes as they are set: the kernel's flags reach the file, in one step.

pyfuse3 would ask for the attribute first and set it then, so that a request which is sent again
would be told that what it made is there already.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING

from snapfs.fuse.channel import Body, Opcode, RawHandler, Request

if TYPE_CHECKING:
    from snapfs.fuse.operations import OverlayOperations

_SETXATTR_IN = struct.Struct("<II")


class SettingRequests:
    """Handler for SETXATTR."""

    def __init__(self, operations: OverlayOperations) -> None:
        self._operations = operations

    def handlers(self) -> Mapping[int, RawHandler]:
        return {Opcode.SETXATTR: self.setxattr}

    async def setxattr(self, request: Request) -> Body:
        size, flags = _SETXATTR_IN.unpack_from(request.body)
        name, _, rest = request.body[_SETXATTR_IN.size :].partition(b"\0")
        if flags & ~(os.XATTR_CREATE | os.XATTR_REPLACE) or len(rest) < size:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        await self._operations.set_attribute(
            request.nodeid, name, rest[:size], flags, uid=request.uid, pid=request.pid
        )
        return b""
