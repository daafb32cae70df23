"""Images go from containerd to snapfs and back: the same trees, the same digests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.containerd.conftest import Plant
from tests.support import trees
from tests.support.containerd import Containerd
from tests.support.daemon import RunningDaemon
from tests.support.oci import Image

pytestmark = [
    pytest.mark.root,
    pytest.mark.fuse,
    pytest.mark.containerd,
    pytest.mark.slow,
    # The first test here makes the Debian tree.
    pytest.mark.timeout(1200),
]


@pytest.fixture
def snapfs(plant: Plant) -> Iterator[RunningDaemon]:
    """The service beside containerd; images of its own are gone after the test."""
    daemon = plant.daemons["snapfs"]
    yield daemon
    for image in daemon.json("image", "list"):
        daemon.run("image", "remove", image["name"])
    daemon.run("gc")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    return path


@pytest.mark.parametrize("which", ["odd_image", "debian_image"])
def test_an_import_shows_the_tree_that_containerd_unpacks(
    which: str,
    request: pytest.FixtureRequest,
    engine: Containerd,
    snapfs: RunningDaemon,
    load: Callable[[Image, str], None],
    archives: Callable[[Image], Path],
    tmp_path: Path,
    target: Path,
) -> None:
    image: Image = request.getfixturevalue(which)
    load(image, "overlayfs")
    (made,) = snapfs.json("image", "import", archives(image))
    assert made["snapshot"] == image.chain_id
    snapfs.run("mount", made["name"], target)
    try:
        with engine.viewed(image.chain_id, tmp_path / "k", snapshotter="overlayfs") as kernel:
            expected, found = trees.describe(kernel), trees.describe(target)
            for tree in (expected, found):
                # containerd sets times before 1970 to 0; we keep them.
                tree.pop("odd/before-1970", None)
            assert trees.differences(expected, found) == []
    finally:
        snapfs.run("umount", target)


def test_what_snapfs_commits_and_exports_containerd_runs(
    engine: Containerd,
    snapfs: RunningDaemon,
    odd_image: Image,
    archives: Callable[[Image], Path],
    tmp_path: Path,
    target: Path,
) -> None:
    (made,) = snapfs.json("image", "import", archives(odd_image))
    snapfs.run("mount", made["name"], target, "--writable", "--key", "work")
    (target / "etc").mkdir(exist_ok=True)
    (target / "etc/said").write_text("by snapfs\n")
    snapfs.run("umount", target)
    name = "example.org/changed:1"
    snapfs.run("image", "commit", "work", name)
    path = tmp_path / "changed.tar"
    snapfs.run("image", "export", name, path)
    for snapshotter in ("overlayfs", "snapfs"):
        engine.load(path, snapshotter=snapshotter)
        said = engine.run(name, f"reads-{snapshotter}", "cat", "/etc/said", snapshotter=snapshotter)
        assert said == "by snapfs\n"


def test_what_containerd_exports_snapfs_imports_with_the_same_digest(
    engine: Containerd,
    snapfs: RunningDaemon,
    odd_image: Image,
    load: Callable[[Image, str], None],
    tmp_path: Path,
) -> None:
    load(odd_image, "overlayfs")
    path = tmp_path / "exported.tar"
    engine.ctr("images", "export", path, odd_image.name)
    (made,) = snapfs.json("image", "import", path)
    listed = engine.ctr("images", "list", f"name=={odd_image.name}").stdout.decode()
    assert made["digest"] in listed
    assert made["snapshot"] == odd_image.chain_id
    assert (
        json.loads(snapfs.run("image", "verify", made["name"], "--json").stdout)["problems"] == []
    )
