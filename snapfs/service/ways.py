"""Connections to other stores: a unix socket, TLS, or ssh's standard input and output.

gRPC runs over each of them alike, so streams, flow control and errors are the same. For ssh, gRPC
connects to a socket in a private directory of ours; the connected end becomes the standard input
and output of `ssh HOST snapfs remote-serve --stdio`, which joins it to the service's socket there.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc

from snapfs.closing import Closing
from snapfs.model import FailedPrecondition, InvalidArgument, SnapfsError
from snapfs.service.grpc_server import MAX_ADDRESS_BYTES, MAX_MESSAGE_BYTES, PING_EVERY_MS
from snapfs.snapshots.faults import refusing
from snapfs.sync.remotes import Ssh, Tls, Unix, Way

SOCKET_NAME = "sync.sock"
"""In a service's state directory, and as a symbolic link in its root."""
CONNECT_TIMEOUT_S = 30
REMOTE_COMMAND = ("snapfs", "remote-serve", "--stdio")
_REASON_BYTES = 400
_SSH_ENDS_S = 5.0
"""For ssh to end when asked, before it is made to."""

OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", PING_EVERY_MS),
    ("grpc.keepalive_timeout_ms", PING_EVERY_MS),
    ("grpc.http2.max_pings_without_data", 0),
    # A connection that failed is looked at once more by the next sync, not for ever by this one.
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, slots=True)
class Identity:
    """Files that say who this host is to others, and whom it believes; PEM."""

    certificate: Path
    key: Path
    authority: Path


class Connected(Closing):
    """A channel, and what carries it."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel

    def reason(self) -> str:
        """Return what the carrier said of a failure, if it said anything."""
        return ""

    def close(self) -> None:
        """End the channel; twice is fine."""
        self.channel.close()


def connect(way: Way, identity: Identity, *, ssh_config: Path | None = None) -> Connected:
    """Return a connection; it is made when it is first used.

    Raises FailedPrecondition when this host lacks what the way needs.
    """
    match way:
        case Unix(path):
            return Connected(_unix(path))
        case Tls(host, port):
            return Connected(_tls(host, port, identity))
        case Ssh():
            return _OverSsh(way, ssh_config)


def _unix(path: str) -> grpc.Channel:
    """Open a socket; of a root, the one that its service keeps there."""
    found = Path(path)
    if found.is_dir():
        found = found / SOCKET_NAME
    if len(os.fsencode(found)) > MAX_ADDRESS_BYTES:
        raise InvalidArgument(f"the path of socket {found} is too long for a socket")
    return grpc.insecure_channel(f"unix:{found}", options=OPTIONS)


def _tls(host: str, port: int, identity: Identity) -> grpc.Channel:
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    key, certificate, authority = read_identity(identity)
    credentials = grpc.ssl_channel_credentials(authority, key, certificate)
    return grpc.secure_channel(where, credentials, options=OPTIONS)


def read_identity(identity: Identity) -> tuple[bytes, bytes, bytes]:
    """Return key, certificate and authority, or raise FailedPrecondition naming what is missing."""
    try:
        return (
            identity.key.read_bytes(),
            identity.certificate.read_bytes(),
            identity.authority.read_bytes(),
        )
    except OSError as error:
        raise FailedPrecondition(
            f"{error.filename}: {(error.strerror or str(error)).lower()}; TLS needs sync.key, "
            "sync.certificate and sync.authority"
        ) from error


class _OverSsh(Connected):
    """A channel to a private socket, and a process of ssh for whoever connects to it."""

    def __init__(self, way: Ssh, config: Path | None) -> None:
        self._command = command(way, config)
        self._directory = tempfile.TemporaryDirectory(prefix="snapfs-ssh-")
        self._processes: list[subprocess.Popen[bytes]] = []
        self._closed = False
        self._lock = threading.Lock()
        path = Path(self._directory.name) / "s"
        self._said = Path(self._directory.name) / "said"
        self._said.touch()
        with refusing("listen for ssh"):
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(str(path))
            self._listener.listen(1)
        threading.Thread(target=self._accept, name="ssh", daemon=True).start()
        super().__init__(grpc.insecure_channel(f"unix:{path}", options=OPTIONS))

    def reason(self) -> str:
        """Return the last line that ssh said."""
        try:
            lines = self._said.read_text("utf-8", "replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1][:_REASON_BYTES] if lines else ""

    def close(self) -> None:
        """End the channel, ssh, and the private socket; twice is fine."""
        super().close()
        with self._lock:
            if self._closed:
                return
            self._closed = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for process in self._processes:
            process.terminate()
            try:
                process.wait(_SSH_ENDS_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._directory.cleanup()

    def _accept(self) -> None:
        """Give each connection a process; gRPC makes one, and another when that failed."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            with connection, self._lock:
                if self._closed:
                    return
                try:
                    self._start(connection)
                except (OSError, SnapfsError) as error:
                    self._said.write_text(str(error))

    def _start(self, connection: socket.socket) -> None:
        with self._said.open("wb") as said:
            ends = connection.fileno()
            process = subprocess.Popen(self._command, stdin=ends, stdout=ends, stderr=said)
        self._processes.append(process)


def command(way: Ssh, config: Path | None) -> Sequence[str]:
    """Return the command line that reaches a service through ssh; it asks nobody anything."""
    words = ["ssh", "-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_TIMEOUT_S}"]
    if config is not None:
        words += ["-F", str(config)]
    if way.port is not None:
        words += ["-p", str(way.port)]
    if way.user:
        words += ["-l", way.user]
    return [*words, "--", way.host, *REMOTE_COMMAND, *([_quoted(way.path)] if way.path else [])]


def _quoted(path: str) -> str:
    """Return a path as the shell at the other end takes it for one word."""
    return "'" + path.replace("'", "'\\''") + "'"
