"""The file systems that the benchmarks hold side by side, all over one and the same lower tree.

`kernel overlayfs`, Debian's `fuse-overlayfs`, and each lane of a `snapfs serve` by its name. The
lower tree is a committed snapshot's directory, so all read the same files of the same disk.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from snapfs.house import LANES
from tests.support import daemon
from tests.support.daemon import RunningDaemon, eventually

LANE_LABEL = "containerd.io/snapshot/snapfs.lane"
BASE = "base"
FUSE_OVERLAYFS = "fuse-overlayfs"
OVERLAYFS = "overlayfs"
_numbers = itertools.count(1)


class System(Protocol):
    """One column of the tables."""

    name: str
    writable: bool

    def mounted(self) -> contextlib.AbstractContextManager[Path]:
        """A fresh merged tree over the lower one; gone, with what was written, afterwards."""

    def worker(self) -> int | None:
        """Process id of the server behind what was mounted last, if there is one."""

    def servers(self) -> list[int]:
        """Process ids of all that serve what is mounted."""

    def python_requests(self) -> Counter[str]:
        """Requests that its server has not answered in C since it began, by opcode; none where that
        is not known."""


@dataclass
class Overlayfs:
    """The kernel's overlayfs with its defaults, as containerd's own snapshotter mounts it."""

    lower: Path
    scratch: Path
    name: str = OVERLAYFS
    writable: bool = True

    @contextlib.contextmanager
    def mounted(self) -> Iterator[Path]:
        with _directories(self.scratch) as (options, merged):
            options = f"lowerdir={self.lower},{options}"
            _run("mount", "-t", "overlay", "overlay", "-o", options, merged)
            with _unmounting(merged):
                yield merged

    def worker(self) -> int | None:
        return None

    def servers(self) -> list[int]:
        return []

    def python_requests(self) -> Counter[str]:
        return Counter()


@dataclass
class FuseOverlayfs:
    """fuse-overlayfs with its defaults, as podman runs it."""

    lower: Path
    scratch: Path
    name: str = FUSE_OVERLAYFS
    writable: bool = True
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @contextlib.contextmanager
    def mounted(self) -> Iterator[Path]:
        with _directories(self.scratch) as (options, merged):
            argv = ["fuse-overlayfs", "-f", "-o", f"lowerdir={self.lower},{options}", str(merged)]
            # It says at each start that it does not know an option of its own.
            process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
            self._processes.append(process)
            eventually(lambda: os.path.ismount(merged), what="fuse-overlayfs's mount")
            try:
                with _unmounting(merged):
                    yield merged
            finally:
                self._processes.remove(process)
                _end(process)

    def worker(self) -> int | None:
        return self._processes[-1].pid if self._processes else None

    def servers(self) -> list[int]:
        return [it.pid for it in self._processes]

    def python_requests(self) -> Counter[str]:
        return Counter()


@dataclass
class Lane:
    """A snapshot in a lane, bind-mounted as a container's root is."""

    serve: RunningDaemon
    name: str
    scratch: Path
    writable: bool = True

    @contextlib.contextmanager
    def mounted(self) -> Iterator[Path]:
        key = f"bench-{next(_numbers)}"
        base = Path(tempfile.mkdtemp(dir=self.scratch))
        merged = base / "merged"
        merged.mkdir()
        (mount,) = self.serve.json(
            *("snapshot", "prepare" if self.writable else "view", key),
            *(("--parent", BASE) if self.writable else (BASE,)),
            *("--label", f"{LANE_LABEL}={self.name}"),
        )
        layer = Path(self.serve.json("snapshot", "info", key)["layer"])
        _run("mount", "--bind", mount["source"], merged)
        try:
            with _unmounting(merged):
                yield merged
        finally:
            self.serve.run("snapshot", "remove", key)
            # It is deleted in the background, which the next row is not to feel.
            eventually(lambda: not layer.exists(), timeout_s=120, what="the layer's end")
            shutil.rmtree(base)

    def worker(self) -> int | None:
        pid: int | None = self._status()["worker_pid"]
        return pid

    def servers(self) -> list[int]:
        worker, service = self.worker(), self.serve.process
        return [*([worker] if worker else []), *([service.pid] if service else [])]

    def python_requests(self) -> Counter[str]:
        counts = self._status()["requests"]
        return Counter({name.lower(): it["python"] for name, it in counts.items()})

    def _status(self) -> dict[str, Any]:
        lanes: list[dict[str, Any]] = self.serve.json("status")["lanes"]
        return next(it for it in lanes if it["name"] == self.name)


@contextlib.contextmanager
def snapfs_serving(
    base: Path, archive: Path, fill: Callable[[Path], None] | None = None
) -> Iterator[RunningDaemon]:
    """A `snapfs serve` that has the unpacked archive as the committed snapshot BASE.

    `fill` may put more into its layer.
    """
    base.mkdir()
    with daemon.running(base, arguments=["--log-level", "info"]) as serve:
        serve.run("snapshot", "prepare", "extract-base")
        upper = Path(serve.json("snapshot", "info", "extract-base")["layer"])
        _run("tar", "-C", upper, "-xf", archive)
        if fill is not None:
            fill(upper)
        serve.run("snapshot", "commit", "extract-base", BASE)
        yield serve


def all_systems(
    serve: RunningDaemon, scratch: Path, lanes: Sequence[str] | None = None
) -> list[System]:
    """Return the peers that this machine has, the reference first, then the lanes."""
    lower = Path(serve.json("snapshot", "info", BASE)["layer"])
    found: list[System] = [Overlayfs(lower, scratch)]
    if shutil.which("fuse-overlayfs"):
        found.append(FuseOverlayfs(lower, scratch))
    for name, mode in LANES.items():
        if not lanes or name in lanes:
            found.append(Lane(serve, name, scratch, mode.is_writable))
    return found


def processor_seconds(pid: int | None) -> float:
    """Return what a process has used of the processors so far; none has used none."""
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def fuse_overlayfs_version() -> str:
    """Return what `fuse-overlayfs --version` calls itself."""
    said = subprocess.run(
        ["fuse-overlayfs", "--version"], capture_output=True, text=True, timeout=60
    ).stdout
    found = re.search(r"version ([\d.]+)", said)
    return f"fuse-overlayfs {found[1] if found else 'of unknown version'}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a server that was unmounted; a mount name space that somebody made
    meanwhile may hold on to it."""
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _directories(scratch: Path) -> Iterator[tuple[str, Path]]:
    base = Path(tempfile.mkdtemp(dir=scratch))
    for name in ("upper", "work", "merged"):
        (base / name).mkdir()
    try:
        yield f"upperdir={base}/upper,workdir={base}/work", base / "merged"
    finally:
        shutil.rmtree(base)


@contextlib.contextmanager
def _unmounting(merged: Path) -> Iterator[None]:
    try:
        yield
    finally:
        _run("umount", merged)


def _run(*argv: str | Path) -> None:
    subprocess.run(argv, check=True, timeout=300)
