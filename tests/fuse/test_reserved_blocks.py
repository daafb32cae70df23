"""What a file system reserves for others is not for those who write through a mount.

What is reserved for root is used, as workers write as root. One that had CAP_SYS_RESOURCE would
take that of others, too, and write past the quota of users and projects by the same right: this
test says so only where processes have the capability.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from tests.support import lanes
from tests.support.loops import mount_image
from tests.support.overlay.kernel import unmount

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.plain,
    pytest.mark.slow,
    pytest.mark.timeout(240),
]

MIB = 1 << 20
SIZE, RESERVED_PERCENT, SOMEBODY = 128 * MIB, 40, 65000


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A file system of which a part is reserved for one user, who is not root."""
    image, mounted = tmp_path / "image", tmp_path / "place"
    with image.open("wb") as file:
        file.truncate(SIZE)
    subprocess.run(["mkfs.ext4", "-q", "-m", str(RESERVED_PERCENT), image], check=True)
    mounted.mkdir()
    mount_image(image, mounted, f"resuid={SOMEBODY}")
    try:
        yield mounted
    finally:
        unmount(mounted)


def written(path: Path) -> int:
    """Write until there is no room; return how much there was."""
    fd, done = os.open(path, os.O_WRONLY | os.O_CREAT), 0
    try:
        while done < SIZE:
            done += os.write(fd, b"x" * MIB)
            os.fsync(fd)
    except OSError as error:
        assert error.errno == errno.ENOSPC  # noqa: PT017
    finally:
        os.close(fd)
    return done


@pytest.mark.parametrize("mode", [Mode.PASSTHROUGH, Mode.NO_OPEN])
def test_writers_leave_what_is_reserved(place: Path, tmp_path: Path, mode: Mode) -> None:
    with lanes.house(tmp_path / "house", root=place / "root", mode=mode) as house:
        tree = house.active(lambda upper: (upper / "file").write_bytes(b"lower"))
        room = os.statvfs(place)
        assert room.f_bfree - room.f_bavail > 0.3 * room.f_blocks
        assert written(tree / "new") <= (room.f_bavail * room.f_frsize) + 2 * MIB
        left = os.statvfs(place)
        assert left.f_bfree * left.f_frsize > SIZE * (RESERVED_PERCENT - 5) // 100
        (tree / "new").unlink()
        (tree / "file").write_bytes(b"changed" * 100_000)
