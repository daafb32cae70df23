"""Who uses a mounted volume, and telling them to end (proc(5)).

A process uses a volume when its mount name space has it mounted besides ours, or when it has its
working directory, an open file or a mapping there.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from snapfs.model import DeadlineExceeded
from snapfs.volumes.mounting import Bound, at, table

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class User:
    """A process that uses a volume."""

    pid: int
    name: str
    elsewhere: bool
    """It has the volume in a mount name space of its own."""

    def __str__(self) -> str:
        return f"{self.name} ({self.pid})"


def users(target: Path) -> list[User]:
    """Return who uses what is bound at `target`, ourselves left out."""
    bound = at(target)
    if not bound:
        return []
    here = os.stat("/proc/self/ns/mnt").st_ino
    tables: dict[int, bool] = {}
    found = (_user(pid, bound[-1], target, here, tables) for pid in _processes())
    return [user for user in found if user is not None]


def shown(found: Iterable[User]) -> str:
    """Return users for a message: the first few, and how many more."""
    names = [str(user) for user in found]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def tell(found: Iterable[User], number: signal.Signals, timeout_s: float) -> None:
    """Send a signal to each and return when all have ended; else DeadlineExceeded.

    Signals are sent through descriptors of processes, so that they reach nobody else.
    """
    until_s = time.monotonic() + timeout_s
    with _pidfds(found) as open_:
        for fd in open_.values():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, number)
        for user, fd in open_.items():
            left_s = max(until_s - time.monotonic(), 0)
            if not select.select([fd], [], [], left_s)[0]:
                raise DeadlineExceeded(
                    f"{user} still runs {timeout_s:g} s after {number.name}; stop it, or give "
                    "another signal"
                )


@contextmanager
def _pidfds(found: Iterable[User]) -> Iterator[dict[User, int]]:
    open_: dict[User, int] = {}
    try:
        for user in found:
            with suppress(ProcessLookupError):
                open_[user] = os.pidfd_open(user.pid)
        yield open_
    finally:
        for fd in open_.values():
            os.close(fd)


def _processes() -> Iterator[int]:
    own = os.getpid()
    return (int(name) for name in os.listdir("/proc") if name.isdecimal() and int(name) != own)


def _user(pid: int, bound: Bound, target: Path, here: int, tables: dict[int, bool]) -> User | None:
    try:
        name_space = os.stat(f"/proc/{pid}/ns/mnt").st_ino
        if name_space != here:
            if name_space not in tables:
                tables[name_space] = any(
                    it.device == bound.device and it.root.split("/")[1:2] == [bound.root[1:]]
                    for it in table(str(pid))
                )
            uses = tables[name_space]
        else:
            uses = _has_open(pid, os.fspath(target))
        return User(pid, _name(pid), name_space != here) if uses else None
    except OSError:  # it has ended
        return None


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def _has_open(pid: int, target: str) -> bool:
    links = (f"/proc/{pid}/cwd", f"/proc/{pid}/root")
    fds = (f"/proc/{pid}/fd/{name}" for name in os.listdir(f"/proc/{pid}/fd"))
    for link in (*links, *fds):
        with suppress(OSError):
            if _is_below(os.readlink(link), target):
                return True
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as maps:
        return any(_is_below(line.rstrip("\n").partition("/")[2], target[1:]) for line in maps)


def _is_below(path: str, target: str) -> bool:
    return path == target or path.startswith(target + "/")
