"""The service manager's notification protocol (sd_notify(3)): one datagram a message.

Owns READY, STOPPING, STATUS, WATCHDOG and the door to the file descriptor store. Without
NOTIFY_SOCKET every call does nothing. Nothing here raises for a manager that went away: a
service must not die because its supervisor does not listen.
"""

from __future__ import annotations

import array
import os
import socket
import time
from collections.abc import Mapping, MutableMapping, Sequence
from itertools import chain
from typing import Self

import structlog

log = structlog.get_logger(__name__)

SEND_TIMEOUT_S = 1.0
_FIRST_FD = 3
"""SD_LISTEN_FDS_START of sd_listen_fds(3)."""


class Notifier:
    """Sends states to the service manager that started this process, if one did."""

    def __init__(self, address: str | None, *, watchdog_s: float | None = None) -> None:
        self._address = address
        self.watchdog_s = watchdog_s
        """The manager ends us after so many seconds without `watchdog()`; None: no watchdog."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Read NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID."""
        return cls(environ.get("NOTIFY_SOCKET") or None, watchdog_s=_watchdog_s(environ))

    @property
    def is_there(self) -> bool:
        """Whether a manager started this process."""
        return self._address is not None

    def ready(self, status: str) -> None:
        """Say that the service answers; the units ordered after it start now."""
        self._send(f"READY=1\nSTATUS={_line(status)}\nMAINPID={os.getpid()}")

    def stopping(self, status: str = "stopping") -> None:
        self._send(f"STOPPING=1\nSTATUS={_line(status)}")

    def reloading(self) -> None:
        """Say that the service begins anew and will be `ready` again."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def status(self, status: str) -> None:
        self._send(f"STATUS={_line(status)}")

    def extend(self, timeout_s: float) -> None:
        """Ask for `timeout_s` more before the manager gives up on a start or a stop."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(timeout_s * 1_000_000)}")

    def watchdog(self) -> None:
        """Say that the service is well; see `watchdog_s`."""
        self._send("WATCHDOG=1")

    def store(self, name: str, descriptors: Sequence[int]) -> None:
        """Hand descriptors to the manager to keep over a restart (FileDescriptorStoreMax=)."""
        self._send(f"FDSTORE=1\nFDNAME={name}", descriptors)

    def unstore(self, name: str) -> None:
        """Have the manager close what it keeps under a name."""
        self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def _send(self, message: str, descriptors: Sequence[int] = ()) -> None:
        if self._address is None:
            return
        ancillary = []
        if descriptors:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as peer:
                peer.settimeout(SEND_TIMEOUT_S)
                peer.connect(_path(self._address))
                peer.sendmsg([message.encode()], ancillary)
        except OSError as error:
            log.info("systemd.unreachable", address=self._address, error=error.strerror)


class DescriptorStore:
    """The manager's store: what an earlier process left there, and what this one leaves."""

    def __init__(self, notifier: Notifier, left: Mapping[str, Sequence[int]]) -> None:
        """`left` is what `listen_descriptors` said; it owns these descriptors."""
        self._notifier = notifier
        self._left = {name: list(fds) for name, fds in left.items()}
        for fd in chain.from_iterable(self._left.values()):
            os.set_inheritable(fd, False)

    @property
    def is_there(self) -> bool:
        """Whether somebody may keep what is left here."""
        return self._notifier.is_there

    def take(self, name: str) -> int | None:
        """Return a descriptor that was left, once; it is the caller's then.

        Of several under one name the others are closed: they are older.
        """
        left = self._left.pop(name, [])
        for fd in left[:-1]:
            os.close(fd)
        return left[-1] if left else None

    def keep(self, name: str, fd: int) -> None:
        """Leave a dup of a descriptor, in the place of one of the same name."""
        self._notifier.unstore(name)
        self._notifier.store(name, [fd])

    def drop(self, name: str) -> None:
        """Let go of what is kept under a name."""
        self._notifier.unstore(name)


def take_descriptors(environ: MutableMapping[str, str] = os.environ) -> dict[str, list[int]]:
    """As `listen_descriptors`, once: what this process starts, or becomes, is given none."""
    found = listen_descriptors(environ)
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        environ.pop(name, None)
    return found


def hand_on(name: str, fd: int, environ: MutableMapping[str, str] = os.environ) -> None:
    """Leave a descriptor to the program that this process is about to become (execve(2)), as the
    manager does to one that it starts. What was the first descriptor after the standard ones goes.
    """
    if fd != _FIRST_FD:
        os.dup2(fd, _FIRST_FD)
    os.set_inheritable(_FIRST_FD, True)
    environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES=name)


def listen_descriptors(environ: Mapping[str, str] = os.environ) -> dict[str, list[int]]:
    """Return the descriptors that the manager kept for us, by name (sd_listen_fds(3))."""
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    count = int(environ.get("LISTEN_FDS", "0"))
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[int]] = {}
    for offset in range(count):
        name = names[offset] if offset < len(names) else "unknown"
        found.setdefault(name, []).append(_FIRST_FD + offset)
    return found


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    usec = environ.get("WATCHDOG_USEC", "")
    pid = environ.get("WATCHDOG_PID", "")
    if not usec.isdecimal() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 1_000_000


def _path(address: str) -> str:
    """An address that begins with `@` is in the abstract name space."""
    return "\0" + address[1:] if address.startswith("@") else address


def _line(text: str) -> str:
    return text.replace("\n", " ")
