"""Which mounts a client gets: bind mounts, and overlay for what containerd unpacks into."""

import subprocess
from pathlib import Path

import pytest

from snapfs.snapshots import NoTrees, Snapshotter
from snapfs.snapshots import mounts as rules

EXTRACT = "k8s.io/12/extract-345-abc sha256:deadbeef"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (EXTRACT, True),
        ("extract-1 x", True),
        ("default/1/extract-", True),
        ("default/extract-1/container", False),
        ("default/1/extraction", False),
        ("default/1/my-extract-1", False),
        ("", False),
    ],
)
def test_an_extraction_is_known_by_the_last_part_of_its_key(key, expected):
    assert rules.is_extraction(key) is expected


def stack(snapshotter, depth):
    parent = ""
    for level in range(depth):
        snapshotter.prepare("key", parent)
        parent = f"base{level}"
        snapshotter.commit("key", parent)
    return parent


def options(mount):
    return dict(option.partition("=")[::2] for option in mount.options)


def test_an_extraction_is_an_overlay_with_the_direct_parent_first(snapshotter, root):
    (mount,) = snapshotter.prepare(EXTRACT, stack(snapshotter, 2))
    layers = root / "layers"
    assert (mount.type, mount.source) == ("overlay", "overlay")
    given = options(mount)
    assert given["upperdir"] == f"{layers}/3/fs"
    assert given["workdir"] == f"{layers}/3/work"
    assert given["lowerdir"] == f"{layers}/2/fs:{layers}/1/fs"
    assert given.get("index", "off") == "off"


def test_an_extraction_without_parent_is_an_overlay_on_an_empty_directory(snapshotter, root):
    (mount,) = snapshotter.prepare(EXTRACT)
    assert options(mount)["lowerdir"] == str(root / "empty")
    assert list((root / "empty").iterdir()) == []
    assert snapshotter.mounts(EXTRACT) == [mount]


def test_views_and_other_keys_are_bind_mounts_of_the_tree(snapshotter):
    base = stack(snapshotter, 1)
    assert snapshotter.view("default/1/extract-v", base)[0].type == "bind"
    assert snapshotter.prepare("default/1/container", base)[0].type == "bind"


def test_with_unpack_fuse_extractions_are_bind_mounts_too(root, trees):
    with Snapshotter(root, trees=trees, unpack="fuse") as snapshotter:
        (mount,) = snapshotter.prepare(EXTRACT)
    assert (mount.type, mount.source) == ("bind", str(trees.mountpoint(1)))


@pytest.mark.parametrize("name", ["a:b", "a,b", "a\\b"])
def test_a_root_with_a_name_that_overlayfs_would_misread_gives_bind_mounts(tmp_path, name):
    with Snapshotter(tmp_path / name, trees=NoTrees()) as snapshotter:
        assert snapshotter.prepare(EXTRACT)[0].type == "bind"


def test_more_layers_than_one_mount_call_can_name_give_a_bind_mount():
    upper, work = Path("/r/layers/1000/fs"), Path("/r/layers/1000/work")
    lowers = [Path(f"/r/layers/{number}/fs") for number in range(100, 500)]
    fitting = rules.overlay(upper, work, lowers[:190], index_off=True)
    assert fitting is not None
    assert len(",".join(fitting.options)) < rules.MAX_OVERLAY_BYTES
    assert rules.overlay(upper, work, lowers, index_off=True) is None


@pytest.mark.root
def test_the_overlay_mount_can_be_mounted_and_shows_what_the_layers_hold(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path], check=True)
    try:
        target = tmp_path / "target"
        target.mkdir()
        with Snapshotter(tmp_path / "root", trees=NoTrees()) as snapshotter:
            snapshotter.prepare("key")
            (tmp_path / "root/layers/1/fs/below").write_text("below")
            snapshotter.commit("key", "base")
            (mount,) = snapshotter.prepare(EXTRACT, "base")
            joined = ",".join(mount.options)
            subprocess.run(
                ["mount", "-t", mount.type, "-o", joined, mount.source, target], check=True
            )
            try:
                assert (target / "below").read_text() == "below"
                (target / "above").write_text("above")
            finally:
                subprocess.run(["umount", target], check=True)
            snapshotter.commit(EXTRACT, "unpacked")
            assert (tmp_path / "root/layers/2/fs/above").read_text() == "above"
    finally:
        subprocess.run(["umount", tmp_path], check=True)
