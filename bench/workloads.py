"""What the file benchmarks do to a merged tree: each a function of the merged directory.

A workload returns nothing; the runner times it. `prepare` steps are outside the clock. The
lower is a Debian tree; nothing here follows a link out of the merged directory.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
SMALL_FILES = 3000
APPENDED_FILES = 500
SEQUENTIAL_BYTES = 256 * MIB
RANDOM_BLOCK_BYTES = 4096
RANDOM_BLOCKS = 10_000


def nothing(_merged: Path) -> None:
    """Prepare nothing."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One row of the table."""

    name: str
    run: Callable[[Path], None]
    prepare: Callable[[Path], None] = nothing
    cold: bool = False
    """Whether the kernel's caches are dropped between `prepare` and `run`."""


def find(merged: Path) -> None:
    """Stat every entry of the tree."""
    _quiet("find", str(merged), "-xdev", "-printf", "%s")


def tar(merged: Path) -> None:
    """Read every byte of the tree into a pipe."""
    reader = subprocess.Popen(["tar", "-C", str(merged), "-cf", "-", "."], stdout=subprocess.PIPE)
    assert reader.stdout is not None
    while reader.stdout.read(MIB):
        pass
    if reader.wait(timeout=300):
        raise RuntimeError("tar failed")


def pack(merged: Path) -> None:
    """Make the archive that `untar` unpacks, beside the merged directory."""
    archive = merged.parent / "tree.tar"
    _quiet("tar", "-C", str(merged / "usr"), "-cf", str(archive), "lib", "bin")


def untar(merged: Path) -> None:
    """Unpack some thousand files into a new directory."""
    target = merged / "unpacked"
    target.mkdir()
    _quiet("tar", "-C", str(target), "-xf", str(merged.parent / "tree.tar"))


def pack_and_untar(merged: Path) -> None:
    pack(merged)
    untar(merged)


def remove_upper(merged: Path) -> None:
    """Remove a tree of new files."""
    shutil.rmtree(merged / "unpacked")


def remove_lower(merged: Path) -> None:
    """Remove a tree that the image holds."""
    shutil.rmtree(merged / "usr" / "share")


def create_small(merged: Path) -> None:
    """Create small files in one directory."""
    target = merged / "small"
    target.mkdir()
    for number in range(SMALL_FILES):
        (target / f"file-{number}").write_bytes(b"x" * 1000)


def read_small(merged: Path) -> None:
    """Open, read and close small files."""
    for number in range(SMALL_FILES):
        (merged / "small" / f"file-{number}").read_bytes()


def append_lower(merged: Path) -> None:
    """Append a byte to files of the image: one copy-up each."""
    changed = 0
    for directory, _, names in os.walk(merged / "usr"):
        for name in names:
            path = Path(directory, name)
            if path.is_symlink() or not path.is_file():
                continue
            with path.open("ab") as file:
                file.write(b"x")
            changed += 1
            if changed == APPENDED_FILES:
                return


def change_owner(merged: Path) -> None:
    """Change the owner of everything in the image's /usr/share."""
    _quiet("chown", "-hR", "1:1", str(merged / "usr" / "share"))


def write_sequential(merged: Path) -> None:
    """Write one large file and make it durable."""
    block = os.urandom(MIB)
    with (merged / "large").open("wb", buffering=0) as file:
        for _ in range(SEQUENTIAL_BYTES // MIB):
            file.write(block)
        os.fsync(file.fileno())


def read_sequential(merged: Path) -> None:
    """Read one large file."""
    with (merged / "large").open("rb", buffering=0) as file:
        while file.read(MIB):
            pass


def write_random(merged: Path) -> None:
    """Overwrite blocks of one large file in a fixed random order, then make them durable."""
    block = os.urandom(RANDOM_BLOCK_BYTES)
    descriptor = os.open(merged / "large", os.O_WRONLY)
    try:
        for position in _positions():
            os.pwrite(descriptor, block, position)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_random(merged: Path) -> None:
    """Read blocks of one large file in a fixed random order."""
    descriptor = os.open(merged / "large", os.O_RDONLY)
    try:
        for position in _positions():
            os.pread(descriptor, RANDOM_BLOCK_BYTES, position)
    finally:
        os.close(descriptor)


WORKLOADS = (
    Workload("find, cold", find, cold=True),
    Workload("find, warm", find, prepare=find),
    Workload("tar to a pipe, cold", tar, cold=True),
    Workload("tar to a pipe, warm", tar, prepare=tar),
    Workload("untar", untar, prepare=pack),
    Workload("rm -rf, new files", remove_upper, prepare=pack_and_untar),
    Workload("rm -rf, image files", remove_lower),
    Workload(f"create {SMALL_FILES} small files", create_small),
    Workload(f"read {SMALL_FILES} small files", read_small, prepare=create_small),
    Workload(f"append to {APPENDED_FILES} image files", append_lower),
    Workload("chown -R, image files", change_owner),
    Workload("sequential write 256 MiB + fsync", write_sequential),
    Workload("sequential read 256 MiB, cold", read_sequential, prepare=write_sequential, cold=True),
    Workload("sequential read 256 MiB, warm", read_sequential, prepare=write_sequential),
    Workload(f"random write {RANDOM_BLOCKS} x 4 KiB + fsync", write_random, write_sequential),
    Workload(f"random read {RANDOM_BLOCKS} x 4 KiB, warm", read_random, write_sequential),
)


def _positions() -> list[int]:
    source = random.Random(1)
    blocks = SEQUENTIAL_BYTES // RANDOM_BLOCK_BYTES
    return [source.randrange(blocks) * RANDOM_BLOCK_BYTES for _ in range(RANDOM_BLOCKS)]


def _quiet(*argv: str) -> None:
    subprocess.run(argv, check=True, timeout=600, stdout=subprocess.DEVNULL)
