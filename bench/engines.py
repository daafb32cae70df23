"""The containerd and the snapfs that the benchmarks drive, and the snapshotters of the two."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import ending
from tests.support import containerd, daemon

SNAPSHOTTERS = ("overlayfs", "snapfs")
"""containerd's own first: it is the reference."""
NO_OPEN = "snapfs-no-open"
"""One whose containers are in the lane without opens."""


@dataclass(frozen=True, slots=True)
class Engines:
    """A running containerd that has a snapfs as a snapshotter, and a snapfs beside."""

    scratch: Path
    alone: daemon.RunningDaemon
    """Another snapfs, which no containerd knows: its garbage collector would take what it finds."""
    containerd: containerd.Containerd


@contextlib.contextmanager
def running(*, durability: str = "full") -> Iterator[Engines]:
    """Start all on a disk of the machine, not on tmpfs, and end them."""
    with (
        ending.scratch_directory() as scratch,
        _snapfs(scratch / "alone", durability) as alone,
        _snapfs(scratch / "snapfs", durability) as serve,
        _snapfs(scratch / NO_OPEN, durability, SNAPFS_LANES_ACTIVE="no-open") as other,
        containerd.running(
            scratch / "containerd", {"snapfs": serve.address, NO_OPEN: other.address}
        ) as engine,
    ):
        yield Engines(scratch, alone, engine)


def _snapfs(
    base: Path, durability: str, **environ: str
) -> contextlib.AbstractContextManager[daemon.RunningDaemon]:
    base.mkdir()
    return daemon.running(
        base,
        arguments=["--log-level", "info"],
        environ={"SNAPFS_DURABILITY": durability, **environ},
    )
