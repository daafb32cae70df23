"""A service manager as `snapfs serve` sees one: the notify socket, and a store of descriptors.

It speaks systemd's protocol (sd_notify(3), sd_listen_fds(3)): FDSTORE with FDNAME keeps
descriptors, FDSTOREREMOVE lets go of them, and a start is given all that are kept. As systemd does,
it lets go of a descriptor that hangs up.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.daemon import RunningDaemon

_LAUNCH = """
import os, sys
count = int(sys.argv[1])
given = list(map(int, sys.argv[2 : 2 + count]))
moved = [os.dup2(fd, 600 + n) for n, fd in enumerate(given)]
for n, fd in enumerate(moved):
    os.dup2(fd, 3 + n)
    os.close(fd)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2 + count], sys.argv[2 + count :])
"""
_MOST_FDS = 64


class Manager:
    """Receives what the service says and keeps what it is given."""

    def __init__(self, address: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(address))
        self.address = address
        self._lock = threading.Lock()
        self._kept: dict[str, list[int]] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"END", str(self.address))
        self._reader.join(10)
        self._socket.close()
        for name in list(self._kept):
            self._remove(name)

    @property
    def kept(self) -> dict[str, list[int]]:
        """What is in the store, less what has hung up."""
        with self._lock:
            live = {name: list(filter(_lives, fds)) for name, fds in self._kept.items()}
        return {name: fds for name, fds in live.items() if fds}

    def put(self, name: str, content: bytes) -> None:
        """Put something into the store in the place of what is kept under a name."""
        self._remove(name)
        fd = os.memfd_create(name)
        os.write(fd, content)
        with self._lock:
            self._kept[name] = [fd]

    def _read(self) -> None:
        while True:
            message, fds, _, _ = socket.recv_fds(self._socket, 4096, _MOST_FDS)
            if message == b"END":
                return
            lines = dict(it.split("=", 1) for it in message.decode().splitlines())
            name = lines.get("FDNAME", "stored")
            if "FDSTOREREMOVE" in lines:
                self._remove(name)
            if "FDSTORE" in lines:
                with self._lock:
                    self._kept.setdefault(name, []).extend(fds)

    def _remove(self, name: str) -> None:
        with self._lock:
            for fd in self._kept.pop(name, ()):
                os.close(fd)


class ManagedDaemon(RunningDaemon):
    """A `snapfs serve` that a manager starts."""

    def __init__(self, base: Path, manager: Manager, **options: Any) -> None:
        super().__init__(base, **options)
        self._manager = manager
        self.environ["NOTIFY_SOCKET"] = str(manager.address)

    def command(self) -> list[str]:
        kept = [(name, fd) for name, fds in self._manager.kept.items() for fd in fds]
        self.pass_fds = tuple(fd for _, fd in kept)
        self.environ["LISTEN_FDS"] = str(len(kept))
        self.environ["LISTEN_FDNAMES"] = ":".join(name for name, _ in kept)
        launch = [sys.executable, "-S", "-c", _LAUNCH, str(len(kept))]
        return [*launch, *map(str, self.pass_fds), *super().command()]


def _lives(fd: int) -> bool:
    """Whether a descriptor has not hung up; what cannot be polled never does."""
    poller = select.poll()
    poller.register(fd, 0)
    return not any(events & (select.POLLERR | select.POLLHUP) for _, events in poller.poll(0))
