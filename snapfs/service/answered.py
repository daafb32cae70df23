"""Who answers at a unix socket that is to be ours, or where our service is expected."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from snapfs import processes

_CREDENTIALS = struct.Struct("3i")
"""struct ucred: pid, uid, gid."""


def holder(address: Path) -> str | None:
    """Return who answers on a socket, with the process where the kernel tells; None: nobody.

    Never waits: a listener whose queue is full (EAGAIN) is there too.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(address))
        except (ConnectionRefusedError, FileNotFoundError):
            return None
        except BlockingIOError:
            return "another server"
        raw = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid = _CREDENTIALS.unpack(raw)[0]
        return f"another server ({', '.join(filter(None, (f'pid {pid}', processes.name(pid))))})"
