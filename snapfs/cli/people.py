"""Who asks, as histories show it."""

from __future__ import annotations

import getpass
import os
import socket


def me() -> str:
    """Return user and host: the person behind sudo, if there is one."""
    try:
        user = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a user that the system has no name for
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
