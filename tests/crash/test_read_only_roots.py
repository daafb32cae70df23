"""A root whose file system turns read-only under a service and the mounts of its snapshots."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from snapfs.model import DataLoss, FailedPrecondition, PermissionDenied, SnapfsError
from tests.support import lanes
from tests.support.lanes import House
from tests.support.loops import mount_image
from tests.support.overlay.kernel import image_fs

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.slow, pytest.mark.timeout(240)]

DATA = os.urandom(300_000)
LOUD = ("store.broken", "layers.write_error", "layers.mark_failed", "ids.not_given_back",
        "snapshot.undo_failed", "promises.not_settled", "tree.release_failed",
        "snapshot.removal_failed")  # fmt: skip


def remount(place: Path, options: str) -> bool:
    """Say whether the kernel did it, rather than that it is busy."""
    done = subprocess.run(["mount", "-o", f"remount,{options}", place], capture_output=True)
    return done.returncode == 0


def set_up(upper: Path) -> None:
    (upper / "file").write_bytes(DATA)
    (upper / "other").write_bytes(DATA)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_root_in_use_is_not_turned_read_only_by_a_remount(kind: str, tmp_path: Path) -> None:
    """The store is open for writing, so mount(8) is refused, and nobody notices."""
    with (
        image_fs(tmp_path, kind) as place,
        lanes.house(tmp_path / "house", root=place / "root") as house,
    ):
        tree = house.active(set_up)
        assert not remount(place, "ro")
        (tree / "file").write_bytes(b"changed")
        house.snapshots.commit(tree.key, "done")
        assert house.snapshots.fsck().clean


@pytest.fixture(params=[Mode.PASSTHROUGH, Mode.NO_OPEN])
def aborted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[House, Path]]:
    """A house on ext4, whose journal the test aborts, and where that is mounted."""
    with (
        image_fs(tmp_path, "ext4") as place,
        lanes.house(tmp_path / "house", root=place / "root", mode=request.param) as house,
    ):
        yield house, place


@pytest.mark.logs(*LOUD)
def test_reads_go_on_where_nothing_can_be_written_and_nothing_acknowledged_is_lost(
    aborted: tuple[House, Path], tmp_path: Path
) -> None:
    house, place = aborted
    tree = house.active(set_up)
    (tree / "file").write_bytes(b"changed")
    house.snapshots.commit(tree.key, "done")
    work = house.on("done")
    assert (work / "other").read_bytes() == DATA
    os.sync()
    worker = house.worker().pid
    assert remount(place, "abort")  # as ext4 does by itself at an error with errors=remount-ro
    for act in acts(work.path):
        with pytest.raises(OSError, match=r"Read-only|Input/output") as refused:
            act()
        assert refused.value.errno in (errno.EROFS, errno.EIO)
    assert (work / "other").read_bytes() == DATA
    assert (work / "file").read_bytes() == b"changed"
    assert sorted(os.listdir(work.path)) == ["file", "other"]
    for change in (
        lambda: house.snapshots.prepare("new", "done"),
        lambda: house.snapshots.commit(work.key, "lost"),
        lambda: house.snapshots.update("done", {"k": "v"}),
    ):
        with pytest.raises(SnapfsError, match=r"(?i)read-only|input/output|fails|disk") as error:
            change()
        kinds = (FailedPrecondition, DataLoss, PermissionDenied)
        assert isinstance(error.value, kinds), error.value
    assert house.snapshots.stat("done").name == "done"
    assert house.worker().pid == worker
    house.stop()
    house.snapshots.close()
    subprocess.run(["umount", place], check=True)
    mount_image(place.with_suffix(".image"), place)
    house._open()
    house.start()
    assert house.snapshots.fsck().clean
    assert {it.name for it in house.snapshots.walk()} >= {"done", work.key}
    assert (work / "file").read_bytes() == b"changed"
    (work / "new").write_bytes(b"goes on")
    house.snapshots.commit(work.key, "made")


def acts(path: Path) -> list[Callable[[], object]]:
    return [
        lambda: (path / "new").write_bytes(b"new"),
        lambda: (path / "directory").mkdir(),
        lambda: (path / "other").write_bytes(b"changed"),
        lambda: (path / "file").unlink(),
        lambda: (path / "file").rename(path / "moved"),
        lambda: (path / "file").chmod(0o600),
    ]
