"""Debian's podman with the volume plugin: volumes with history in containers."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import images, podman
from tests.support.daemon import RunningDaemon, running
from tests.support.podman import Podman

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.timeout(400)]

COMMAND = Path(sys.executable).with_name("snapfs-overlay")
IMAGE = "localhost/snapfs/busybox:1"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    with running(tmp_path_factory.mktemp("plugin")) as daemon:
        yield daemon


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(str(self._path))


def call(service: RunningDaemon, name: str, body: Any = None, *, status: int = 200) -> Any:
    connection = _Connection(service.state / "volumes.sock")
    try:
        raw = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        connection.request("POST", f"/{name}", raw)
        response = connection.getresponse()
        answer = json.loads(response.read())
    finally:
        connection.close()
    assert response.status == status, answer
    assert (answer["Err"] == "") == (status == 200)
    return answer


def test_the_calls_of_the_protocol(service: RunningDaemon) -> None:
    assert call(service, "Plugin.Activate")["Implements"] == ["VolumeDriver"]
    assert call(service, "VolumeDriver.Capabilities")["Capabilities"] == {"Scope": "local"}
    named = {"Name": "one"}
    call(service, "VolumeDriver.Create", {**named, "Opts": {"size": "10MiB"}})
    call(service, "VolumeDriver.Create", named)
    assert call(service, "VolumeDriver.Get", named)["Volume"]["Mountpoint"] == ""
    first = call(service, "VolumeDriver.Mount", {**named, "ID": "a"})["Mountpoint"]
    assert call(service, "VolumeDriver.Mount", {**named, "ID": "b"})["Mountpoint"] == first
    assert call(service, "VolumeDriver.Path", named)["Mountpoint"] == first
    (Path(first) / "file").write_text("data")
    call(service, "VolumeDriver.Unmount", {**named, "ID": "a"})
    assert (Path(first) / "file").read_text() == "data"
    call(service, "VolumeDriver.Unmount", {**named, "ID": "b"})
    assert list(Path(first).iterdir()) == []
    service.run("volume", "snapshot", "one", "-m", "one")
    options = {"from": "one", "ref": "main"}
    call(service, "VolumeDriver.Create", {"Name": "two", "Opts": options})
    names = [it["Name"] for it in call(service, "VolumeDriver.List")["Volumes"]]
    assert names == ["one", "two"]
    call(service, "VolumeDriver.Remove", {"Name": "two"})
    call(service, "VolumeDriver.Remove", named)
    service.json("volume", "list")


def test_a_volume_that_was_mounted_before_a_container_came_stays_mounted(
    service: RunningDaemon, tmp_path: Path
) -> None:
    service.run("volume", "create", "mine", "--path", str(tmp_path / "mine"), "--mount")
    (tmp_path / "mine" / "file").write_text("data")
    named = {"Name": "mine", "ID": "a"}
    call(service, "VolumeDriver.Mount", named)
    call(service, "VolumeDriver.Unmount", named)
    call(service, "VolumeDriver.Unmount", {**named, "ID": "of before the service was started"})
    assert (tmp_path / "mine" / "file").read_text() == "data"
    call(service, "VolumeDriver.Remove", named)
    assert service.json("volume", "list") == []


@pytest.mark.parametrize(
    ("name", "body", "status"),
    [
        ("VolumeDriver.Get", {"Name": "nothing"}, 500),
        ("VolumeDriver.Get", {}, 500),
        ("VolumeDriver.Create", {"Name": "a b"}, 500),
        ("VolumeDriver.Create", {"Name": "x", "Opts": {"colour": "red"}}, 500),
        ("VolumeDriver.Mount", b"{", 500),
        ("VolumeDriver.Mount", b"[]", 500),
        ("VolumeDriver.Nothing", {}, 404),
    ],
)
def test_what_cannot_be_done_is_an_error_in_the_answer(
    service: RunningDaemon, name: str, body: Any, status: int
) -> None:
    call(service, name, body, status=status)
    assert service.json("volume", "list") == []


@pytest.mark.slow
def test_podman_runs_containers_on_volumes_with_history(service: RunningDaemon) -> None:
    with podman.running(COMMAND) as engine:
        plugins = f'\n[engine.volume_plugins]\nsnapfs = "{service.state}/volumes.sock"\n'
        with (engine.base / "containers.conf").open("a") as conf:
            conf.write(plugins)
        build(engine)
        engine.podman("volume", "create", "--driver", "snapfs", "--opt", "size=64MiB", "data")
        assert "data" in engine.podman("volume", "ls", "-q")
        write = "echo first >/data/file"
        run(engine, write)
        service.run("volume", "snapshot", "data", "-m", "first")
        run(engine, "echo second >>/data/file")
        assert run(engine, "cat /data/file") == "first\nsecond\n"
        service.run("volume", "reset", "--hard", "data", "HEAD")
        assert run(engine, "cat /data/file") == "first\n"
        engine.podman("volume", "rm", "data")
        assert service.json("volume", "list") == []


def build(engine: Podman) -> None:
    context = engine.base / "context"
    context.mkdir()
    shutil.copy(images.BUSYBOX, context / "busybox")
    (context / "Containerfile").write_text(
        'FROM scratch\nCOPY busybox /bin/busybox\nRUN ["/bin/busybox", "--install", "-s", "/bin"]\n'
    )
    engine.buildah("build", "--isolation=chroot", "--tag", IMAGE, context)


def run(engine: Podman, script: str) -> str:
    return engine.run("--rm", "-v", "data:/data", IMAGE, "/bin/sh", "-c", script)
