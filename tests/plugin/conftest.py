"""containerd's snapshots service on a socket, over a real snapshotter whose trees are not shown."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import grpc
import pytest
from snapfs_containerd import server, snapshots_pb2_grpc

from snapfs.service import grpc_server
from snapfs.snapshots import NoTrees, Snapshotter


@pytest.fixture
def snapshotter(tmp_path: Path) -> Iterator[Snapshotter]:
    with Snapshotter(tmp_path / "root", trees=NoTrees(tmp_path / "mnt")) as opened:
        yield opened


@pytest.fixture
def address(tmp_path: Path, snapshotter: Snapshotter) -> Iterator[Path]:
    register = partial(server.register_snapshots, snapshotter=snapshotter)
    built = grpc_server.build(tmp_path / "s.sock", services=[register])
    yield built.address
    built.stop(grace_s=0)


@pytest.fixture
def service(address: Path) -> Iterator[snapshots_pb2_grpc.SnapshotsStub]:
    with grpc.insecure_channel(f"unix:{address}") as channel:
        yield snapshots_pb2_grpc.SnapshotsStub(channel)
