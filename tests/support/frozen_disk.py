"""A file system whose writes wait, as on a disk that does not answer (FIFREEZE)."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from snapfs.fuse import mounts
from tests.support.loops import mount_image

FIFREEZE, FITHAW = 0xC0045877, 0xC0045878


@contextmanager
def own_disk(base: Path) -> Iterator[Path]:
    """An ext4 of 200 MiB, mounted below a directory."""
    image, target = base / "image", base / "disk"
    with image.open("wb") as file:
        file.truncate(200 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    target.mkdir()
    mount_image(image, target)
    try:
        yield target
    finally:
        if mounts.mounted_at(target):
            mounts.unmount(target, mounts.MNT_DETACH)


@contextmanager
def frozen(path: Path) -> Iterator[None]:
    """Let every write to a file system wait."""
    fd = os.open(path, os.O_RDONLY)
    fcntl.ioctl(fd, FIFREEZE, 0)
    try:
        yield
    finally:
        fcntl.ioctl(fd, FITHAW, 0)
        os.close(fd)
