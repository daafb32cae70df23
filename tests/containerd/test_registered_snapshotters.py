"""A service keeps snapshots of containerd's own overlayfs and of a second snapfs, over sockets."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from snapfs_containerd import mount_pb2, snapshots_pb2_grpc
from snapfs_containerd import snapshots_pb2 as pb

from tests.containerd.conftest import Plant
from tests.support import daemon
from tests.support.containerd import CALL_TIMEOUT_S, mounted
from tests.support.daemon import RunningDaemon

pytestmark = [
    pytest.mark.root,
    pytest.mark.fuse,
    pytest.mark.containerd,
    pytest.mark.slow,
    pytest.mark.timeout(300),
]

NAMESPACE = "green"
THERE = "kept-by-snapfs"
"""The namespace of containerd in which the service's snapshots are."""


@pytest.fixture(scope="module")
def house(plant: Plant, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    base = tmp_path_factory.mktemp("r")
    config = base / "config.toml"
    config.write_text(
        f"[snapshotters.overlayfs]\nsocket = '{plant.engine.socket}'\nnamespace = '{THERE}'\n"
        f"[snapshotters.second]\nsocket = '{plant.daemons['snapfs'].address}'\n"
        "snapshotter = 'snapfs'\n"
        f"[snapshotters.gone]\nsocket = '{base}/gone.sock'\n"
    )
    with daemon.running(base, environ={"SNAPFS_CONFIG": str(config)}) as running:
        yield running


def ctr(house: RunningDaemon, snapshotter: str, *words: str) -> str:
    """Run `ctr snapshots` against our service, in place of containerd's."""
    done = subprocess.run(
        [
            *("ctr", "--address", str(house.address), "--namespace", NAMESPACE),
            *("snapshots", "--snapshotter", snapshotter, *words),
        ],
        capture_output=True,
        check=False,
        timeout=CALL_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def there(plant: Plant, snapshotter: str) -> list[str]:
    """Return the kinds of the snapshots that the service has in another's snapshotter."""
    if snapshotter == "overlayfs":
        listed = plant.engine.ctr("--namespace", THERE, "snapshots", "list").stdout.decode()
        return sorted(line.split()[-1] for line in listed.splitlines()[1:])
    found = plant.daemons["snapfs"].json("snapshot", "list")
    return sorted(it["kind"].title() for it in found if it["name"].startswith(f"{NAMESPACE}/"))


@pytest.mark.parametrize("snapshotter", ["overlayfs", "second"])
def test_a_chain_in_another_service_is_used_kept_and_collected_by_ours(
    plant: Plant, house: RunningDaemon, tmp_path: Path, snapshotter: str
) -> None:
    house.run("lease", "create", "--namespace", NAMESPACE, "l")
    with grpc.insecure_channel(f"unix:{house.address}") as channel:
        stub = snapshots_pb2_grpc.SnapshotsStub(channel)
        headers = (("containerd-namespace", NAMESPACE), ("containerd-lease", "l"))

        def prepare(key: str, parent: str = "") -> list[mount_pb2.Mount]:
            request = pb.PrepareSnapshotRequest(snapshotter=snapshotter, key=key, parent=parent)
            return list(stub.Prepare(request, metadata=headers, timeout=CALL_TIMEOUT_S).mounts)

        with mounted(prepare("k"), tmp_path):
            (tmp_path / "greeting").write_text("hello")
        commit = pb.CommitSnapshotRequest(snapshotter=snapshotter, key="k", name="base")
        stub.Commit(commit, metadata=headers, timeout=CALL_TIMEOUT_S)
        with mounted(prepare("next", "base"), tmp_path):
            assert (tmp_path / "greeting").read_text() == "hello"
            (tmp_path / "greeting").unlink()
    listed = ctr(house, snapshotter, "list")
    assert [line.split() for line in listed.splitlines()[1:]] == [
        ["base", "Committed"],
        ["next", "base", "Active"],
    ]
    # neither collector takes what ours keeps
    plant.engine.ctr("--namespace", THERE, "images", "remove", "--sync", "none", check=False)
    house.run("gc")
    assert there(plant, snapshotter) == ["Active", "Committed"]
    why = house.run(
        *("gc", "explain", "--namespace", NAMESPACE, f"snapshots/{snapshotter}:base")
    ).stdout
    assert "lease" in why
    house.run("lease", "remove", "--namespace", NAMESPACE, "l")
    house.run("gc")
    assert there(plant, snapshotter) == []
    assert ctr(house, snapshotter, "list").splitlines()[1:] == []


def test_a_service_that_is_gone_is_named_and_costs_the_others_nothing(
    plant: Plant, house: RunningDaemon
) -> None:
    with grpc.insecure_channel(f"unix:{house.address}") as channel:
        stub = snapshots_pb2_grpc.SnapshotsStub(channel)
        headers = (("containerd-namespace", NAMESPACE),)
        request = pb.PrepareSnapshotRequest(snapshotter="gone", key="k")
        with pytest.raises(grpc.RpcError) as caught:
            stub.Prepare(request, metadata=headers, timeout=CALL_TIMEOUT_S)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert f"'gone' does not answer on socket {house.base}/gone.sock" in caught.value.details()
    ctr(house, "overlayfs", "prepare", "doomed")
    ctr(house, "overlayfs", "remove", "doomed")
    done = house.run("gc", check=False)
    assert (done.exit_code, done.stderr) == (1, "not removed, tried again next time: gone/k\n")
    assert there(plant, "overlayfs") == []
