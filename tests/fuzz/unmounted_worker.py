"""A worker whose kernel is a socket: a program that streams.py starts.

A request whose number has `MARK` is answered in the fast lane or not at all: then the reply says
`LEFT`. What is damaged is never shown to libfuse, which trusts the kernel.
"""

from __future__ import annotations

import ctypes
import sys

from snapfs.fuse import _channel, worker
from snapfs.fuse.channel import Request, Requests

MARK = 1 << 62
LEFT = 133
"""An errno that nothing else says (EHWPOISON)."""


class _Buffer(ctypes.Structure):
    """struct fuse_buf."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("memory", ctypes.c_void_p),
        ("rest", ctypes.c_char * 64),
    ]


_library = ctypes.CDLL(_channel.__file__)
_mine = _Buffer()
_receive = Requests.receive


def receive(self: Requests, fd: int) -> Request | bool | None:
    found = _receive(self, fd)
    if found is True:
        number = _channel.waiting()[0]
    elif isinstance(found, Request):
        number = found.unique
    else:
        return found
    if not number & MARK:
        return found
    if found is True:
        _library.fuse_session_receive_buf(None, ctypes.byref(_mine))
    _channel.reply(fd, number, LEFT, b"")
    return False


if __name__ == "__main__":
    Requests.receive = receive  # type: ignore[method-assign]
    sys.exit(worker.main())
