"""What the overlay benchmark does to a merged tree: rows, each with a name.

Rows of one group share a mount and run in order, so that one makes what the next needs. The lower
tree is a small Debian. A row's `run` is timed; nothing follows a link out of the merged directory.
System calls are made with `os`, whose cost of a microsecond is in every column alike.
"""

from __future__ import annotations

import mmap
import os
import random
import select
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
SMALL_FILES = 3000
APPENDED_FILES = 500
ADDED_FILES = 2000
LARGE_BYTES = 256 * MIB
BLOCK_BYTES = 4096
BLOCKS = 10_000
STARTS = 10
PYTHON = ("/usr/bin/python3", "-c", "import json, re, argparse")
TIMEOUT_S = 600
WARM_UPS = 2
"""Runs before a warm one. The first read of a file changes its atime, which is asked for in the
second."""

Work = Callable[[Path], object]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    name: str
    run: Work
    group: str
    operations: int | None = None
    """How many operations it is, for requests per operation; None: entries of the lower tree."""
    cold: bool = False
    """Whether the kernel's caches are dropped before it (3 > drop_caches), names and all."""
    warm: bool = False
    """Whether it is done WARM_UPS times before, outside the clock."""
    before: Work | None = None
    """Done before it, outside the clock."""
    reads_only: bool = False
    is_data: bool = False
    """Whether it is about the data of files: reads, writes, mmap, exec."""


def find(merged: Path) -> None:
    _quiet("find", merged, "-xdev", "-printf", "%s")


def tar(merged: Path) -> None:
    reader = subprocess.Popen(["tar", "-C", merged, "-cf", "-", "."], stdout=subprocess.PIPE)
    assert reader.stdout is not None
    buffer = bytearray(MIB)
    while reader.stdout.readinto(buffer):  # type: ignore[attr-defined]
        pass
    if reader.wait(timeout=TIMEOUT_S):
        raise RuntimeError("tar failed")


def start_python(merged: Path) -> None:
    for _ in range(STARTS):
        _quiet("chroot", merged, *PYTHON)


def start_true(merged: Path) -> None:
    for _ in range(STARTS * 10):
        os.waitpid(os.posix_spawn("/usr/sbin/chroot", ["chroot", merged, "/bin/true"], {}), 0)


def read_image(merged: Path) -> None:
    """Open, read and close files of the image."""
    for path in image_files(merged / "usr" / "share", SMALL_FILES):
        _read(path)


def write_sequential(merged: Path) -> None:
    block = os.urandom(MIB)
    fd = os.open(merged / "large", os.O_WRONLY | os.O_CREAT)
    for _ in range(LARGE_BYTES // MIB):
        os.write(fd, block)
    os.fsync(fd)
    os.close(fd)


def read_sequential(merged: Path) -> None:
    fd = os.open(merged / "large", os.O_RDONLY)
    buffer = bytearray(MIB)
    while os.readv(fd, [buffer]):
        pass
    os.close(fd)


def read_mapped(merged: Path) -> None:
    """Touch each page of a mapping once."""
    fd = os.open(merged / "large", os.O_RDONLY)
    with mmap.mmap(fd, LARGE_BYTES, prot=mmap.PROT_READ) as pages:
        sum(pages[::BLOCK_BYTES])
    os.close(fd)


def write_random(merged: Path) -> None:
    block = os.urandom(BLOCK_BYTES)
    fd = os.open(merged / "large", os.O_WRONLY)
    for position in _positions():
        os.pwrite(fd, block, position)
    os.fsync(fd)
    os.close(fd)


def read_random(merged: Path) -> None:
    fd = os.open(merged / "large", os.O_RDONLY)
    for position in _positions():
        os.pread(fd, BLOCK_BYTES, position)
    os.close(fd)


def create_small(merged: Path) -> None:
    os.mkdir(merged / "small")
    for path in _small(merged):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(fd, b"x" * 1000)
        os.close(fd)


def read_small(merged: Path) -> None:
    for path in _small(merged):
        _read(path)


def untar(merged: Path) -> None:
    os.mkdir(merged / "unpacked")
    _quiet("tar", "-C", merged / "unpacked", "-xf", merged.parent / "tree.tar")


def remove_upper(merged: Path) -> None:
    _quiet("rm", "-rf", merged / "unpacked")


def remove_lower(merged: Path) -> None:
    _quiet("rm", "-rf", merged / "usr" / "share")


def make_repository(merged: Path) -> None:
    work = merged / "work"
    work.mkdir()
    _git(work, "init", "--quiet")
    for number in range(ADDED_FILES):
        directory = work / f"d{number % 40}"
        directory.mkdir(exist_ok=True)
        (directory / f"f{number}").write_text(f"{number}\n" * 50)


def add_to_git(merged: Path) -> None:
    _git(merged / "work", "add", "--all")


def let_files_age(_: Path) -> None:
    """git reads what is no older than its index, in seconds: the faster it was added, the more."""
    time.sleep(2)


def ask_git(merged: Path) -> None:
    """What an unchanged index costs: a stat of each file, a listing of each directory."""
    _git(merged / "work", "status", "--short", "--untracked-files=no", "--ignore-submodules")


def append_lower(merged: Path) -> None:
    """Append a byte to files of the image: one copy-up each."""
    for path in image_files(merged / "usr", APPENDED_FILES):
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"x")
        os.close(fd)


def change_owner(merged: Path) -> None:
    _quiet("chown", "-hR", "1:1", merged / "usr" / "share")


_MIBS = LARGE_BYTES // MIB

ROWS = (
    Row("find, cold", find, "image", cold=True, reads_only=True),
    Row("find, warm", find, "image", warm=True, reads_only=True),
    Row("tar to a pipe, cold", tar, "image", cold=True, reads_only=True),
    Row("tar to a pipe, warm", tar, "image", warm=True, reads_only=True),
    Row("10 python starts, cold", start_python, "image", STARTS, cold=True, reads_only=True),
    Row("10 python starts, warm", start_python, "image", STARTS, warm=True, reads_only=True),
    Row(
        "100 exec of true, warm",
        start_true,
        "image",
        STARTS * 10,
        warm=True,
        reads_only=True,
        is_data=True,
    ),
    Row(
        f"open-read-close {SMALL_FILES} image files, warm",
        read_image,
        "image",
        SMALL_FILES,
        warm=True,
        reads_only=True,
    ),
    Row("sequential write 256 MiB + fsync", write_sequential, "large", _MIBS, is_data=True),
    Row("sequential read 256 MiB, cold", read_sequential, "large", _MIBS, cold=True, is_data=True),
    Row("sequential read 256 MiB, warm", read_sequential, "large", _MIBS, warm=True, is_data=True),
    Row("mapped read 256 MiB, warm", read_mapped, "large", _MIBS, warm=True, is_data=True),
    Row(
        f"random read {BLOCKS} x 4 KiB, warm", read_random, "large", BLOCKS, warm=True, is_data=True
    ),
    Row(f"random read {BLOCKS} x 4 KiB, cold", read_random, "large", BLOCKS, True, is_data=True),
    Row(f"random write {BLOCKS} x 4 KiB + fsync", write_random, "large", BLOCKS, is_data=True),
    Row(f"create {SMALL_FILES} small files", create_small, "small", SMALL_FILES),
    Row(f"open-read-close {SMALL_FILES} new files", read_small, "small", SMALL_FILES),
    Row("untar of the tree", untar, "tree"),
    Row("rm -rf, the untarred tree", remove_upper, "tree"),
    Row(f"git add {ADDED_FILES} files", add_to_git, "git", ADDED_FILES, before=make_repository),
    Row(
        f"git status of {ADDED_FILES} files, warm",
        ask_git,
        "git",
        ADDED_FILES,
        warm=True,
        before=let_files_age,
    ),
    Row(f"append to {APPENDED_FILES} image files", append_lower, "append", APPENDED_FILES),
    Row("chown -R, image's /usr/share", change_owner, "chown"),
    Row("rm -rf, image's /usr/share", remove_lower, "remove"),
)


def image_files(top: Path, count: int) -> Iterator[str]:
    """Yield the first regular files below `top`."""
    for directory, names, files in os.walk(top):
        names.sort()
        for name in sorted(files):
            path = os.path.join(directory, name)
            if not os.path.islink(path):
                yield path
                count -= 1
                if not count:
                    return


def _small(merged: Path) -> list[str]:
    return [f"{merged}/small/file-{number}" for number in range(SMALL_FILES)]


def _read(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.read(fd, MIB)
    os.close(fd)


def _positions() -> list[int]:
    source = random.Random(1)
    return [source.randrange(LARGE_BYTES // BLOCK_BYTES) * BLOCK_BYTES for _ in range(BLOCKS)]


def _git(work: Path, *arguments: str) -> None:
    environ = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    _quiet("git", "-C", work, *arguments, environ=environ)


def _quiet(*argv: str | Path, environ: Mapping[str, str] | None = None) -> None:
    """Run a program; subprocess's own wait with a timeout looks but every 50 ms in the end."""
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, env=environ) as process:
        ended = os.pidfd_open(process.pid)
        try:
            if not select.select([ended], [], [], TIMEOUT_S)[0]:
                process.kill()
                raise subprocess.TimeoutExpired(argv, TIMEOUT_S)
        finally:
            os.close(ended)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, argv)
