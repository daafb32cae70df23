"""The diff service beside containerd's own differ, which walks both trees: the same layers.

containerd 1.6 has no proxy for differs, so a client calls the service as containerd would; blobs go
to containerd's content store and come from it.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from snapfs_containerd import descriptor_pb2, diff_pb2, diff_pb2_grpc, mount_pb2

from tests.containerd.conftest import Load, Plant
from tests.support import trees
from tests.support.containerd import CALL_TIMEOUT_S, IN_NAMESPACE, Containerd, mounted
from tests.support.oci import Image

pytestmark = [
    pytest.mark.root,
    pytest.mark.fuse,
    pytest.mark.containerd,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]

Mounts = Sequence[mount_pb2.Mount]
GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
TAR = "application/vnd.oci.image.layer.v1.tar"
PARTS = "application/vnd.oci.image.layer.v1.tar+parts"


@contextmanager
def differ(socket: Path) -> Iterator[diff_pb2_grpc.DiffStub]:
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        yield diff_pb2_grpc.DiffStub(channel)


@pytest.fixture
def ours(plant: Plant) -> Iterator[diff_pb2_grpc.DiffStub]:
    with differ(plant.daemons["snapfs"].address) as stub:
        yield stub


@pytest.fixture
def theirs(engine: Containerd) -> Iterator[diff_pb2_grpc.DiffStub]:
    with differ(engine.socket) as stub:
        yield stub


@pytest.fixture
def key(engine: Containerd, request: pytest.FixtureRequest) -> Iterator[str]:
    """A name for snapshots; all that begin with it are gone after the test."""
    name = f"diff-{request.node.name}"
    yield name
    for snapshotter in ("snapfs", "overlayfs"):
        for each in engine.snapshots(snapshotter):
            if each.startswith(name):
                engine.ctr("snapshots", "--snapshotter", snapshotter, "remove", each)


def change(target: Path) -> None:
    """Change a tree in every way that a layer can say."""
    (target / "added").mkdir(0o750)
    (target / "added/file").write_bytes(b"new" * 1000)
    os.link(target / "added/file", target / "added/link")
    (target / "added/symlink").symlink_to("../etc")
    os.mkfifo(target / "added/fifo")
    os.chown(target / "added/file", 12, 34)
    os.setxattr(target / "added/file", "user.said", b"here")
    (target / "etc").mkdir(exist_ok=True)
    (target / "etc/changed").write_text("by a container\n")
    os.utime(target / "etc/changed", ns=(0, 1_700_000_000_123_456_789))
    (target / "odd/dangling").unlink()


def diff(stub: diff_pb2_grpc.DiffStub, left: Mounts, right: Mounts, **more: Any) -> Any:
    request = diff_pb2.DiffRequest(left=left, right=right, **more)
    return stub.Diff(request, metadata=IN_NAMESPACE, timeout=CALL_TIMEOUT_S).diff


def blob(engine: Containerd, digest: str) -> bytes:
    data: bytes = engine.ctr("content", "get", digest).stdout
    assert digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    return data


def entries(data: bytes) -> dict[str, tuple[object, ...]]:
    """Return what an archive says of all but directories and the modes of whiteouts.

    Of directories on the way to a change either differ writes some that the other leaves out.
    """
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {
            it.name.strip("/"): (
                it.type,
                0 if ".wh." in it.name else it.mode,
                it.uid,
                it.gid,
                it.linkname.strip("/"),
                it.size,
            )
            for it in archive
            if not it.isdir()
        }


def result(
    engine: Containerd,
    stub: diff_pb2_grpc.DiffStub,
    layer: descriptor_pb2.Descriptor,
    parent: str,
    key: str,
    target: Path,
    *,
    snapshotter: str,
) -> dict[str, Any]:
    """Return the tree that a layer makes of its parent, put there by a differ."""
    mounts = engine.prepare(key, parent, snapshotter=snapshotter)
    request = diff_pb2.ApplyRequest(diff=layer, mounts=mounts)
    stub.Apply(request, metadata=IN_NAMESPACE, timeout=CALL_TIMEOUT_S)
    target.mkdir()
    with mounted(mounts, target):
        return trees.describe(target)


@pytest.mark.parametrize("way", ["active", "committed"])
def test_a_layer_is_what_containerds_own_differ_makes_and_gives_the_same_tree(
    engine: Containerd,
    ours: diff_pb2_grpc.DiffStub,
    theirs: diff_pb2_grpc.DiffStub,
    odd_image: Image,
    load: Load,
    tmp_path: Path,
    key: str,
    way: str,
) -> None:
    for snapshotter in ("snapfs", "overlayfs"):
        load(odd_image, snapshotter)
    parent = odd_image.chain_id
    right = engine.prepare(f"{key}-right", parent, snapshotter="snapfs")
    with mounted(right, tmp_path):
        change(tmp_path)
        wanted = trees.describe(tmp_path)
    if way == "committed":
        engine.ctr("snapshots", "--snapshotter", "snapfs", "commit", f"{key}-done", f"{key}-right")
        right = engine.view(f"{key}-a-look", f"{key}-done", snapshotter="snapfs")
    left = engine.view(f"{key}-left", parent, snapshotter="snapfs")
    mine, other = (diff(stub, left, right, media_type=GZIP) for stub in (ours, theirs))
    assert mine.media_type == GZIP
    assert entries(blob(engine, mine.digest)) == entries(blob(engine, other.digest))
    assert mine.size == len(blob(engine, mine.digest))
    plain = diff(ours, left, right, media_type=TAR)
    labels = engine.ctr("content", "label", mine.digest).stdout.decode()
    assert f"containerd.io/uncompressed={plain.digest}" in labels
    for number, (stub, snapshotter) in enumerate(((theirs, "overlayfs"), (ours, "snapfs"))):
        by = f"{key}-by-{number}"
        tree = result(engine, stub, mine, parent, by, tmp_path / by, snapshotter=snapshotter)
        tree["odd/before-1970"] = wanted["odd/before-1970"]  # containerd sets such times to 0
        assert trees.differences(wanted, tree) == []


def test_the_same_layer_twice_has_one_digest_and_is_there_once(
    engine: Containerd,
    ours: diff_pb2_grpc.DiffStub,
    odd_image: Image,
    load: Load,
    tmp_path: Path,
    key: str,
) -> None:
    load(odd_image, "snapfs")
    right = engine.prepare(f"{key}-right", odd_image.chain_id, snapshotter="snapfs")
    left = engine.view(f"{key}-left", odd_image.chain_id, snapshotter="snapfs")
    with mounted(right, tmp_path):
        change(tmp_path)
    digests = {diff(ours, left, right).digest for _ in range(2)}
    assert len(digests) == 1
    assert engine.ctr("content", "list", "--quiet").stdout.decode().count(digests.pop()) == 1
    assert engine.ctr("content", "active").stdout.decode().count("diff-") == 0


def test_what_the_differ_cannot_do_it_leaves_to_the_next_one(
    engine: Containerd,
    ours: diff_pb2_grpc.DiffStub,
    odd_image: Image,
    load: Callable[[Image, str], None],
    tmp_path: Path,
    key: str,
) -> None:
    load(odd_image, "snapfs")
    right = engine.prepare(f"{key}-right", odd_image.chain_id, snapshotter="snapfs")
    left = engine.view(f"{key}-left", odd_image.chain_id, snapshotter="snapfs")
    empty = engine.view(f"{key}-empty", "", snapshotter="snapfs")
    elsewhere = [mount_pb2.Mount(type="bind", source="/tmp/1", options=["rbind"])]

    def refused(below: Mounts, above: Mounts, **more: Any) -> str:
        with pytest.raises(grpc.RpcError) as caught:
            diff(ours, below, above, **more)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        details: str = caught.value.details()
        return details

    assert "not of a snapshot" in refused(left, elsewhere)
    assert "not one layer above" in refused(empty, right)
    assert "not one layer above" in refused(right, left)
    assert PARTS in refused(left, right, media_type=PARTS)
    with mounted(right, tmp_path), (tmp_path / "open").open("w") as file:
        file.write("being written")
        assert "open" in refused(left, right)
    assert engine.ctr("content", "active").stdout.decode().count("diff-") == 0


def test_damaged_content_is_not_applied(
    engine: Containerd,
    ours: diff_pb2_grpc.DiffStub,
    odd_image: Image,
    load: Load,
    tmp_path: Path,
    key: str,
) -> None:
    load(odd_image, "snapfs")
    mounts = engine.prepare(f"{key}-target", odd_image.chain_id, snapshotter="snapfs")
    data = b"no archive at all" * 100
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    subprocess.run(
        [
            *("ctr", "--address", engine.socket, "--namespace", IN_NAMESPACE[0][1]),
            *("content", "ingest", "--expected-digest", digest, "odd-blob"),
        ],
        input=data,
        check=True,
        timeout=CALL_TIMEOUT_S,
    )
    # Nothing refers to it: a collection that another test caused may take it else.
    engine.ctr("content", "label", digest, "containerd.io/gc.root=test")
    wrong = descriptor_pb2.Descriptor(media_type=TAR, digest=digest, size=len(data) + 1)
    right = descriptor_pb2.Descriptor(media_type=TAR, digest=digest, size=len(data))
    absent = descriptor_pb2.Descriptor(media_type=TAR, digest=f"sha256:{'0' * 64}", size=1)
    for layer, code in (
        (wrong, grpc.StatusCode.FAILED_PRECONDITION),
        (right, grpc.StatusCode.INVALID_ARGUMENT),
        (absent, grpc.StatusCode.NOT_FOUND),
    ):
        request = diff_pb2.ApplyRequest(diff=layer, mounts=mounts)
        with pytest.raises(grpc.RpcError) as caught:
            ours.Apply(request, metadata=IN_NAMESPACE, timeout=CALL_TIMEOUT_S)
        assert caught.value.code() is code, caught.value.details()
