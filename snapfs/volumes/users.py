"""Who uses a mounted volume, and telling them to end (proc(5)).

A process uses a volume when it has its working directory, an open file or a mapping there, or when
it is in a container that has the volume: it has another root than we have, or a mount of the volume
where we have none. A mount name space that was copied from ours with all its mounts, as services of
systemd have, is no container: who has nothing open there uses nothing.
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

from snapfs import processes
from snapfs.model import DeadlineExceeded
from snapfs.volumes.mounting import at, table


@dataclass(frozen=True, slots=True)
class User:
    """A process that uses a volume."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.pid})"


def users(target: Path) -> list[User]:
    """Return who uses what is bound at `target`, ourselves left out."""
    bound = at(target)
    return users_of(bound[-1].device, bound[-1].root, target) if bound else []


def users_of(device: str, root: str, target: Path | None) -> list[User]:
    """Return who uses a tree of a lane, which we have at `target` or nowhere."""
    look = _Look(device, root, os.fspath(target) if target else "")
    found = map(look.user, _processes())
    return [user for user in found if user is not None]


def holders(device: str, root: str) -> list[User]:
    """Return a process of each mount name space but ours that has a tree mounted."""
    look = _Look(device, root, "")
    found: dict[int, User] = {}
    for pid in _processes():
        with suppress(OSError):  # it has ended
            name_space = os.stat(f"/proc/{pid}/ns/mnt").st_ino
            if name_space != look.here and name_space not in found and look.paths(pid, name_space):
                found[name_space] = User(pid, _name(pid))
    return list(found.values())


def shown(found: Iterable[User]) -> str:
    """Return users for a message: the first few, and how many more."""
    return processes.named(found)


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
    return filter(os.getpid().__ne__, processes.running())


class _Look:
    """One look at all processes, for one tree."""

    def __init__(self, device: str, root: str, target: str) -> None:
        self.here = os.stat("/proc/self/ns/mnt").st_ino
        self._root = os.stat("/")
        self._device = device
        self._tree = root
        self._target = target
        self._paths: dict[int, frozenset[str]] = {}

    def user(self, pid: int) -> User | None:
        """Return a process if it uses the tree."""
        try:
            name_space = os.stat(f"/proc/{pid}/ns/mnt").st_ino
            uses = name_space != self.here and self._is_contained(pid, name_space)
            if uses or (self._target and _has_open(pid, self._target)):
                return User(pid, _name(pid))
        except OSError:  # it has ended
            pass
        return None

    def paths(self, pid: int, name_space: int) -> frozenset[str]:
        """Return where a process's mount name space has the tree, or a part of it."""
        if name_space not in self._paths:
            self._paths[name_space] = frozenset(
                it.path
                for it in table(str(pid))
                if it.device == self._device and _is_below(it.root, self._tree)
            )
        return self._paths[name_space]

    def _is_contained(self, pid: int, name_space: int) -> bool:
        paths = self.paths(pid, name_space)
        if paths - {self._target}:
            return True
        return bool(paths) and not os.path.samestat(os.stat(f"/proc/{pid}/root"), self._root)


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
