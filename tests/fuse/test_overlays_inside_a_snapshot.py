"""Overlays mounted inside a container, with their layers on a snapshot: docker in docker."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from tests.support.lanes import House, Tree, bind_mount, drop_dentries
from tests.support.overlay import kernel

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.plain]
MODES = (Mode.PASSTHROUGH, Mode.NO_OPEN)

Mounter = Callable[[Path], AbstractContextManager[Path]]
LACKS = "upper fs missing required features"
DEADLINE_S = 30.0


def fill(layer: Path) -> None:
    """A container that has the lower layer of its own containers."""
    (layer / "inner/low/dir/sub").mkdir(parents=True)
    for name in ("gone", "kept", "moved", "dir/gone", "dir/file", "dir/sub/deep"):
        (layer / "inner/low" / name).write_text(name)
    os.link(layer / "inner/low/kept", layer / "inner/low/dir/linked")
    (layer / "inner/low/emptied").mkdir()
    (layer / "inner/low/emptied/file").write_text("file")
    for name in ("up", "work", "mnt"):
        (layer / "inner" / name).mkdir()


def kernel_log() -> str:
    """What the kernel said, where it may be read."""
    return subprocess.run(["dmesg"], capture_output=True, text=True, check=False).stdout


@contextmanager
def kernel_overlay(place: Path) -> Iterator[Path]:
    before = kernel_log().count(LACKS)
    low, up, work = (place / name for name in ("low", "up", "work"))
    with kernel.overlay(place / "mnt", [low], up, work, options="redirect_dir=on") as mounted:
        assert kernel_log().count(LACKS) == before
        yield mounted


@contextmanager
def command(program: str | Path, place: Path) -> Iterator[Path]:
    layers = f"lowerdir={place}/low,upperdir={place}/up,workdir={place}/work,redirect_dir=on"
    if "fuse-overlayfs" in str(program):
        layers = layers.removesuffix(",redirect_dir=on")
    subprocess.run([program, "-o", layers, place / "mnt"], check=True, timeout=DEADLINE_S)
    try:
        yield place / "mnt"
    finally:
        kernel.unmount(place / "mnt")


@contextmanager
def snapfs_overlay(place: Path) -> Iterator[Path]:
    with command(Path(sys.executable).with_name("snapfs-overlay"), place) as mounted:
        yield mounted


@contextmanager
def fuse_overlayfs(place: Path) -> Iterator[Path]:
    """It mixes up the names of a hard link at its second mount, on any file system."""
    (place / "low/dir/linked").unlink(missing_ok=True)
    with command("fuse-overlayfs", place) as mounted:
        yield mounted


MOUNTERS: dict[str, Mounter] = {
    "kernel overlayfs": kernel_overlay,
    "snapfs-overlay": snapfs_overlay,
    "fuse-overlayfs": fuse_overlayfs,
}


@pytest.fixture
def container(house: House, tmp_path: Path) -> Iterator[Path]:
    """A snapshot as a runtime mounts it."""
    with bind_mount(house.active(fill).path, tmp_path / "rootfs") as root:
        yield root / "inner"


def change(merged: Path, *, moves_directories: bool) -> None:
    (merged / "gone").unlink()
    (merged / "dir/gone").unlink()
    (merged / "kept").write_text("changed")
    (merged / "moved").rename(merged / "dir/arrived")
    (merged / "new").mkdir()
    (merged / "new/file").write_text("new")
    os.symlink("new/file", merged / "link")
    subprocess.run(["rm", "-r", merged / "emptied"], check=True)
    (merged / "emptied").mkdir()
    if moves_directories:
        (merged / "dir/sub").rename(merged / "sub")


def shown(merged: Path) -> dict[str, str]:
    """Every path below, with a file's content or a link's target."""
    found = {}
    for path in sorted(merged.rglob("*")):
        name = str(path.relative_to(merged))
        if path.is_symlink():
            found[name] = os.readlink(path)
        else:
            found[name] = path.read_text() if path.is_file() else "directory"
    return found


@pytest.mark.parametrize("kind", MOUNTERS)
def test_an_overlay_inside_takes_changes_and_has_them_at_the_next_mount(
    container: Path, kind: str
) -> None:
    moves = kind != "fuse-overlayfs"
    with MOUNTERS[kind](container) as merged:
        change(merged, moves_directories=moves)
        expected = shown(merged)
    assert {
        "kept": "changed",
        "dir/arrived": "moved",
        "new/file": "new",
    }.items() <= expected.items()
    assert not {"gone", "dir/gone", "moved", "emptied/file"} & expected.keys()
    assert ("sub/deep" in expected) == moves
    drop_dentries()
    with MOUNTERS[kind](container) as merged:
        assert shown(merged) == expected
    assert sorted(os.listdir(container / "low")) == ["dir", "emptied", "gone", "kept", "moved"]


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
def test_a_kernel_overlay_inside_goes_on_when_the_worker_dies(
    own_house: House, tmp_path: Path
) -> None:
    """It holds directories of its layers open, and looks up others in them."""
    snapshot = own_house.active(fill)
    with (
        bind_mount(snapshot.path, tmp_path / "rootfs") as root,
        kernel_overlay(root / "inner") as merged,
    ):
        own_house.kill_worker()
        change(merged, moves_directories=True)
        expected = shown(merged)
        own_house.kill_worker()
        drop_dentries()
        assert shown(merged) == expected


def test_its_whiteouts_are_devices_and_its_marks_are_seen_by_the_container(
    container: Path,
) -> None:
    with kernel_overlay(container) as merged:
        change(merged, moves_directories=True)
    for name in ("gone", "moved", "dir/gone"):
        found = (container / "up" / name).lstat()
        assert stat.S_ISCHR(found.st_mode), name
        assert found.st_rdev == 0
    assert os.getxattr(container / "up/emptied", "trusted.overlay.opaque") == b"y"
    assert os.getxattr(container / "up/sub", "trusted.overlay.redirect") == b"/dir/sub"


def test_a_committed_container_carries_the_layers_of_its_containers(
    house: House, tmp_path: Path
) -> None:
    """What an inner overlay removed stays removed in every child, and hides nothing of ours."""
    tree = house.active(fill)
    with bind_mount(tree.path, tmp_path / "first") as root, kernel_overlay(root / "inner") as mnt:
        change(mnt, moves_directories=True)
        expected = shown(mnt)
    name = house.name()
    house.snapshots.commit(tree.key, name)
    child: Tree = house.on(name)
    with bind_mount(child.path, tmp_path / "second") as root:
        assert sorted(os.listdir(root / "inner/up")) == sorted(
            {"gone", "kept", "moved", "dir", "new", "link", "emptied", "sub"}
        )
        with kernel_overlay(root / "inner") as mnt:
            assert shown(mnt) == expected
            (mnt / "after").write_text("after")
            (mnt / "new/file").unlink()
        assert not (root / "inner/up/new/file").exists()
