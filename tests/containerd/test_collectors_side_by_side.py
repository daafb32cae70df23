"""containerd and snapfs pull, remove and collect the same layers at once: nothing live is lost.

Both have images of the same layers on one root, in namespaces of their own, and each runs its
collector after every removal.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from snapfs_containerd import snapshots_pb2, snapshots_pb2_grpc
from snapfs_containerd.contents import ContainerdContents
from snapfs_containerd.wire import LEASE_HEADER, NAMESPACE_HEADER

from snapfs.metadata import Context
from snapfs.service.metadata_client import ImageClient, MetadataClient
from tests.containerd.conftest import Plant
from tests.images import kit
from tests.images.kit import Layout, directory, file
from tests.support.containerd import Containerd
from tests.support.daemon import RunningDaemon, eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.fuse,
    pytest.mark.containerd,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]

NAMESPACES = ("red", "green", "blue")
ROUNDS = 8
BASE = [directory("etc"), file("etc/hosts", b"127.0.0.1"), directory("bin")]
TOPS = ("one", "two", "three")


def name_of(top: str) -> str:
    return f"example.org/{top}:1"


@pytest.fixture
def archives(tmp_path: Path) -> dict[str, Path]:
    """Images that share their lower layers."""
    made = {}
    for number, top in enumerate(TOPS):
        layout = Layout(tmp_path / top)
        middle = [file(f"bin/{each}") for each in TOPS[: number + 1]]
        layout.image([BASE, middle, [file(top, top.encode())]], name=name_of(top), compress="gzip")
        made[top] = kit.archive(layout.root, tmp_path / f"{top}.tar")
    return made


class Side(threading.Thread):
    """One of the two: pulls and removes images at random; knows what it should have."""

    def __init__(self, seed: int, pull: Callable[..., None], remove: Callable[..., None]) -> None:
        super().__init__(daemon=True)
        self._random = random.Random(seed)
        self._pull, self._remove = pull, remove
        self.live: set[tuple[str, str]] = set()
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            for _ in range(ROUNDS):
                self._step()
        except Exception as error:  # noqa: BLE001 - shown by the test
            self.error = error

    def _step(self) -> None:
        chosen = self._random.choice(NAMESPACES), self._random.choice(TOPS)
        if chosen in self.live:
            self._remove(*chosen)
            self.live.discard(chosen)
        else:
            self._pull(*chosen)
            self.live.add(chosen)


@pytest.fixture
def emptied(plant: Plant) -> Iterator[RunningDaemon]:
    """The service; what the test has of namespaces there and in containerd is gone afterwards."""
    daemon = plant.daemons["snapfs"]
    yield daemon
    for namespace in NAMESPACES:
        for name in images(plant.engine, namespace):
            within(plant.engine, namespace, "images", "remove", "--sync", name)
        for record in daemon.json("image", "list", "--namespace", namespace):
            daemon.run("image", "remove", "--namespace", namespace, record["name"])
    daemon.run("gc")


def within(engine: Containerd, namespace: str, *words: str | Path) -> str:
    done: bytes = engine.ctr("--namespace", namespace, *words).stdout
    return done.decode()


def images(engine: Containerd, namespace: str) -> list[str]:
    return within(engine, namespace, "images", "list", "--quiet").split()


def test_two_collectors_on_one_root_lose_nothing(
    plant: Plant, emptied: RunningDaemon, archives: dict[str, Path], tmp_path: Path
) -> None:
    engine, daemon = plant.engine, emptied

    def pull_there(namespace: str, top: str) -> None:
        path = archives[top]
        within(engine, namespace, "images", "import", "--snapshotter", "snapfs", path)

    def remove_there(namespace: str, top: str) -> None:
        within(engine, namespace, "images", "remove", "--sync", name_of(top))

    def pull_here(namespace: str, top: str) -> None:
        with ImageClient(daemon.address, namespace, timeout_s=120) as client:
            client.import_path(archives[top])

    def remove_here(namespace: str, top: str) -> None:
        with ImageClient(daemon.address, namespace, timeout_s=120) as client:
            client.remove(name_of(top), wait=True)

    there, here = Side(1, pull_there, remove_there), Side(2, pull_here, remove_here)
    for side in (there, here):
        side.start()
    with MetadataClient(daemon.address, timeout_s=120) as client:
        while there.is_alive() or here.is_alive():
            assert client.collect().failed == []
            there.join(timeout=0.2)
    for side in (there, here):
        assert side.error is None, side.error
        assert side.live
    check_there(engine, there.live, tmp_path)
    check_here(daemon, here.live, tmp_path / "shown")


def check_there(engine: Containerd, live: set[tuple[str, str]], tmp_path: Path) -> None:
    """What containerd has is what it should have, whole, and shows the right files."""
    for namespace in NAMESPACES:
        wanted = {name_of(top) for having, top in live if having == namespace}
        assert set(images(engine, namespace)) == wanted
        listed = within(engine, namespace, "images", "check", "--snapshotter", "snapfs")
        for line in listed.splitlines()[1:]:
            assert "complete" in line, line
            assert line.split()[-1] == "true", line
    for number, (namespace, top) in enumerate(sorted(live)):
        target = tmp_path / f"there{number}"
        target.mkdir()
        words = ("images", "mount", "--snapshotter", "snapfs", name_of(top), target)
        within(engine, namespace, *words)
        try:
            assert (target / top).read_bytes() == top.encode()
            assert (target / "etc/hosts").read_bytes() == b"127.0.0.1"
        finally:
            words = ("images", "unmount", "--rm", "--snapshotter", "snapfs", target)
            within(engine, namespace, *words)


def check_here(daemon: RunningDaemon, live: set[tuple[str, str]], target: Path) -> None:
    """The same of the service's own images."""
    target.mkdir()
    for namespace in NAMESPACES:
        wanted = {name_of(top) for having, top in live if having == namespace}
        there = daemon.json("image", "list", "--namespace", namespace)
        assert {it["name"] for it in there} == wanted
    for namespace, top in sorted(live):
        name = name_of(top)
        assert daemon.json("image", "verify", "--namespace", namespace, name)["problems"] == []
        daemon.run("mount", "--namespace", namespace, name, target)
        try:
            assert (target / top).read_bytes() == top.encode()
            assert (target / "etc/hosts").read_bytes() == b"127.0.0.1"
        finally:
            daemon.run("umount", target)
    assert daemon.json("fsck") == []


def test_containerds_collector_leaves_what_people_made(
    plant: Plant, emptied: RunningDaemon, archives: dict[str, Path], tmp_path: Path
) -> None:
    engine, daemon = plant.engine, emptied
    daemon.run("image", "import", "--namespace", "red", archives["one"])
    target = tmp_path / "target"
    target.mkdir()
    words = ("--writable", "--key", "work", "--namespace", "red")
    daemon.run("mount", name_of("one"), target, *words)
    (target / "mine").write_bytes(b"precious")
    daemon.run("umount", target)
    try:
        within(engine, "blue", "images", "import", "--snapshotter", "snapfs", archives["two"])
        within(engine, "blue", "images", "remove", "--sync", name_of("two"))
        assert (
            within(engine, "blue", "snapshots", "--snapshotter", "snapfs", "list").count("\n") == 1
        )
        daemon.run("mount", "work", target)
        assert (target / "mine").read_bytes() == b"precious"
        daemon.run("umount", target)
    finally:
        daemon.run("snapshot", "remove", "work")


def test_what_containerd_makes_the_command_lists_and_the_other_way_round(
    plant: Plant, emptied: RunningDaemon
) -> None:
    engine, daemon = plant.engine, emptied
    engine.prepare("by-containerd", "", snapshotter="snapfs")
    try:
        (record,) = [
            it for it in daemon.json("snapshot", "list") if it["name"].endswith("/by-containerd")
        ]
        daemon.run("snapshot", "label", record["name"], "containerd.io/snapshot/said=here")
        info = engine.ctr("snapshots", "--snapshotter", "snapfs", "info", "by-containerd")
        assert b'"containerd.io/snapshot/said": "here"' in info.stdout
        assert daemon.json("snapshot", "info", record["name"])["id"] == record["id"]
    finally:
        engine.ctr("snapshots", "--snapshotter", "snapfs", "remove", "by-containerd")
    eventually(
        lambda: all("by-containerd" not in it["name"] for it in daemon.json("snapshot", "list")),
        timeout_s=60,
        what="containerd's collection",
    )


def test_leases_of_either_hold_through_both_collectors(
    plant: Plant, emptied: RunningDaemon, archives: dict[str, Path]
) -> None:
    engine, daemon = plant.engine, emptied
    blobs = {namespace: hold_there(engine, namespace) for namespace in NAMESPACES}
    images_ = {namespace: hold_here(daemon, namespace, archives) for namespace in NAMESPACES}
    with MetadataClient(daemon.address, timeout_s=120) as client:
        for namespace in NAMESPACES:
            ours = threading.Thread(target=client.collect)
            ours.start()
            within(engine, namespace, "images", "import", "--no-unpack", archives["three"])
            within(engine, namespace, "images", "remove", "--sync", name_of("three"))
            ours.join(timeout=120)
            assert client.collect().failed == []
    for namespace in NAMESPACES:
        assert blobs[namespace] in content_there(engine, namespace)
        assert "held" in snapshots_there(engine, namespace)
        assert images_[namespace] <= content_here(daemon, namespace) | snapshots_here(daemon)
    for namespace in NAMESPACES:
        within(engine, namespace, "leases", "delete", "--sync", "holder")
        daemon.run("lease", "remove", "--namespace", namespace, "holder")
    daemon.run("gc")
    for namespace in NAMESPACES:
        assert content_there(engine, namespace) == set()
        assert content_here(daemon, namespace) == set()
        eventually(
            lambda namespace=namespace: "held" not in snapshots_there(engine, namespace),
            timeout_s=60,
            what="containerd's collection",
        )
    gone = set().union(*images_.values())
    assert not gone & snapshots_here(daemon)


def hold_there(engine: Containerd, namespace: str) -> str:
    """Have a lease of containerd's hold a snapshot and content; return the digest."""
    within(engine, namespace, "leases", "create", "--id", "holder", "--expires", "0")
    headers = ((NAMESPACE_HEADER, namespace), (LEASE_HEADER, "holder"))
    with grpc.insecure_channel(f"unix:{engine.socket}") as channel:
        request = snapshots_pb2.PrepareSnapshotRequest(snapshotter="snapfs", key="held")
        stub = snapshots_pb2_grpc.SnapshotsStub(channel)
        stub.Prepare(request, timeout=60, metadata=headers)
    data = f"held in {namespace}".encode()
    context = Context(namespace, "holder")
    with (
        ContainerdContents(
            engine.socket, context, timeout_s=60, directory=Path("/tmp")
        ) as contents,
        contents.writer("held") as writer,
    ):
        writer.write(data)
        writer.commit(len(data), kit.digest(data), {})
    return kit.digest(data)


def hold_here(daemon: RunningDaemon, namespace: str, archives: dict[str, Path]) -> set[str]:
    """Have a lease of ours hold what an image had; return its digest and its snapshot."""
    words = ("--namespace", namespace)
    daemon.run("image", "import", *words, archives["two"])
    (record,) = daemon.json("image", "list", *words)
    held = {record["digest"], record["snapshot"]}
    daemon.run("lease", "create", *words, "holder")
    daemon.run(
        "lease", "add", *words, "holder",
        f"content:{record['digest']}", f"snapshots/snapfs:{record['snapshot']}",
    )  # fmt: skip
    daemon.run("image", "remove", *words, record["name"])
    return held


def content_there(engine: Containerd, namespace: str) -> set[str]:
    return set(within(engine, namespace, "content", "list", "--quiet").split())


def content_here(daemon: RunningDaemon, namespace: str) -> set[str]:
    return {it["digest"] for it in daemon.json("content", "list", "--namespace", namespace)}


def snapshots_there(engine: Containerd, namespace: str) -> set[str]:
    listed = within(engine, namespace, "snapshots", "--snapshotter", "snapfs", "list")
    return {line.split()[0] for line in listed.splitlines()[1:]}


def snapshots_here(daemon: RunningDaemon) -> set[str]:
    return {it["name"] for it in daemon.json("snapshot", "list")}
