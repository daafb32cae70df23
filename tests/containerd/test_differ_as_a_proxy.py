"""containerd 1.7 and later asks our differ through its own diff service, and then its own."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from snapfs_containerd import diff_pb2, diff_pb2_grpc

from tests.support import daemon
from tests.support.containerd import CALL_TIMEOUT_S, IN_NAMESPACE, Containerd, mounted
from tests.support.daemon import RunningDaemon, clear
from tests.support.oci import Image

pytestmark = [
    pytest.mark.root,
    pytest.mark.fuse,
    pytest.mark.containerd,
    pytest.mark.slow,
    pytest.mark.timeout(300),
]


def _version() -> tuple[int, ...]:
    done = subprocess.run(["containerd", "--version"], capture_output=True, check=True, timeout=60)
    found = re.search(rb"\s[v]?(\d+)\.(\d+)\.", done.stdout)
    assert found, done.stdout
    return tuple(map(int, found.groups()))


@pytest.fixture
def house(tmp_path: Path) -> Iterator[tuple[Containerd, RunningDaemon]]:
    """A containerd whose configuration `snapfs plugin install --differ` wrote, and our service."""
    if _version() < (1, 7):
        pytest.skip("this containerd knows no proxies for differs")
    (tmp_path / "d").mkdir()
    engine = Containerd(tmp_path / "e", {})
    engine.configure()
    environ = {"SNAPFS_DIFF_CONTAINERD": str(engine.socket)}
    with ExitStack() as stack:
        stack.callback(clear, engine.base)
        serving = stack.enter_context(daemon.running(tmp_path / "d", environ=environ))
        serving.run(
            *("plugin", "install", "--differ", "--containerd-config", engine.config),
            *("--address", serving.address),
        )
        engine.start()
        yield engine, serving
        engine.remove_everything()
        engine.stop()


def test_containerd_asks_our_differ_and_then_its_own(
    house: tuple[Containerd, RunningDaemon], odd_image: Image, tmp_path: Path
) -> None:
    engine, serving = house
    engine.load(odd_image.write(tmp_path / "odd.tar"), snapshotter="snapfs")
    right = engine.prepare("right", odd_image.chain_id, snapshotter="snapfs")
    left = engine.view("left", odd_image.chain_id, snapshotter="snapfs")

    def digest(socket: Path) -> str:
        request = diff_pb2.DiffRequest(left=left, right=right)
        with grpc.insecure_channel(f"unix:{socket}") as channel:
            stub = diff_pb2_grpc.DiffStub(channel)
            answer = stub.Diff(request, metadata=IN_NAMESPACE, timeout=CALL_TIMEOUT_S)
        return str(answer.diff.digest)

    (tmp_path / "target").mkdir()
    with mounted(right, tmp_path / "target"):
        (tmp_path / "target/added").write_text("by a container")
        with (tmp_path / "target/added").open("a"):
            walked = digest(engine.socket)  # ours does not take what is being written
    made = digest(engine.socket)
    engine.ctr("images", "tag", odd_image.name, "another")
    engine.ctr("images", "remove", "--sync", "another")  # containerd collects: nothing names it yet
    assert made in engine.ctr("content", "list", "--quiet").stdout.decode().split()
    assert digest(serving.address) == made != walked
    for key in ("left", "right"):
        engine.ctr("snapshots", "--snapshotter", "snapfs", "remove", key)
