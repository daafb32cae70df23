"""What a benchmark's processes are charged for: a control group of their own (cgroups(7)).

The kernel charges memory to the group of who asked for it: anonymous pages, pages of files to who
read them first, and its own objects (inodes, dentries, open files, mounts, stacks, page tables) to
who caused them. So what else runs on the machine is not in it, as long as nobody drops all caches.
Either version of the memory controller will do; the second one only where the group can be made at
its top.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

SELF = Path("/proc/self")


@dataclass(frozen=True, slots=True)
class Charged:
    """Bytes that a group was charged for and has not given back."""

    page_cache: int
    """Of files and block devices; memory files, as memfds, are left out."""
    kernel: int


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """One control group, by its directory."""

    path: Path

    def charged(self) -> Charged:
        figures = _pairs((self.path / "memory.stat").read_text())
        v1 = self.path / "memory.kmem.usage_in_bytes"
        if v1.exists():
            return of_first_version(figures, int(v1.read_text()))
        return of_second_version(figures)


def of_first_version(figures: Mapping[str, int], kernel: int) -> Charged:
    """Read memory.stat of version 1, which does not say what the kernel's own objects take."""
    return Charged(figures["cache"] - figures["shmem"], kernel)


def of_second_version(figures: Mapping[str, int]) -> Charged:
    """Read memory.stat of version 2 (Linux 5.18)."""
    return Charged(figures["file"] - figures["shmem"], figures["kernel"])


@contextlib.contextmanager
def joined(name: str) -> Iterator[MemoryGroup]:
    """Be in a new group for the block, with all processes that are started in it; these have ended
    when it ends. RuntimeError where there is no memory controller."""
    before = _own()
    made = _place_of(name)
    made.mkdir()
    try:
        (made / "cgroup.procs").write_text("0")
        yield MemoryGroup(made)
    finally:
        (before / "cgroup.procs").write_text("0")
        made.rmdir()


def remove(name: str) -> None:
    """End a group that a killed process has left, if it has: all that was in it has ended."""
    with contextlib.suppress(FileNotFoundError, RuntimeError):
        _place_of(name).rmdir()


def _place_of(name: str) -> Path:
    """Return where the directory of a group is that this process makes."""
    return (_own() if _first_version() else _second_version()) / name


def _own() -> Path:
    """Return the group that this process is in."""
    first, groups = _first_version(), (SELF / "cgroup").read_text()
    line = r"^\d+:(?:.*,)?memory(?:,.*)?:/(.*)$" if first else r"^0::/(.*)$"
    found = re.search(line, groups, re.MULTILINE)
    if not found:
        raise RuntimeError("this process is in no memory control group")
    return (first or _second_version()) / found[1]


def _first_version() -> Path | None:
    """Return where the memory controller of version 1 is mounted, if it is."""
    return _mounted(r"cgroup \S+ (?:\S*,)?memory(?:,|$)")


def _second_version() -> Path:
    top = _mounted(r"cgroup2 ")
    if top is None or "memory" not in (top / "cgroup.subtree_control").read_text().split():
        raise RuntimeError("no memory control group can be made: see cgroups(7), memory")
    return top


def _mounted(kind: str) -> Path | None:
    line = rf"^\S+ \S+ \S+ \S+ (\S+) .* - {kind}"
    found = re.search(line, (SELF / "mountinfo").read_text(), re.MULTILINE)
    return Path(found[1]) if found else None


def _pairs(text: str) -> dict[str, int]:
    return {name: int(value) for name, value in map(str.split, text.splitlines())}
