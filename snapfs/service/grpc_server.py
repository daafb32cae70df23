"""The gRPC server on a unix socket: who may connect, how many calls at once, health, reflection.

Owns the socket file. gRPC cannot ask for a peer's credentials, so the file's mode is the guard,
from its first moment on: 0600, or 0660 and a group's for who may only look (reading.py).
Invariant: a live server's socket and a file that is no socket are never replaced.
"""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from snapfs.model import FailedPrecondition, InvalidArgument, Unavailable
from snapfs.service import answered, queued
from snapfs.service.malformed import RefuseMalformed
from snapfs.service.reading import OnlyReads

_log = structlog.get_logger(__name__)

MAX_WORKERS = 128
"""Calls answered at once; further ones wait for a thread."""

MAX_MESSAGE_BYTES = 16 << 20
"""Longest request and answer; containerd's own limit."""

PING_EVERY_MS = 20_000
"""How soon a client whose host is gone is known to be."""
PINGS_AT_MOST_EVERY_MS = 10_000
"""Whoever pings more often is sent away."""

MAX_STREAMS = 4096
"""Calls that one connection may have open or waiting."""

MAX_ADDRESS_BYTES = 107
"""Longest path of a unix socket (sockaddr_un, less its final zero)."""


Register = Callable[[grpc.Server], str]
"""Adds a service to the server and returns the service's full name."""


class GrpcServer:
    """A started server. `serving` is what health says; `stop` ends it and removes the socket."""

    def __init__(
        self,
        server: grpc.Server,
        monitor: health.HealthServicer,
        names: list[str],
        address: Path,
        bound: Path,
    ) -> None:
        """`bound` is where its listener was bound, before that was moved to `address`."""
        self._server = server
        self._bound = bound
        self._health = monitor
        self._names = ["", *names]
        self.address = address
        self._socket_identity = _identity(address)

    def set_serving(self, *, serving: bool) -> None:
        """Tell health checks whether every service answers; not yet, right after a start."""
        state = health_pb2.HealthCheckResponse
        for name in self._names:
            self._health.set(name, state.SERVING if serving else state.NOT_SERVING)

    def listener(self) -> socket.socket | None:
        """Return a dup of what listens; who holds one lets callers wait without this process."""
        return queued.own_listener(self._bound)

    def leave_queue(self) -> socket.socket | None:
        """Have who calls from now on wait, for another process, and return where; None when
        somebody else is at the address, or it cannot be done: then they are refused."""
        if _identity(self.address) != self._socket_identity:
            return None
        try:
            return queued.listen_in_place_of(self.address)
        except OSError as error:
            _log.warning("server.no_queue", address=str(self.address), error=str(error))
            return None

    def stop(self, *, grace_s: float) -> None:
        """Refuse new calls, give those under way `grace_s` seconds, end; twice is fine."""
        self._health.enter_graceful_shutdown()
        # gRPC promises to be done after the grace; the margin is for its own threads.
        if not self._server.stop(grace_s).wait(grace_s + 5):
            _log.error("server.stop_late", address=str(self.address), grace_s=grace_s)
        if _identity(self.address) == self._socket_identity:
            self.address.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Secure:
    """Where a server also answers by TLS, to who has a certificate that the authority signed."""

    listen: str
    """HOST:PORT."""
    key: bytes
    certificate: bytes
    authority: bytes


def build(
    address: Path,
    *,
    services: Sequence[Register],
    max_workers: int = MAX_WORKERS,
    readers_gid: int | None = None,
    secure: Secure | None = None,
    queue: queued.Queue | None = None,
) -> GrpcServer:
    """Return a started server that answers on the unix socket `address`, health NOT_SERVING.

    It is root's; with `readers_gid` it is also the group's, and answers reads only. `queue` is of
    who waits there already; they are passed on.
    Raises FailedPrecondition when something else is there, InvalidArgument for a path too long,
    Unavailable when it cannot listen.
    """
    _check_address(address, queue)
    server = grpc.server(
        ThreadPoolExecutor(max_workers, thread_name_prefix="call"),
        interceptors=[*([] if readers_gid is None else [OnlyReads()]), RefuseMalformed()],
        options=(
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            # containerd makes all its calls over one connection.
            ("grpc.max_concurrent_streams", MAX_STREAMS),
            # Other hosts ping to find out whether anybody is still there (ways.py).
            ("grpc.http2.min_recv_ping_interval_without_data_ms", PINGS_AT_MOST_EVERY_MS),
            ("grpc.keepalive_time_ms", PING_EVERY_MS),
            ("grpc.keepalive_timeout_ms", PING_EVERY_MS),
        ),
    )
    names = [register(server) for register in services]
    # Not the non-blocking kind, which saves a thread for each Watch: its lock and the server's
    # are taken in either order, and a client that leaves during a `set` hangs both for ever.
    monitor = health.HealthServicer(experimental_non_blocking=False)
    health_pb2_grpc.add_HealthServicer_to_server(monitor, server)
    reflection.enable_server_reflection(
        [*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server
    )
    if secure is not None:
        _listen(server, secure)
    bound = _bind(server, address, readers_gid)
    built = GrpcServer(server, monitor, names, address, bound)
    built.set_serving(serving=False)
    if queue is not None:
        queue.pass_on(address)
    return built


def _bind(server: grpc.Server, address: Path, gid: int | None) -> Path:
    """Listen on `address`: bound in a private directory, then moved, so never open to others.

    The move also replaces a dead server's socket in one step. Returns where it was bound.
    """
    with tempfile.TemporaryDirectory(prefix=".", dir=address.parent) as private:
        newborn = Path(private) / "s"
        try:
            server.add_insecure_port(f"unix:{newborn}")
        except RuntimeError as error:
            raise Unavailable(f"cannot listen on socket {address}: {error}") from error
        server.start()
        newborn.chmod(0o600)
        if gid is not None:
            os.chown(newborn, -1, gid)
            newborn.chmod(0o660)
        newborn.rename(address)
    return newborn


def _listen(server: grpc.Server, secure: Secure) -> None:
    credentials = grpc.ssl_server_credentials(
        [(secure.key, secure.certificate)], secure.authority, require_client_auth=True
    )
    try:
        server.add_secure_port(secure.listen, credentials)
    except RuntimeError as error:
        raise Unavailable(f"cannot listen on {secure.listen}: {error}") from error


def _check_address(address: Path, queue: queued.Queue | None) -> None:
    # The socket is bound one directory deeper, under a short name.
    longest = max(len(os.fsencode(address)), len(os.fsencode(address.parent)) + len("/.12345678/s"))
    if not address.is_absolute() or longest > MAX_ADDRESS_BYTES:
        raise InvalidArgument(
            f"socket address {address}: give an absolute path of at most {MAX_ADDRESS_BYTES} bytes"
        )
    address.parent.mkdir(parents=True, exist_ok=True)
    try:
        mode = address.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FailedPrecondition(
            f"socket address {address}: something that is no socket is there; "
            "move it away or choose another address"
        )
    if queue is not None and queue.is_at(address):
        return
    if holder := answered.holder(address):
        raise FailedPrecondition(
            f"socket address {address}: {holder} answers there; "
            "stop it first or choose another address"
        )
    _log.info("server.stale_socket_replaced", address=str(address))


def _identity(address: Path) -> tuple[int, int] | None:
    try:
        status = address.lstat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
