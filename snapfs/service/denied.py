"""The readers' socket, and whom a socket that refuses its caller is for."""

from __future__ import annotations

import grp
import stat
from pathlib import Path


def readers_address(address: Path) -> Path:
    """Return the socket for who may look only: `snapfs-read.sock` beside `snapfs.sock`."""
    return address.with_name(f"{address.stem}-read{address.suffix}")


def who_may(address: Path, reason: str) -> str:
    """Say whom a socket is for that refused its caller, and what the caller can do."""
    if group := _readers(address):
        return (
            f"socket {address} is for root and the group {group} ({reason}); "
            "have root add you to the group and log in anew, or run as root"
        )
    refusal = f"socket {address} is root's ({reason}); run as root"
    readers = readers_address(address)
    if group := _readers(readers):
        return f"{refusal}, or, in the group {group}, look with --address {readers}"
    return refusal


def _readers(address: Path) -> str:
    """Return the group that may use a socket; empty when none may, or it cannot be told."""
    try:
        status = address.stat()
    except OSError:
        return ""
    if not status.st_mode & stat.S_IWGRP:
        return ""
    try:
        return grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        return str(status.st_gid)
