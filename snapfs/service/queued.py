"""Who calls while no control process answers: they wait in a queue, and the next one answers them.

connect(2) succeeds as long as anybody has the listening socket, so it is left in the service
manager's store. gRPC makes its listeners by itself and takes none, and shuts its own down when it
stops. So a control process listens anew, at the same address, and passes on who waits in the queue
of the one before; one that stops puts a listener of its own in the place of gRPC's first.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Protocol, Self

import structlog

from snapfs.closing import Closing
from snapfs.processes import peer

NAME = "socket"
"""In the store."""
LATE_S = 1.0
"""For who had found the old listener and not called yet, when the new one took its place."""
MOST_CALLERS = 128
"""That are passed on; each has two threads for as long as it stays."""
BACKLOG = 4096
_BYTES = 1 << 16

log = structlog.get_logger(__name__)


class Store(Protocol):
    """Keeps descriptors over a restart; see systemd.DescriptorStore."""

    def take(self, name: str, /) -> int | None: ...

    def keep(self, name: str, fd: int, /) -> None: ...


class Queue(Closing):
    """The listener of an earlier control process, until all in its queue are passed on."""

    def __init__(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._callers: list[socket.socket] = []

    @classmethod
    def left(cls, store: Store) -> Self | None:
        """Return the queue that an earlier process left in the store; None for one that ended, or
        for something else."""
        fd = store.take(NAME)
        if fd is None:
            return None
        if _is_socket(fd):
            listener = socket.socket(fileno=fd)
            if _listens(listener):
                return cls(listener)
            listener.close()
        else:
            os.close(fd)
        log.warning("server.queue_not_taken", reason="it is not a socket that listens")
        return None

    def is_at(self, address: Path) -> bool:
        """Say whether who calls at `address` comes here; false where a living server answers."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as call:
            call.setblocking(False)
            self._accept()  # else there may be no place for one more
            try:
                call.connect(os.fspath(address))
            except OSError:
                return False
            self._accept()
        own = [it for it in self._callers if peer(it)[0] == os.getpid()]
        self._callers = [it for it in self._callers if it not in own]
        for caller in own:
            caller.close()
        return bool(own)

    def pass_on(self, address: Path) -> None:
        """Connect who waits, and who is late, with the server at `address`, in the background."""
        threading.Thread(target=self._pass_on, args=(address,), name="queue", daemon=True).start()

    def close(self) -> None:
        """Let go of it; who was not passed on is still in the store's."""
        self._listener.close()
        for caller in self._callers:
            caller.close()

    def _accept(self) -> None:
        with suppress(BlockingIOError):
            while True:
                self._callers.append(self._listener.accept()[0])

    def _pass_on(self, address: Path) -> None:
        poller, until_s, passed = select.poll(), time.monotonic() + LATE_S, 0
        poller.register(self._listener, select.POLLIN)
        with self:
            while (left_s := until_s - time.monotonic()) > 0:
                self._accept()
                while self._callers and passed < MOST_CALLERS:
                    _join(self._callers.pop(0), address)
                    passed += 1
                poller.poll(left_s * 1000)
        if passed:
            log.info("server.queue_passed_on", callers=passed)


def own_listener(path: Path) -> socket.socket | None:
    """Return a dup of the socket of this process that was bound to `path` and listens."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):
            if not _is_socket(fd):
                continue  # not even a dup: to close one would let go of fcntl(2)'s locks
            found = socket.socket(fileno=os.dup(fd))
            if _listens(found) and found.getsockname() == os.fspath(path):
                return found
            found.close()
    return None


def listen_in_place_of(address: Path) -> socket.socket:
    """Listen at `address`, in the place and with the mode of who listens there now; or OSError."""
    status = address.stat()
    with ExitStack() as stack:
        private = tempfile.TemporaryDirectory(prefix=".", dir=address.parent)
        newborn = Path(stack.enter_context(private)) / "s"
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        unless_done = stack.enter_context(ExitStack())
        unless_done.callback(made.close)
        made.bind(os.fspath(newborn))
        newborn.chmod(status.st_mode & 0o777)
        made.listen(BACKLOG)
        newborn.rename(address)
        unless_done.pop_all()
    return made


def _is_socket(fd: int) -> bool:
    return stat.S_ISSOCK(os.fstat(fd).st_mode)


def _listens(found: socket.socket) -> bool:
    """Say whether who connects is accepted, now or later: it was not shut down either."""
    if found.family != socket.AF_UNIX:
        return False
    poller = select.poll()
    poller.register(found, 0)
    hung_up = any(events & select.POLLHUP for _, events in poller.poll(0))
    return not hung_up and bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _join(caller: socket.socket, address: Path) -> None:
    """Let a caller speak with the server at `address` until one of the two ends it."""
    caller.setblocking(True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        server.connect(os.fspath(address))
    except OSError as error:
        log.warning("server.caller_not_passed_on", error=str(error))
        server.close()
        caller.close()
        return
    threading.Thread(target=_carry_both, args=(caller, server), name="queue", daemon=True).start()


def _carry_both(caller: socket.socket, server: socket.socket) -> None:
    with caller, server:
        back = threading.Thread(target=_carry, args=(server, caller), name="queue", daemon=True)
        back.start()
        _carry(caller, server)
        back.join()


def _carry(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):  # whoever is left finds it out by the shutdown
        while data := source.recv(_BYTES):
            sink.sendall(data)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
