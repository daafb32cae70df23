"""The file systems that are compared, each with the same layers: a lower and an upper directory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from snapfs.fuse import mounts
from tests.support import lanes
from tests.support.daemon import eventually
from tests.support.lanes import bind_mount
from tests.support.overlay import kernel

Fill = Callable[[Path], None]
"""Makes a layer before it is mounted."""

KERNEL_OPTIONS = "index=off"
"""As containerd and docker mount."""
MOUNT_TIMEOUT_S = 20.0


class Ground(Protocol):
    """A mounted file system to try things on."""

    path: Path
    other: Path
    """Another one of its kind."""
    readonly: Path
    """The lower layer alone, which cannot be changed."""

    def remount(self) -> None:
        """Unmount everywhere and mount again."""

    def crash(self) -> None:
        """Kill who serves it, if anybody does; return when it would be served again."""


class Base:
    """Three mounts that `_mount` makes, and unmounts in the other order."""

    def __init__(self, base: Path, lower: Fill, upper: Fill) -> None:
        self.base = base
        self.path, self.other, self.readonly = (base / name for name in ("mnt", "other", "ro"))
        for name in ("mnt", "other", "ro", "low", "up", "work", "up2", "work2", "empty"):
            (base / name).mkdir(parents=True)
        self.low, self.up = base / "low", base / "up"
        lower(self.low)
        upper(self.up)
        self._mounted, self._beside = ExitStack(), ExitStack()

    def _mount(self, stack: ExitStack) -> None:
        """Mount `path`."""
        raise NotImplementedError

    def _mount_beside(self, stack: ExitStack) -> None:
        """Mount `other` and `readonly`."""
        raise NotImplementedError

    def mount(self) -> None:
        self._mount(self._mounted)
        self._mount_beside(self._beside)

    def close(self) -> None:
        self._beside.close()
        self._mounted.close()

    def remount(self) -> None:
        self._mounted.close()
        self._mount(self._mounted)

    def crash(self) -> None:
        """Nobody serves it."""


class Overlayfs(Base):
    def _mount(self, stack: ExitStack) -> None:
        self._overlay(stack, self.path, "")

    def _mount_beside(self, stack: ExitStack) -> None:
        self._overlay(stack, self.other, "2")
        lowers = [self.low, self.base / "empty"]
        stack.enter_context(kernel.overlay(self.readonly, lowers, options=""))

    def _overlay(self, stack: ExitStack, target: Path, which: str) -> None:
        up, work = self.base / f"up{which}", self.base / f"work{which}"
        mounted = kernel.overlay(target, [self.low], up, work, options=KERNEL_OPTIONS)
        stack.enter_context(mounted)


class Command(Base):
    """A program that takes fuse-overlayfs's options and stays in the foreground with -f."""

    program: str | Path

    def _mount(self, stack: ExitStack) -> None:
        self.server = self._start(stack, self.path, self._layers(""))

    def _mount_beside(self, stack: ExitStack) -> None:
        self._start(stack, self.other, self._layers("2"))
        self._start(stack, self.readonly, f"lowerdir={self.low}")

    def _layers(self, which: str) -> str:
        up, work = self.base / f"up{which}", self.base / f"work{which}"
        return f"lowerdir={self.low},upperdir={up},workdir={work},dev,suid"

    def _start(self, stack: ExitStack, target: Path, layers: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [self.program, "-f", "-o", layers, target],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(_end, process)
        stack.callback(_detach, target)
        eventually(lambda: mounts.mounted_at(target), timeout_s=MOUNT_TIMEOUT_S, what="the mount")
        return process

    def crash(self) -> None:
        self.server.kill()
        self.server.wait(MOUNT_TIMEOUT_S)


class FuseOverlayfs(Command):
    program = "fuse-overlayfs"


class SnapfsOverlay(Command):
    program = Path(sys.executable).with_name("snapfs-overlay")

    def _layers(self, which: str) -> str:
        return super()._layers(which) + ",redirect_dir=on"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a server whose mount is gone; kill one that hangs."""
    try:
        process.wait(MOUNT_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(MOUNT_TIMEOUT_S)


def _detach(target: Path) -> None:
    if mounts.mounted_at(target):
        mounts.unmount(target, 0 if is_served(target) else mounts.MNT_DETACH)


def is_served(target: Path) -> bool:
    """Whether there is somebody to ask: a dead server's mount stays until it is unmounted."""
    try:
        os.statvfs(target)
    except OSError:
        return False
    return bool(mounts.mounted_at(target))


class Snapfs:
    """A snapshot of the default lane, bind-mounted as a container runtime does it."""

    def __init__(self, base: Path, lower: Fill, upper: Fill) -> None:
        self._stack = ExitStack()
        self.path, self.other, self.readonly = (base / name for name in ("mnt", "other", "ro"))
        self._house = self._stack.enter_context(lanes.house(base / "house"))
        parent = self._house.base_layers(lower)
        trees = [self._house.on(parent), self._house.on(parent), self._house.view(parent)]
        upper(trees[0].upper)
        self._trees = dict(zip((self.path, self.other, self.readonly), trees, strict=True))
        self._binds = ExitStack()

    def mount(self) -> None:
        for target, tree in self._trees.items():
            self._binds.enter_context(bind_mount(tree.path, target))

    def remount(self) -> None:
        self._binds.close()
        self._house.restart()
        self.mount()

    def crash(self) -> None:
        self._house.kill_worker()
        self._house.worker()

    def close(self) -> None:
        self._binds.close()
        self._stack.close()


SYSTEMS = {
    "snapfs": Snapfs,
    "snapfs-overlay": SnapfsOverlay,
    "overlayfs": Overlayfs,
    "fuse-overlayfs": FuseOverlayfs,
}


@contextmanager
def ground(name: str, base: Path, lower: Fill, upper: Fill) -> Iterator[Ground]:
    """Fill the layers, mount them with one of SYSTEMS, unmount at the end."""
    made = SYSTEMS[name](base, lower, upper)
    try:
        made.mount()
        yield made
    finally:
        made.close()
