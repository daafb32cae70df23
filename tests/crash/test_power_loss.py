"""Power loss: what has reached the disk when a call returns is a sound root with all its data.

The root is on an image file behind a loop device. The image is copied while everything is mounted
and open: the copy has what was written to the "disk", and nothing of the page cache above it.
"""

import os
import subprocess

import pytest

from snapfs.model import Active, Committed
from snapfs.snapshots import NoTrees, Snapshotter, fsck, roots
from tests.support.loops import mount_image

pytestmark = [pytest.mark.root, pytest.mark.slow]

MIB = 1 << 20
SIZES = {"ext4": 64 * MIB, "xfs": 320 * MIB, "btrfs": 160 * MIB}
DATA = b"precious" * 4000


@pytest.fixture(params=["ext4", "xfs", "btrfs"])
def disk(request, tmp_path):
    """A root on a disk of its own, what copies the disk, and what mounts the copy."""
    root, after, copy = tmp_path / "root", tmp_path / "after", tmp_path / "copy.img"
    roots.init(root, image_bytes=SIZES[request.param], file_system=request.param)

    def pull_the_plug():
        subprocess.run(["cp", "--sparse=always", tmp_path / "root.img", copy], check=True)

    def restart():
        subprocess.run(["umount", root], check=True)  # both have one UUID: never mounted at once
        after.mkdir()
        mount_image(copy, after)
        return after

    yield root, pull_the_plug, restart
    for path in (after, root):
        if os.path.ismount(path):
            subprocess.run(["umount", path], check=True)


def test_everything_that_was_acknowledged_is_there_after_a_power_loss(disk):
    root, pull_the_plug, restart = disk
    with Snapshotter(root, trees=NoTrees()) as before:
        for number in range(20):
            before.prepare(f"key{number}")
            upper = root / "layers" / str(before.stat(f"key{number}").id) / "fs"
            (upper / "directory").mkdir()
            (upper / "directory" / "file").write_bytes(DATA)
            os.setxattr(upper / "directory", "trusted.overlay.opaque", b"y")
            before.commit(f"key{number}", f"name{number}")
        for number in range(5):
            before.remove(f"name{number}")
        before.prepare("last", "name7")
        acknowledged = {found.name: found for found in before.walk()}
        pull_the_plug()
    root = restart()
    assert {problem.kind for problem in fsck(root).problems} <= {"stale-intent"}
    with Snapshotter(root, trees=NoTrees()) as snapshotter:
        assert snapshotter.cleanup() == ()
        assert snapshotter.fsck().clean
        assert {found.name: found for found in snapshotter.walk()} == acknowledged
        assert isinstance(snapshotter.stat("last"), Active)
        for found in acknowledged.values():
            if isinstance(found, Committed):
                directory = root / "layers" / str(found.id) / "fs" / "directory"
                assert (directory / "file").read_bytes() == DATA
                assert os.getxattr(directory, "trusted.overlay.opaque") == b"y"
        snapshotter.commit("last", "done")
