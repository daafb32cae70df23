"""What can be read or written in part only is an error, where less would be taken for the whole."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from tests.support import lanes
from tests.support.overlay.kernel import tmpfs, unmount
from tests.support.recorded_disk import attached, small_disk

pytestmark = [pytest.mark.fuse, pytest.mark.root]

SIZE = 1 << 20
IN_MEMORY = 20
"""Pages of a file that the kernel has when its disk begins to fail."""
PAGES_LEFT = 10


def forget_data(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


@pytest.mark.parametrize("mode", [Mode.NO_OPEN, Mode.PASSTHROUGH])
@pytest.mark.parametrize("channel", ["", "off"])
def test_a_disk_that_fails_in_the_middle_of_a_file_is_not_its_end(
    tmp_path: Path, mode: Mode, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if channel:
        monkeypatch.setenv("SNAPFS_CHANNEL", channel)
    disk = tmp_path / "disk"
    disk.mkdir()
    with attached(*small_disk(tmp_path)) as recorded:
        subprocess.run(["mount", "-o", "noatime", recorded.device, disk], check=True, timeout=60)
        try:
            with lanes.house(tmp_path / "house", mode, root=disk / "root") as house:
                tree = house.active(lambda layer: (layer / "file").write_bytes(b"A" * SIZE))
                os.sync()
                parent = house.snapshots.stat(house.snapshots.stat(tree.key).parent)
                real = house.layer(parent.id) / "file"
                (tree / "file").stat()
                forget_data(real)
                forget_data(tree / "file")
                fd = os.open(real, os.O_RDONLY)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
                for page in range(IN_MEMORY):
                    os.pread(fd, mmap.PAGESIZE, page * mmap.PAGESIZE)
                os.close(fd)
                with recorded.failing("read"), pytest.raises(OSError) as caught:
                    (tree / "file").read_bytes()
                assert caught.value.errno == errno.EIO
                assert (tree / "file").read_bytes() == b"A" * SIZE
        finally:
            unmount(disk)


@pytest.fixture
def nearly_full(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    with tmpfs(place, "size=24m"):
        yield place


@pytest.mark.parametrize("pages", [32, 128])
def test_a_mapping_that_a_full_disk_takes_in_part_is_told_of_at_a_sync(
    tmp_path: Path, nearly_full: Path, pages: int
) -> None:
    with lanes.house(tmp_path / "house", Mode.NO_OPEN, root=nearly_full / "root") as house:
        tree = house.active()
        with (tree / "file").open("wb") as file:
            file.truncate(pages * mmap.PAGESIZE)
        (tree / "file").stat()
        room = os.statvfs(nearly_full)
        with (nearly_full / "fill").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, (room.f_bavail - PAGES_LEFT) * room.f_frsize)
        fd = os.open(tree / "file", os.O_RDWR)
        try:
            with mmap.mmap(fd, pages * mmap.PAGESIZE) as mapped:
                mapped[:] = b"M" * len(mapped)
                with pytest.raises(OSError) as caught:
                    mapped.flush()
            assert caught.value.errno in (errno.ENOSPC, errno.EIO)
        finally:
            os.close(fd)
        (nearly_full / "fill").unlink()
