"""What a layer directory takes on disk.

Counted like `du`: st_blocks * 512 of each distinct inode, directories and the root included
(continuity `fs.DiskUsage`). Paths of any depth; names that vanish meanwhile, or become something
else, are skipped and lead nowhere else.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from snapfs.beneath import open_beneath
from snapfs.model import Usage

BLOCK_BYTES = 512
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NOATIME
_ANCHOR_BYTES = 2048
"""Length of a relative path from which on the walk opens a directory to go on from."""


def measure(path: Path) -> Usage:
    """Return the usage of the directory at `path`; OSError when it cannot be read."""
    totals = _Totals()
    _walk(path, totals)
    return Usage(totals.blocks * BLOCK_BYTES, totals.inodes)


def blocks_by_inode(path: Path) -> dict[int, int]:
    """Return st_blocks of each distinct inode by its number, of one file system."""
    table = _Table()
    _walk(path, table)
    return table.blocks


@contextmanager
def _changing() -> Iterator[None]:
    """Pass over a directory that is not there any more, or is none."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise


def _walk(path: Path, walker: _Walker) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        walker.add(os.fstat(fd))
        walker.walk(fd)
    finally:
        os.close(fd)


class _Walker:
    """Adds each entry of a tree."""

    def add(self, found: os.stat_result) -> None:
        raise NotImplementedError

    def walk(self, anchor: int) -> None:
        """Count all below the directory open as `anchor`."""
        waiting: list[bytes] = [b"."]
        far: list[bytes] = []
        while waiting:
            directory = waiting.pop()
            with _changing():
                below = self._entries(anchor, directory)
                (far if len(directory) > _ANCHOR_BYTES else waiting).extend(below)
        for directory in far:
            with _changing():
                fd = open_beneath(anchor, directory, _DIRECTORY)
                try:
                    self.walk(fd)
                finally:
                    os.close(fd)

    def _entries(self, anchor: int, directory: bytes) -> list[bytes]:
        below = []
        fd = open_beneath(anchor, directory, _DIRECTORY)
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        self.add(entry.stat(follow_symlinks=False))
                        if entry.is_dir(follow_symlinks=False):
                            below.append(directory + b"/" + os.fsencode(entry.name))
        finally:
            os.close(fd)
        return below


class _Totals(_Walker):
    def __init__(self) -> None:
        self.blocks = 0
        self.inodes = 0
        self._linked: set[tuple[int, int]] = set()

    def add(self, found: os.stat_result) -> None:
        if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
            identity = (found.st_dev, found.st_ino)
            if identity in self._linked:
                return
            self._linked.add(identity)
        self.blocks += found.st_blocks
        self.inodes += 1


class _Table(_Walker):
    def __init__(self) -> None:
        self.blocks: dict[int, int] = {}

    def add(self, found: os.stat_result) -> None:
        self.blocks[found.st_ino] = found.st_blocks
