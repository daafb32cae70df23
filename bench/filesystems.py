"""The file systems that the benchmarks hold side by side, each a merged tree over the same lower.

Every one is a context manager that yields the merged directory and unmounts it at the end.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

SNAPFS_OVERLAY = str(Path(sys.executable).with_name("snapfs-overlay"))


@contextlib.contextmanager
def kernel_overlay(lower: Path, scratch: Path) -> Iterator[Path]:
    """Mount the kernel's overlayfs, as containerd's own snapshotter does."""
    with _directories(scratch) as (upper, work, merged):
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        _run("mount", "-t", "overlay", "overlay", "-o", options, str(merged))
        with _unmounting(merged):
            yield merged


@contextlib.contextmanager
def fuse_overlayfs(lower: Path, scratch: Path) -> Iterator[Path]:
    """Mount Debian's fuse-overlayfs with its defaults."""
    yield from _fuse("fuse-overlayfs", lower, scratch)


@contextlib.contextmanager
def snapfs(lower: Path, scratch: Path) -> Iterator[Path]:
    """Mount snapfs-overlay: the operations and caching that `snapfs serve` uses."""
    yield from _fuse(SNAPFS_OVERLAY, lower, scratch)


def available() -> dict[str, Callable[[Path, Path], contextlib.AbstractContextManager[Path]]]:
    """Return the file systems that this machine can mount, the reference first."""
    found = {"overlayfs": kernel_overlay}
    if shutil.which("fuse-overlayfs"):
        found["fuse-overlayfs"] = fuse_overlayfs
    found["snapfs"] = snapfs
    return found


def _fuse(command: str, lower: Path, scratch: Path) -> Iterator[Path]:
    with _directories(scratch) as (upper, work, merged):
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        _run(command, "-o", options, str(merged))
        with _unmounting(merged):
            yield merged


@contextlib.contextmanager
def _directories(scratch: Path) -> Iterator[tuple[Path, Path, Path]]:
    base = Path(tempfile.mkdtemp(dir=scratch))
    paths = base / "upper", base / "work", base / "merged"
    for path in paths:
        path.mkdir()
    try:
        yield paths
    finally:
        shutil.rmtree(base)


@contextlib.contextmanager
def _unmounting(merged: Path) -> Iterator[None]:
    try:
        yield
    finally:
        _run("umount", str(merged))


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, timeout=60)
