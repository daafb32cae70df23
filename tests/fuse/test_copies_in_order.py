"""Copies whose data has to be with the disk before they are seen: who makes them, who waits."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from snapfs.snapshots import roots
from tests.support import lanes
from tests.support.daemon import eventually
from tests.support.lanes import House, Tree
from tests.support.loops import mount_image
from tests.support.overlay.census import differences, of_mount
from tests.support.past_python import begun
from tests.support.recorded_disk import (
    Flush,
    RecordedDisk,
    Write,
    attached,
    rebuild,
    recorded,
    small_disk,
)

pytestmark = [pytest.mark.fuse, pytest.mark.root]

MIB = 1 << 20
SIZES = {"ext4": 64 * MIB, "xfs": 320 * MIB, "btrfs": 160 * MIB}
FILES = 30
REQUESTS = 4
"""The fewest that a loop device may have."""


def fill(layer: Path) -> None:
    (layer / "d").mkdir()
    for number in range(FILES):
        (layer / "d" / f"file{number}").write_bytes(bytes([number]) * (1 + number * 300))


@contextmanager
def house_on(base: Path, file_system: str, mode: Mode = Mode.PASSTHROUGH) -> Iterator[House]:
    root = base / "root"
    roots.init(root, image_bytes=SIZES[file_system], file_system=file_system)
    try:
        with lanes.house(base / "house", mode, root=root, metacopy=False) as made:
            yield made
    finally:
        subprocess.run(["umount", root], check=True, timeout=60)


def answered(house: House) -> int:
    """How many changes of attributes were answered without Python."""
    return Counter(house.worker().answered)["SETATTR"]


@pytest.mark.parametrize("mode", [Mode.PASSTHROUGH, Mode.NO_OPEN])
@pytest.mark.parametrize("file_system", SIZES)
def test_copies_are_like_their_files(file_system: str, mode: Mode, tmp_path: Path) -> None:
    with house_on(tmp_path, file_system, mode) as house:
        tree = house.active(fill)
        census = of_mount(house.on(house.snapshots.stat(tree.key).parent).path)
        begun(tree / "d", "file0")
        before = answered(house)
        for number in range(1, FILES):
            os.chown(tree / f"d/file{number}", 1000, 1001)
        without_python = answered(house) - before
        assert file_system != "xfs" or without_python  # clones wait for nothing
        assert file_system != "btrfs" or not without_python  # each waits for an fsync
        for number in range(1, FILES):
            assert (tree.upper / f"d/file{number}").stat().st_uid == 1000
            os.chown(tree / f"d/file{number}", 0, 0)
        assert not differences(census, of_mount(tree.path))
        assert os.listdir(tree.upper.parent / "work/snapfs") == []


@pytest.mark.parametrize("mode", [Mode.PASSTHROUGH, Mode.NO_OPEN])
@pytest.mark.parametrize("busy", [False, True])
def test_a_disk_that_is_slow_holds_up_who_needs_a_copy_alone(
    mode: Mode, busy: bool, tmp_path: Path
) -> None:
    """`busy`: it has all the requests that it takes."""
    image, own = small_disk(tmp_path)
    root = tmp_path / "root"
    root.mkdir()
    with attached(image, own) as disk:
        subprocess.run(["mount", "-o", "noatime", disk.device, root], check=True, timeout=60)
        try:
            with lanes.house(tmp_path / "house", mode, root=root, metacopy=False) as house:
                tree = house.active(fill)
                held = _full(disk, root / "beside") if busy else disk.silent()
                _hold_up(house, tree, held)
        finally:
            subprocess.run(["umount", root], check=True, timeout=60)


def test_a_copy_that_is_opened_to_sync_its_data_has_its_name_on_the_disk(tmp_path: Path) -> None:
    image, own = small_disk(tmp_path)
    root, copy, place = tmp_path / "root", tmp_path / "copy", tmp_path / "place"
    shutil.copy(image, copy)
    root.mkdir()
    place.mkdir()
    with attached(image, own) as disk:
        subprocess.run(["mount", "-o", "noatime", disk.device, root], check=True, timeout=60)
        try:
            with lanes.house(tmp_path / "house", Mode.PASSTHROUGH, root=root) as house:
                tree = house.active(fill)
                begun(tree / "d", "file0")
                (tree / "d/file1").chmod(0o600)  # the directory is there, and durable
                os.sync()
                os.close(os.open(tree / "d/file2", os.O_WRONLY | os.O_DSYNC))
                cut, upper = disk.now, tree.upper.relative_to(root)
        finally:
            subprocess.run(["umount", root], check=True, timeout=60)
    before = [it.what for it in recorded(disk.log) if it.end <= cut]
    last = max(at for at, it in enumerate(before) if isinstance(it, Flush))
    rebuild(copy, [it for it in before[:last] if isinstance(it, Write)])
    mount_image(copy, place)
    try:
        assert (place / upper / "d/file2").read_bytes() == bytes([2]) * 601
    finally:
        subprocess.run(["umount", place], check=True, timeout=60)


@contextmanager
def _full(disk: RecordedDisk, beside: Path) -> Iterator[None]:
    """Answer nothing for the block, and have no room for another request."""
    block = Path("/sys/block") / disk.device.name
    with _set(block / "queue/nr_requests", REQUESTS), beside.open("wb", buffering=0) as file:
        for number in range(8 * REQUESTS):  # not side by side
            os.pwrite(file.fileno(), b"x", number << 16)
        writing = threading.Thread(target=os.fdatasync, args=(file.fileno(),))
        try:
            with disk.silent():
                writing.start()
                eventually(
                    lambda: sum(map(int, (block / "inflight").read_text().split())) >= REQUESTS,
                    what="a disk that takes no more",
                )
                yield
        finally:
            writing.join(20)
        assert not writing.is_alive()


@contextmanager
def _set(setting: Path, value: int) -> Iterator[None]:
    """A block device keeps it for whoever has the device next."""
    before = setting.read_text()
    setting.write_text(f"{value}\n")
    try:
        yield
    finally:
        setting.write_text(before)


def _hold_up(house: House, tree: Tree, held: AbstractContextManager[None]) -> None:
    files = [tree / f"d/file{number}" for number in range(1, 6)]
    begun(tree / "d", "file0")
    os.sync()  # what was just written is in memory
    changing = [threading.Thread(target=os.chown, args=(it, 1000, 1000)) for it in files]
    with held:
        for thread in changing:
            thread.start()
        eventually(lambda: house.worker().copying == len(files), what="copies that wait")
        looked = threading.Thread(target=(tree / "d" / "absent").exists)  # nothing cached
        looked.start()
        looked.join(10)
        assert not looked.is_alive()
        assert all(it.is_alive() for it in changing)
    for thread in changing:
        thread.join(20)
        assert not thread.is_alive()
    assert {it.stat().st_uid for it in files} == {1000}
    assert os.listdir(tree.upper.parent / "work/snapfs") == []
