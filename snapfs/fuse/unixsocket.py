"""Packet sockets with a name: at any path, for their owner only, with a peer that is known.

The directory is held open and the name looked up in it, since sun_path has room for 107 bytes.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from pathlib import Path

MODE = 0o600
RETRY_S = 0.02


def open_directory(path: Path) -> int:
    """Return a descriptor with which a name in a directory can be reached; raises OSError."""
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def connect(path: Path, timeout_s: float) -> socket.socket:
    """Return a connected socket; raises OSError, TimeoutError when the queue there stays full."""
    end_s = time.monotonic() + timeout_s
    directory = open_directory(path.parent)
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        channel.settimeout(timeout_s)
        while (number := channel.connect_ex(_address(directory, path.name))) == errno.EAGAIN:
            if time.monotonic() > end_s:
                raise TimeoutError(errno.ETIMEDOUT, f"{path}: nobody lets us in")
            time.sleep(RETRY_S)
        if number:
            raise OSError(number, os.strerror(number), str(path))
    except OSError:
        channel.close()
        raise
    finally:
        os.close(directory)
    return channel


def listen(directory: int, name: str, backlog: int) -> socket.socket:
    """Return a socket that listens in an opened directory; raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        os.fchmod(listener.fileno(), MODE)  # bind gives it to the name
        listener.bind(_address(directory, name))
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener


def _address(directory: int, name: str) -> str:
    return f"/proc/self/fd/{directory}/{name}"
