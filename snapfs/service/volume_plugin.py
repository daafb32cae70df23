"""Volumes for Docker and podman: the volume plugin protocol, version 1.

Calls with JSON bodies, as the engines send them (docs.docker.com, "Docker volume plugins");
`volume_socket` serves them.
Create makes a volume of that name, or takes one that is there; Mount counts who has it by the
engine's id and Unmount takes it from its path when nobody has it any more, unless it was mounted
already when the first came. Options of Create: `size`, `from` (a volume or set), `ref`, `branch`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import structlog

from snapfs.model import AlreadyExists, FailedPrecondition, InvalidArgument
from snapfs.snapshots.locks import KeyedLocks
from snapfs.snapshots.quota import parse_size
from snapfs.volumes import Described, Note, Volumes
from snapfs.volumes.refs import HEAD

log = structlog.get_logger(__name__)

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
