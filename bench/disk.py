"""A file system of a benchmark's own: ext4 with a journal in an image.

The machine's may be one without a journal. There ext4 gives no inode number out again for minutes
after a removal and looks at all of them in turn, so that whatever creates files pays for what
another column removed.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.loops import mount_image

GIB = 1 << 30


@contextlib.contextmanager
def own_disk(scratch: Path, gib: int) -> Iterator[Path]:
    """Mount a new one of `gib` GiB, all of which are taken from the disk that `scratch` is on.

    Raises OSError (ENOSPC).
    """
    image, mounted = scratch / "disk.img", scratch / "disk"
    with image.open("xb") as file:
        os.posix_fallocate(file.fileno(), 0, gib * GIB)
    _run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
    mounted.mkdir()
    mount_image(image, mounted)
    try:
        (device,) = _said("findmnt", "-n", "-o", "SOURCE", mounted).split()
        _run("losetup", "--direct-io=on", device)  # else its data is cached twice
        yield mounted
    finally:
        _run("umount", mounted)


def _run(*argv: str | Path) -> None:
    subprocess.run(argv, check=True, timeout=300)


def _said(*argv: str | Path) -> str:
    return subprocess.run(argv, check=True, timeout=60, capture_output=True, text=True).stdout
