"""Who answers at a unix socket that is to be ours, or where our service is expected."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from snapfs import processes


def holder(address: Path) -> str | None:
    """Return who answers on a socket, with the process where the kernel tells; None: nobody.

    Never waits: a listener whose queue is full (EAGAIN) is there too.
    """
    try:
        pid = _maker(address)
    except (ConnectionRefusedError, FileNotFoundError):
        return None
    except BlockingIOError:
        return "another server"
    return f"another server ({', '.join(filter(None, (f'pid {pid}', processes.name(pid))))})"


def outlived(address: Path) -> bool:
    """Say whether who made a socket has ended, and callers wait there for another (queued.py)."""
    try:
        return not processes.name(_maker(address))
    except OSError:
        return False


def _maker(address: Path) -> int:
    """Return the process that began to listen; raises what connect(2) does, and never waits."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        probe.connect(os.fspath(address))
        return processes.peer(probe)[0]
