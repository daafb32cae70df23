"""Volumes for Docker and podman: the volume plugin protocol, version 1, on a unix socket.

HTTP POST with JSON bodies, as the engines send it (docs.docker.com, "Docker volume plugins").
Create makes a volume of that name, or takes one that is there; Mount counts who has it by the
engine's id and Unmount takes it from its path when nobody has it any more, unless it was mounted
already when the first came. Options of Create: `size`, `from` (a volume or set), `ref`, `branch`.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any, ClassVar

import structlog

from snapfs.closing import Closing
from snapfs.model import AlreadyExists, FailedPrecondition, InvalidArgument, SnapfsError
from snapfs.snapshots.locks import KeyedLocks
from snapfs.snapshots.quota import parse_size
from snapfs.volumes import Described, Note, Volumes
from snapfs.volumes.refs import HEAD

log = structlog.get_logger(__name__)

MAX_BODY_BYTES = 1 << 20
CONTENT_TYPE = "application/vnd.docker.plugins.v1.1+json"
WHY = Note(author="container engine", reason="volume plugin")
BUSY_S = 60.0
"""How long a mount waits for another of the same volume."""
OPTIONS = ("size", "from", "ref", "branch")


class VolumePlugin:
    """The calls of the protocol over volumes; each takes and returns a JSON object."""

    def __init__(self, volumes: Volumes) -> None:
        self._volumes = volumes
        self._busy = KeyedLocks()
        self._users: defaultdict[str, set[str]] = defaultdict(set)
        """Ids of engines' mounts by volume, whose lock guards them."""
        self._mounted: set[str] = set()
        """Volumes that no one but engines had mounted; each guarded by its lock."""

    def calls(self) -> Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        """Return the calls by path."""
        return {
            "/Plugin.Activate": lambda _body: {"Implements": ["VolumeDriver"]},
            "/VolumeDriver.Create": self._create,
            "/VolumeDriver.Remove": self._remove,
            "/VolumeDriver.Mount": self._mount,
            "/VolumeDriver.Unmount": self._unmount,
            "/VolumeDriver.Path": lambda body: {"Mountpoint": self._get(body).mounted_at},
            "/VolumeDriver.Get": lambda body: {"Volume": _shown(self._get(body))},
            "/VolumeDriver.List": lambda _body: {"Volumes": self._list()},
            "/VolumeDriver.Capabilities": lambda _body: {"Capabilities": {"Scope": "local"}},
        }

    def _create(self, body: dict[str, Any]) -> dict[str, Any]:
        name, options = _name(body), body.get("Opts") or {}
        unknown = sorted(set(options) - set(OPTIONS))
        if unknown:
            raise InvalidArgument(f"option {unknown[0]!r} is not known; use {', '.join(OPTIONS)}")
        size_bytes = parse_size(options["size"]) if options.get("size") else None
        try:
            if options.get("from"):
                self._volumes.clone(
                    options["from"],
                    name,
                    ref=options.get("ref") or HEAD,
                    branch=options.get("branch", ""),
                    size_bytes=size_bytes,
                    why=WHY,
                )
            else:
                self._volumes.create(
                    name, size_bytes=size_bytes, branch=options.get("branch") or "main", why=WHY
                )
        except AlreadyExists:
            self._volumes.describe(name)  # a volume of that name will do; a set alone will not
        return {}

    def _remove(self, body: dict[str, Any]) -> dict[str, Any]:
        self._volumes.remove(_name(body), why=WHY)
        return {}

    def _mount(self, body: dict[str, Any]) -> dict[str, Any]:
        name = _name(body)
        with self._alone(name):
            if not self._users[name]:
                self._look(name)
            path = self._volumes.mount(name)
            self._users[name].add(str(body.get("ID", "")))
        return {"Mountpoint": path}

    def _unmount(self, body: dict[str, Any]) -> dict[str, Any]:
        name = _name(body)
        with self._alone(name):
            self._users[name].discard(str(body.get("ID", "")))
            if not self._users[name]:
                del self._users[name]
                if name in self._mounted:
                    self._take(name)
        return {}

    def _alone(self, name: str) -> AbstractContextManager[None]:
        """Keep other mounts of one volume out of the block; those of others go on."""
        return self._busy.hold(name, f"volume {name!r}", BUSY_S)

    def _look(self, name: str) -> None:
        if self._volumes.describe(name).mounted_at:
            self._mounted.discard(name)
        else:
            self._mounted.add(name)

    def _take(self, name: str) -> None:
        try:
            self._volumes.umount(name)
        except FailedPrecondition as error:  # others than the engine use it
            log.info("plugin.left_mounted", name=name, reason=str(error))

    def _get(self, body: dict[str, Any]) -> Described:
        return self._volumes.describe(_name(body))

    def _list(self) -> list[dict[str, Any]]:
        return [_shown(it) for it in self._volumes.describe_all()]


def _name(body: dict[str, Any]) -> str:
    name = body.get("Name")
    if not isinstance(name, str) or not name:
        raise InvalidArgument("the request names no volume")
    return name


def _shown(found: Described) -> dict[str, Any]:
    return {
        "Name": found.volume.name,
        "Mountpoint": found.mounted_at,
        "Status": {"branch": found.branch, "snapshot": found.volume.base or ""},
    }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    calls: ClassVar[Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {}

    def do_POST(self) -> None:
        call = self.calls.get(self.path)
        if call is None:
            return self._answer(404, {"Err": f"call {self.path} is not of the volume protocol"})
        try:
            body = self._body()
            answer = call(body)
        except (SnapfsError, OSError) as error:
            return self._answer(500, {"Err": str(error)})
        except Exception as error:
            log.exception("plugin.call_failed", call=self.path)
            return self._answer(500, {"Err": f"{error!r}; see the log of snapfs"})
        return self._answer(200, {"Err": "", **answer})

    def _body(self) -> dict[str, Any]:
        length = int(self.headers.get("Content-Length") or 0)
        if length > MAX_BODY_BYTES:
            raise InvalidArgument("the request is too long")
        raw = self.rfile.read(length)
        try:
            body = json.loads(raw) if raw.strip() else {}
        except ValueError as error:
            raise InvalidArgument(f"the request is no json: {error}") from None
        if not isinstance(body, dict):
            raise InvalidArgument("the request is no json object")
        return body

    def _answer(self, status: int, answer: dict[str, Any]) -> None:
        packed = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(packed)))
        self.end_headers()
        self.wfile.write(packed)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("plugin.request", line=format % args)

    def address_string(self) -> str:
        return "unix"


class _Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True


class PluginServer(Closing):
    """Serves the protocol at a unix socket, which is root's, until it is closed."""

    def __init__(self, address: Path, plugin: VolumePlugin) -> None:
        """Raises OSError when the socket cannot be made. A dead one is replaced, a live one not."""
        self.address = address
        address.parent.mkdir(parents=True, exist_ok=True)
        _clear(address)
        handler = type("Handler", (_Handler,), {"calls": plugin.calls()})
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
        self._server.shutdown()
        self._server.server_close()
        self.address.unlink(missing_ok=True)


def _clear(address: Path) -> None:
    """Remove the socket of a server that has died; FailedPrecondition when one answers."""
    if not address.is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(os.fspath(address))
        except ConnectionRefusedError:
            address.unlink(missing_ok=True)
            return
    raise FailedPrecondition(f"socket {address} is answered by another process; stop that first")
