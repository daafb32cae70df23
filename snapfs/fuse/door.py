"""Where a worker can be found by a later control process: a socket beside the lane.

The worker that was started last listens; who connects is checked to be root and must open with
`Hello`. There is one control process at a time: one that comes while another is connected is
refused, after a wait in which the kernel's news of a death may arrive.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import structlog
import trio

from snapfs import __version__, processes
from snapfs.fuse import control, unixsocket
from snapfs.fuse.handover import Connection

HELLO_TIMEOUT_S = 2.0
SEAT_TIMEOUT_S = 4.0
"""For the connection of a control process that was killed to be found closed."""
BACKLOG = 16

log = structlog.get_logger(__name__)

Converse = Callable[[trio.socket.SocketType, control.Hello], Awaitable[None]]


class Door:
    """A listening socket at a path, gone from there with `close`."""

    def __init__(self, path: Path) -> None:
        """Take the path, also from a predecessor; raises OSError."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._name = path.name
        self._directory = unixsocket.open_directory(path.parent)
        try:
            path.unlink(missing_ok=True)
            self._listener = unixsocket.listen(self._directory, path.name, BACKLOG)
        except OSError:
            os.close(self._directory)
            raise
        self._inode = self._present_inode()

    async def attend(self, converse: Converse) -> None:
        """Let control processes in, for ever; `converse` waits for its turn by itself."""
        listener = trio.socket.from_stdlib_socket(self._listener)
        async with trio.open_nursery() as nursery:
            while True:
                channel, _ = await listener.accept()
                nursery.start_soon(_receive, channel, converse)

    def close(self) -> None:
        """Stop listening; a successor's door at the same path is left alone."""
        self._listener.close()
        if self._present_inode() == self._inode:
            os.unlink(self._name, dir_fd=self._directory)
        os.close(self._directory)

    def _present_inode(self) -> int | None:
        try:
            return os.stat(self._name, dir_fd=self._directory, follow_symlinks=False).st_ino
        except FileNotFoundError:
            return None


async def _receive(channel: trio.socket.SocketType, converse: Converse) -> None:
    """Hear who comes; whatever that says or does, it costs nobody else anything."""
    with channel:
        try:
            pid, uid = processes.peer(channel)
            if uid != os.geteuid():
                log.warning("worker.visitor_refused", pid=pid, uid=uid)
                return
            with trio.fail_after(HELLO_TIMEOUT_S):
                hello = control.decode(await channel.recv(control.MAX_PACKET_BYTES))
            if isinstance(hello, control.Hello):
                await converse(channel, hello)
        except (OSError, trio.TooSlowError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.warning("worker.visitor_lost", error=repr(error))


async def refuse(channel: trio.socket.SocketType, reason: str) -> None:
    """Tell a control process why it is not let in."""
    log.warning("worker.control_refused", reason=reason)
    await channel.send(control.encode(control.Refused(control.PROTOCOL, __version__, reason)))


async def welcome(
    channel: trio.socket.SocketType, words: control.Welcome, connection: Connection
) -> None:
    """Let a control process in, with the lane's descriptors."""
    fds = array.array("i", connection.fds)
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)
    await channel.sendmsg([control.encode(words)], [rights])
