"""A new file that appears whole and durable, or not at all, whatever ends the process."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write and read, which is at `path` after the block unless that raised.

    Mode 0644. Raises FileExistsError when something is there, OSError. Where the file system has
    nameless files (O_TMPFILE), a crash leaves nothing; elsewhere a file `.NAME.*` beside it.
    """
    with _nameless(path.parent) or _named(path) as file:
        yield file
        file.flush()
        os.fchmod(file.fileno(), 0o644)
        os.fsync(file.fileno())
        _link(file.fileno(), path)
    _sync(path.parent)


def _nameless(directory: Path) -> BinaryIO | None:
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    return os.fdopen(fd, "w+b")


def _named(path: Path) -> BinaryIO:
    made = tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.")  # noqa: SIM115
    return cast(BinaryIO, made)


def _link(fd: int, path: Path) -> None:
    """Give an open file a name; os.link follows a link in /proc only if a directory is given."""
    descriptors = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.link(str(fd), path, src_dir_fd=descriptors, follow_symlinks=True)
    finally:
        os.close(descriptors)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
