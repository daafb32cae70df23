"""A real lane over a real root, in a test's directory, with every way to get rid of it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from snapfs.fuse import channel, mounts
from snapfs.fuse.control import WorkerStatus
from snapfs.fuse.lanes import Lanes
from snapfs.fuse.modes import Mode
from snapfs.fuse.supervisor import Lane
from snapfs.fuse.watching import WATCHDOG_S
from snapfs.model import SnapshotId
from snapfs.snapshots import Snapshotter
from tests.support.daemon import clear, eventually, processes_below
from tests.support.dentries import drop_dentries_of

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0
KILLED_S = 20.0

Fill = Callable[[Path], None]


class House:
    """A root, its snapshotter and a lane that shows its snapshots."""

    def __init__(
        self,
        base: Path,
        *,
        root: Path | None = None,
        mode: Mode = Mode.PASSTHROUGH,
        metacopy: bool = True,
        watchdog_s: float = WATCHDOG_S,
    ) -> None:
        self.base = base
        self.metacopy = metacopy
        self.watchdog_s = watchdog_s
        self.mode = mode
        self.root = root or base / "root"
        self.mountpoint = base / "mnt"
        self.door = base / "lanes" / "test.sock"
        self._open()
        self._names = 0

    @property
    def passes_through(self) -> bool:
        """Whether the kernel reads and writes files of the layers by itself."""
        return self.mode is not Mode.NO_OPEN and channel.loaded()

    def _open(self) -> None:
        self.lane = Lane(
            "test",
            self.mountpoint,
            self.root,
            door=self.door,
            mode=self.mode,
            log_level="debug",
            metacopy=self.metacopy,
            watchdog_s=self.watchdog_s,
        )
        self.lanes = Lanes.of(
            self.lane, start_timeout_s=START_TIMEOUT_S, stop_timeout_s=STOP_TIMEOUT_S
        )
        self.snapshots = Snapshotter(self.root, trees=self.lanes)

    def restart(self) -> None:
        """Stop, and start as another control process would."""
        self.stop()
        self.snapshots.close()
        self._open()
        self.start()

    def start(self) -> None:
        self.lane.start(timeout_s=START_TIMEOUT_S)
        _started.add(self.mountpoint)

    def stop(self) -> None:
        _started.discard(self.mountpoint)
        self.lane.stop(timeout_s=STOP_TIMEOUT_S)

    def name(self) -> str:
        self._names += 1
        return f"s{self._names}"

    def layer(self, snapshot_id: SnapshotId) -> Path:
        """The directory with a snapshot's own files."""
        return self.root / "layers" / str(snapshot_id) / "fs"

    def base_layers(self, *fills: Fill) -> str:
        """Commit a chain, lowest layer first, each filled directly; return its top's name."""
        parent = ""
        for fill in fills:
            key = self.name()
            self.snapshots.prepare(key, parent)
            fill(self.layer(self.snapshots.stat(key).id))
            parent = self.name()
            self.snapshots.commit(key, parent)
        return parent

    def active(self, *fills: Fill, key: str | None = None) -> Tree:
        """Prepare an active snapshot on a new chain."""
        key = key or self.name()
        self.snapshots.prepare(key, self.base_layers(*fills))
        return Tree(self, key)

    def on(self, parent: str) -> Tree:
        """Prepare an active snapshot on a committed one."""
        key = self.name()
        self.snapshots.prepare(key, parent)
        return Tree(self, key)

    def view(self, parent: str) -> Tree:
        key = self.name()
        self.snapshots.view(key, parent)
        return Tree(self, key)

    def worker(self) -> WorkerStatus:
        """Ask the worker how it is; wait for one that is being restarted."""
        status: WorkerStatus = eventually(lambda: self.lane.status().worker, what="the worker")
        return status

    def kill_worker(self) -> int:
        """Kill the worker as a crash would; return the pid it had."""
        pid = self.worker().pid
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not Path(f"/proc/{pid}").exists(), what="the worker's end")
        return pid


class Tree:
    """An active or view snapshot as the lane shows it."""

    def __init__(self, house: House, key: str) -> None:
        self.house = house
        self.key = key
        self.id = house.snapshots.stat(key).id
        self.path = house.lane.mountpoint(self.id)

    @property
    def upper(self) -> Path:
        return self.house.layer(self.id)

    def __truediv__(self, name: str) -> Path:
        return self.path / name


@contextmanager
def house(
    base: Path,
    mode: Mode = Mode.PASSTHROUGH,
    *,
    root: Path | None = None,
    metacopy: bool = True,
    watchdog_s: float = WATCHDOG_S,
) -> Iterator[House]:
    """A running house; whatever happened in it, nothing of it is left."""
    made = House(base, mode=mode, root=root, metacopy=metacopy, watchdog_s=watchdog_s)
    try:
        made.start()
        yield made
    finally:
        try:
            made.stop()
        finally:
            made.snapshots.close()
            abort(base)
            clear(base)


@contextmanager
def bind_mount(source: Path, target: Path) -> Iterator[Path]:
    """What a container runtime does with an answer of Mounts."""
    target.mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", source, target], check=True)
    try:
        yield target
    finally:
        mounts.unmount(target, mounts.MNT_DETACH)


def abort(base: Path) -> None:
    """End all workers and FUSE connections below a directory: who waits gets an error."""
    for pid in processes_below(base):
        if b"snapfs.fuse.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    for found in reversed(mounts.mount_table()):
        if found.path.startswith(f"{base}/") and found.type.startswith("fuse."):
            mounts.unmount(Path(found.path), mounts.MNT_FORCE | mounts.MNT_DETACH)


@contextmanager
def aborting_after(base: Path, timeout_s: float) -> Iterator[None]:
    """Break a test that is stuck in a system call on a mount, which no signal can."""
    timer = threading.Timer(timeout_s, abort, (base,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


_started: set[Path] = set()
"""Where lanes of this process are mounted."""


def drop_dentries() -> None:
    """Make the kernel forget names and inodes that nobody uses, of our lanes; of all file systems
    when there are none."""
    for mountpoint in _started:
        drop_dentries_of(mountpoint)
    if not _started:
        Path("/proc/sys/vm/drop_caches").write_text("2")


@contextmanager
def killing_at(house: House, call: str, when: int, calls: Path) -> Iterator[None]:
    """The worker is killed when it makes a system call for the `when`th time from now on, which it
    does in the block; `calls` is where those are written to."""
    worker = house.worker().pid
    killer = subprocess.Popen(
        ["strace", "-f", "-p", str(worker), "-o", calls, "-e", f"trace={call}",
         "-e", f"inject={call}:signal=KILL:when={when}"],
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        assert killer.stderr is not None
        assert "attached" in killer.stderr.readline()
        yield
        assert house.worker().pid != worker, calls.read_text()
    finally:
        killer.send_signal(signal.SIGKILL)
        killer.wait(KILLED_S)
        killer.stderr.close()  # type: ignore[union-attr]
