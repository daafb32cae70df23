"""The unix socket of the volume plugin: HTTP, with limits for who says too much, or nothing.

A connection has a thread. `MAX_CONNECTIONS` are open at once; one more ends the connection that has
asked for nothing for the longest, so that who says half of a request keeps nobody out. Where all
are in calls, further ones wait in the kernel's queue.
"""

from __future__ import annotations

import io
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any, ClassVar

import structlog

from snapfs.closing import Closing
from snapfs.model import FailedPrecondition, InvalidArgument, SnapfsError
from snapfs.service import answered

log = structlog.get_logger(__name__)

MAX_BODY_BYTES = 1 << 20
MAX_HEAD_BYTES = 64 << 10
MAX_CONNECTIONS = 128
BACKLOG = 1024
"""Engines do not wait for a place in the kernel's queue: they are refused (Go's connect)."""
REQUEST_S = 10.0
"""For a whole request, from its first byte on, and for taking the answer."""
IDLE_S = 120.0
"""For the first byte of a request; Go's http.DefaultTransport keeps idle connections for 90."""
GRACE_S = 1.0
"""Who has just come, or was just answered, is not ended for another."""
CONTENT_TYPE = "application/vnd.docker.plugins.v1.1+json"

Call = Callable[[dict[str, Any]], dict[str, Any]]


class PluginServer(Closing):
    """Serves calls by path at a unix socket, which is root's, until it is closed."""

    def __init__(self, address: Path, calls: Mapping[str, Call]) -> None:
        """Raises OSError when the socket cannot be made. A dead one is replaced, a live one not."""
        self.address = address
        address.parent.mkdir(parents=True, exist_ok=True)
        _clear(address)
        handler = type("Handler", (_Handler,), {"calls": calls})
        mask = os.umask(0o177)
        try:
            self._server = _Server(os.fspath(address), handler)
        finally:
            os.umask(mask)
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="snapfs-plugin", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop answering and remove the socket."""
        self._server.connections.close()
        self._server.shutdown()
        self._server.server_close()
        self.address.unlink(missing_ok=True)


class Connections:
    """Who is connected, and who of them has asked for something. Safe between threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._changed = threading.Condition()
        self._open: set[socket.socket] = set()
        self._waiting: dict[socket.socket, float] = {}
        """Those that we wait for, and since when; the longest first."""
        self._ended: set[socket.socket] = set()
        """Those that were told to leave and are still here."""
        self._closed = False

    def add(self, connection: socket.socket) -> bool:
        """Let one in once there is room; False when all are to go."""
        with self._changed:
            while len(self._open) >= self._most and not self._closed:
                self._changed.wait(self._end_longest())
            if not self._closed:
                self._open.add(connection)
                self._waiting[connection] = time.monotonic()
            return not self._closed

    def remove(self, connection: socket.socket) -> None:
        with self._changed:
            self._open.discard(connection)
            self._ended.discard(connection)
            self._waiting.pop(connection, None)
            self._changed.notify_all()

    def starts(self, connection: socket.socket) -> bool:
        """Note that a request is whole; False when the connection has been ended meanwhile."""
        with self._changed:
            return self._waiting.pop(connection, None) is not None

    def waits(self, connection: socket.socket) -> None:
        """Note that the next request is waited for."""
        with self._changed:
            self._waiting[connection] = time.monotonic()
            if self._closed:
                self._end(connection)
            self._changed.notify_all()

    def close(self) -> None:
        """End those that ask for nothing; the others end with their call."""
        with self._changed:
            self._closed = True
            for connection in list(self._waiting):
                self._end(connection)
            self._changed.notify_all()

    def _end_longest(self) -> float | None:
        """End who asks for nothing; seconds until there is somebody to end, None for none.

        Nobody is ended while one that was has still to leave its place.
        """
        if not self._waiting or len(self._open) - len(self._ended) < self._most:
            return None
        connection, since_s = next(iter(self._waiting.items()))
        left_s = since_s + GRACE_S - time.monotonic()
        if left_s > 0:
            return left_s
        self._end(connection)
        return None

    def _end(self, connection: socket.socket) -> None:
        del self._waiting[connection]
        self._ended.add(connection)
        try:
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:  # the other side has gone
            return


class _Patient(io.RawIOBase):
    """Reads from a connection what comes in time, and no more than one request may have."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.begin()

    def begin(self) -> None:
        """Wait for the next request."""
        self._end_s = time.monotonic() + IDLE_S
        self._read_bytes = 0
        self._most_bytes = MAX_HEAD_BYTES

    def expect(self, body_bytes: int) -> None:
        """Let a body come too, now that its head is here."""
        self._most_bytes = self._read_bytes + body_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left_s = self._end_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the request did not end in time")
        allowed_bytes = self._most_bytes - self._read_bytes
        if allowed_bytes <= 0:
            raise ValueError("the request is too long")
        self._connection.settimeout(left_s)
        got = self._connection.recv_into(buffer, min(len(buffer), allowed_bytes))
        if not self._read_bytes:
            self._end_s = time.monotonic() + REQUEST_S
        self._read_bytes += got
        return got


class _Cut(Exception):
    """The other side left in the middle of a request, or was told to leave."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    calls: ClassVar[Mapping[str, Call]] = {}

    def setup(self) -> None:
        super().setup()
        self._patient = _Patient(self.connection)
        self.rfile = io.BufferedReader(self._patient)

    def handle_one_request(self) -> None:
        self._patient.begin()
        super().handle_one_request()

    def do_POST(self) -> None:
        call = self.calls.get(self.path)
        try:
            raw = self._raw()
        except InvalidArgument as error:
            self.close_connection = True  # where its body ends is not known
            return self._answer(500, {"Err": str(error)})
        if not self.server.connections.starts(self.connection):
            raise _Cut("the connection was ended for another")
        try:
            if call is None:
                text = f"call {self.path} is not of the volume protocol"
                return self._answer(404, {"Err": text})
            return self._answer(*self._called(call, raw))
        finally:
            self.server.connections.waits(self.connection)

    def _called(self, call: Call, raw: bytes) -> tuple[int, dict[str, Any]]:
        try:
            return 200, {"Err": "", **call(_decoded(raw))}
        except (SnapfsError, OSError) as error:
            return 500, {"Err": str(error)}
        except Exception as error:
            log.exception("plugin.call_failed", call=self.path)
            return 500, {"Err": f"{error!r}; see the log of snapfs"}

    def _raw(self) -> bytes:
        said = self.headers.get("Content-Length", "0").strip()
        if "Transfer-Encoding" in self.headers or not (said.isascii() and said.isdecimal()):
            raise InvalidArgument("the request says no length; send Content-Length")
        if len(said) > 20 or int(said) > MAX_BODY_BYTES:
            raise InvalidArgument("the request is too long")
        self._patient.expect(int(said))
        raw = self.rfile.read(int(said))
        if len(raw) < int(said):
            raise _Cut("the request has no end")
        return raw

    def _answer(self, status: int, answer: dict[str, Any]) -> None:
        packed = json.dumps(answer).encode()
        self.connection.settimeout(REQUEST_S)
        self.send_response(status)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(packed)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(packed)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("plugin.request", line=format % args)

    def log_error(self, format: str, *args: Any) -> None:
        log.info("plugin.request_refused", reason=(format % args)[:200])

    def address_string(self) -> str:
        return "unix"


def _decoded(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw) if raw.strip() else {}
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"the request is no json: {error}") from None
    if not isinstance(body, dict):
        raise InvalidArgument("the request is no json object")
    return body


class _Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True
    request_queue_size = BACKLOG

    def __init__(self, address: str, handler: type[_Handler]) -> None:
        self.connections = Connections(MAX_CONNECTIONS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self.connections.add(request):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        self.connections.remove(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        tell = log.debug if isinstance(error, ConnectionError) else log.info
        tell("plugin.connection_lost", reason=repr(error)[:200])


def _clear(address: Path) -> None:
    """Remove the socket of a server that has died; FailedPrecondition when one answers."""
    if not address.is_socket():
        return
    if answered.holder(address):
        text = f"socket {address} is answered by another process; stop that first"
        raise FailedPrecondition(text)
    address.unlink(missing_ok=True)
