"""The whole life of snapshots on ext4, xfs, btrfs and tmpfs, and on a full one."""

import os
import subprocess
from contextlib import suppress

import pytest

from snapfs import preflight
from snapfs.model import Committed, ResourceExhausted
from snapfs.snapshots import NoTrees, Snapshotter, fsck, roots

pytestmark = pytest.mark.root

MIB = 1 << 20
SIZES = {"ext4": 64 * MIB, "xfs": 320 * MIB, "btrfs": 160 * MIB}


@pytest.fixture(params=["ext4", "xfs", "btrfs", "tmpfs"])
def root(request, tmp_path):
    path = tmp_path / "root"
    if request.param == "tmpfs":
        path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64M", "tmpfs", path], check=True)
    else:
        roots.init(path, image_bytes=SIZES[request.param], file_system=request.param)
    yield path
    subprocess.run(["umount", path], check=True)


def fill_layer(upper):
    (upper / "directory").mkdir()
    (upper / "directory" / "big").write_bytes(os.urandom(300_000))
    os.link(upper / "directory" / "big", upper / "link")
    os.mknod(upper / "whiteout", 0o020000, os.makedev(0, 0))
    os.setxattr(upper / "directory", "trusted.overlay.opaque", b"y")


def test_a_life_from_init_to_removal(root):
    with Snapshotter(root, trees=NoTrees()) as snapshotter:
        snapshotter.prepare("a")
        upper = root / "layers/1/fs"
        fill_layer(upper)
        done = snapshotter.commit("a", "base")
        assert done.usage.inodes == 4
        assert 300_000 <= done.usage.size_bytes < 400_000
        snapshotter.prepare("b", "base")
        snapshotter.view("v", "base")
        assert snapshotter.fsck().clean
    with Snapshotter(root, trees=NoTrees()) as snapshotter:
        assert os.getxattr(upper / "directory", "trusted.overlay.opaque") == b"y"
        for name in ("v", "b", "base"):
            snapshotter.remove(name)
        assert snapshotter.cleanup() == ()
        assert os.listdir(root / "layers") == []
    assert fsck(root).clean


def fill(path):
    """Write until the file system is full."""
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    for size in (MIB, 4096, 1):
        with suppress(OSError):
            while os.write(fd, b"x" * size):
                os.fsync(fd)
    with suppress(OSError):
        os.close(fd)


def prepare_many(snapshotter):
    """Prepare snapshots that take much room in the metadata, until that is refused."""
    labels = {f"label{number}": "x" * 4000 for number in range(10)}
    for number in range(20_000):
        snapshotter.prepare(f"k{number}", "base", labels)


@pytest.mark.logs("snapshot.undo_failed", "snapshot.removal_failed", "root.full")
def test_a_full_disk_refuses_with_a_way_out_and_serves_again_when_there_is_room(root):
    with Snapshotter(root, trees=NoTrees()) as snapshotter:
        snapshotter.prepare("a")
        snapshotter.commit("a", "base")
        before = [f"before{number}" for number in range(20)]
        for key in before:
            snapshotter.prepare(key, "base")
    fill(root / "filler")
    # A full disk is when a service is restarted, and when garbage must be collected.
    preflight.check_layers_filesystem(root)
    with Snapshotter(root, trees=NoTrees()) as snapshotter:
        with pytest.raises(ResourceExhausted, match="space"):
            prepare_many(snapshotter)
        assert isinstance(snapshotter.stat("base"), Committed)
        assert len(os.listdir(root / "layers")) == len(list(snapshotter.walk()))
        assert {found.name for found in snapshotter.walk()} >= {*before, "base"}
        for found in list(snapshotter.walk(["kind==active"])):
            snapshotter.remove(found.name)
        (root / "filler").unlink()
        os.sync()
        snapshotter.prepare("again", "base")
        assert snapshotter.cleanup() == ()
        assert snapshotter.fsck().clean
