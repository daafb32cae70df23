"""What the kernel tells of processes (proc(5)). Of one that has ended, or is not ours to see, it
tells nothing, which is never an error here."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

SHOWN = 5
"""Of processes, or of what they have open, that a message names."""
_COMMAND_CHARACTERS = 60
_CREDENTIALS = struct.Struct("3i")
"""struct ucred: pid, uid, gid."""


def running() -> list[int]:
    """Return the numbers of all processes that can be seen from here."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def read(pid: int, name: str) -> str:
    """Return a file of a process; empty when it is not to be had."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="backslashreplace")
    except OSError:
        return ""


def listed(pid: int, name: str) -> list[str]:
    """Return what is in a directory of a process; nothing when it is not to be had."""
    try:
        return os.listdir(f"/proc/{pid}/{name}")
    except OSError:
        return []


def fields(text: str) -> dict[str, str]:
    """Return the lines `name: value` of a file of a process."""
    return {
        name: value.strip() for name, _, value in (it.partition(":") for it in text.split("\n"))
    }


def name(pid: int) -> str:
    """Return the name of a process; empty when it has ended."""
    return read(pid, "comm").strip()


def described(pid: int) -> str:
    """Return a process for a message, with its command or, without one, its name."""
    command = " ".join(read(pid, "cmdline").split("\0")).strip() or name(pid)
    shown = "".join(it if it.isprintable() else "?" for it in command[:_COMMAND_CHARACTERS])
    more = "…" if len(command) > _COMMAND_CHARACTERS else ""
    return f"process {pid} ({shown}{more})" if shown else f"process {pid}"


def named(found: Iterable[object]) -> str:
    """Return things for a message: the first few, and how many more."""
    names = [str(it) for it in found]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


class Channel(Protocol):
    """A socket, of the standard library or of trio."""

    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


def peer(channel: Channel) -> tuple[int, int]:
    """Return the process and the user at the other end (unix(7), SO_PEERCRED); of a listener, who
    began to listen."""
    raw = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return pid, uid
