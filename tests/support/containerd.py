"""A containerd of one's own, for tests, the demo and benchmarks: private root, state and socket.

    with snapfs daemon `daemon` running:
        with containerd.running(base, {"snapfs": daemon.address}) as engine:
            engine.load(image.write(base / "image.tar"), snapshotter="snapfs")
            print(engine.run(image.name, "one", "cat", "/etc/issue", snapshotter="snapfs"))

`snapshotters` maps proxy stanzas to sockets; containerd's own overlayfs is always there. The
command line is `engine.ctr(...)`. Everything that was started is ended by its pid at the end, and
what is mounted below `base` unmounted. Needs root, containerd, runc.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
from snapfs_containerd import install, mount_pb2, snapshots_pb2_grpc
from snapfs_containerd import snapshots_pb2 as pb

from tests.support.daemon import clear, eventually

NAMESPACE = f"snapfs-test-{os.getpid()}"
"""runc keeps the containers of a namespace in one place for all containerds of the machine."""
IN_NAMESPACE = (("containerd-namespace", NAMESPACE),)
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
CALL_TIMEOUT_S = 300.0

_SAID = "/dev/said"
"""On a container's own /dev, so that it leaves no trace in a snapshot."""

_CONFIG = """\
version = 2
root = "{base}/root"
state = "{base}/state"
# Nothing that looks at the machine's own containers, network or kernel modules.
disabled_plugins = [
  "io.containerd.grpc.v1.cri",
  "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]

[grpc]
  address = "{base}/containerd.sock"

[ttrpc]
  address = "{base}/containerd.sock.ttrpc"

[plugins."io.containerd.gc.v1.scheduler"]
  schedule_delay = "0s"
  startup_delay = "1ms"
"""


class Containerd:
    """One containerd; configuration, data, socket and log are below `base`."""

    def __init__(self, base: Path, snapshotters: Mapping[str, Path]) -> None:
        self.base = base
        self.socket = base / "containerd.sock"
        self.config = base / "config.toml"
        self.log = base / "containerd.log"
        self._snapshotters = dict(snapshotters)
        self._process: subprocess.Popen[bytes] | None = None

    def configure(self) -> None:
        """Write the configuration; `start` does it where there is none."""
        self.base.mkdir(parents=True, exist_ok=True)
        self.config.write_text(_CONFIG.format(base=self.base))
        for name, address in self._snapshotters.items():
            install.install(self.config, address, name=name)

    def start(self) -> None:
        """Start, and wait until it answers."""
        if not self.config.exists():
            self.configure()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["containerd", "--config", self.config, "--log-level", "debug"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        eventually(self._answers, timeout_s=START_TIMEOUT_S, what=f"containerd ({self.log})")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()[-4000:]
        return self.ctr("version", check=False).returncode == 0

    def stop(self) -> None:
        """End it by its pid; containers and their shims outlive it, as they should."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(STOP_TIMEOUT_S)
            self._process = None

    def ctr(
        self, *arguments: str | Path, check: bool = True, timeout_s: float = CALL_TIMEOUT_S
    ) -> subprocess.CompletedProcess[bytes]:
        """Run `ctr ARGUMENTS` against it; with `check`, a failure shows what ctr said."""
        done = subprocess.run(
            ["ctr", "--address", self.socket, "--namespace", NAMESPACE, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
        )
        if check:
            said = f"{done.args}: {done.stderr.decode(errors='replace')}"
            assert done.returncode == 0, f"{said}\n{self._tail()}"
        return done

    def _tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def load(self, archive: Path, *, snapshotter: str) -> None:
        """Import an image archive and unpack it."""
        self.ctr("images", "import", "--snapshotter", snapshotter, archive)

    # What a program prints goes to a file of the host. On a busy machine ctr 1.6 loses the end of
    # a container's standard output, with every snapshotter: it may leave before it has read it.

    def run(self, image: str, name: str, *command: str, snapshotter: str) -> str:
        """Run a command in a container until it ends; return what it printed."""
        self.ctr(
            *("run", "--rm", "--snapshotter", snapshotter, *self._hearing(name)),
            *(image, name, *_saying(name, command)),
        )
        return self._said(name, name)

    def run_labelled(
        self, image: str, name: str, *command: str, label: str, snapshotter: str
    ) -> str:
        """As `run`, with a label on the container's snapshot."""
        self.ctr(
            *("run", "--rm", "--snapshotter", snapshotter, "--snapshotter-label", label),
            *(*self._hearing(name), image, name, *_saying(name, command)),
        )
        return self._said(name, name)

    def run_detached(self, image: str, name: str, *command: str, snapshotter: str) -> None:
        """Start a container that stays."""
        self.ctr(
            *("run", "--detach", "--snapshotter", snapshotter, *self._hearing(name)),
            *(image, name, *command),
        )

    def exec(self, name: str, *command: str) -> str:
        """Run a command in a container that runs; return what it printed."""
        exec_id = f"exec-{os.urandom(4).hex()}"
        self.ctr("tasks", "exec", "--exec-id", exec_id, name, *_saying(exec_id, command))
        return self._said(name, exec_id)

    def _hearing(self, name: str) -> tuple[str, str]:
        """Return the options that show a container where to write what it says."""
        directory = self.base / "said" / name
        directory.mkdir(parents=True, exist_ok=True)
        return "--mount", f"type=bind,src={directory},dst={_SAID},options=rbind:rw"

    def _said(self, name: str, what: str) -> str:
        return (self.base / "said" / name / what).read_text()

    def end(self, name: str) -> None:
        """Kill a container's task and wait until it is gone; the container stays."""
        self.ctr("tasks", "kill", "--signal", "SIGKILL", name)
        self.ctr("tasks", "delete", "--force", name, check=False)
        eventually(lambda: name not in self.tasks(), timeout_s=60, what=f"the end of task {name}")

    def remove(self, name: str) -> None:
        """Remove a container that has no task, with its snapshot."""
        self.ctr("containers", "delete", name)

    def tasks(self) -> list[str]:
        return self.ctr("tasks", "list", "--quiet").stdout.decode().split()

    def containers(self) -> list[str]:
        return self.ctr("containers", "list", "--quiet").stdout.decode().split()

    def images(self) -> list[str]:
        return self.ctr("images", "list", "--quiet").stdout.decode().split()

    def snapshots(self, snapshotter: str) -> dict[str, str]:
        """Return the kind of each snapshot."""
        lines = self.ctr("snapshots", "--snapshotter", snapshotter, "list").stdout.decode()
        rows = (line.split() for line in lines.splitlines()[1:])
        return {row[0]: row[-1] for row in rows}

    def plugins(self) -> dict[str, str]:
        """Return the state of each snapshotter plugin."""
        lines = self.ctr("plugins", "list").stdout.decode().splitlines()
        rows = (line.split() for line in lines)
        return {row[1]: row[-1] for row in rows if row[0] == "io.containerd.snapshotter.v1"}

    def remove_everything(self) -> None:
        """Delete all containers and images, and collect the garbage."""
        for name in self.tasks():
            self.end(name)
        for name in self.containers():
            self.remove(name)
        for name in self.images():
            self.ctr("images", "remove", "--sync", name)

    @contextmanager
    def viewed(self, parent: str, target: Path, *, snapshotter: str) -> Iterator[Path]:
        """A view of a committed snapshot, mounted at `target`.

        Asked for over gRPC: `ctr snapshots view` makes one that garbage collection may take.
        """
        target.mkdir(parents=True, exist_ok=True)
        key = f"look-{target.name}"
        with self._snapshots_service() as service:
            made = service.View(
                pb.ViewSnapshotRequest(
                    snapshotter=snapshotter,
                    key=key,
                    parent=parent,
                    labels={"containerd.io/gc.root": "test"},
                ),
                metadata=IN_NAMESPACE,
                timeout=CALL_TIMEOUT_S,
            )
            try:
                with mounted(made.mounts, target):
                    yield target
            finally:
                service.Remove(
                    pb.RemoveSnapshotRequest(snapshotter=snapshotter, key=key),
                    metadata=IN_NAMESPACE,
                    timeout=CALL_TIMEOUT_S,
                )

    def prepare(self, key: str, parent: str, *, snapshotter: str) -> list[mount_pb2.Mount]:
        """Make an active snapshot that garbage collection leaves alone; return its mounts."""
        request = pb.PrepareSnapshotRequest(
            snapshotter=snapshotter,
            key=key,
            parent=parent,
            labels={"containerd.io/gc.root": "test"},
        )
        with self._snapshots_service() as service:
            made = service.Prepare(request, metadata=IN_NAMESPACE, timeout=CALL_TIMEOUT_S)
        return list(made.mounts)

    def view(self, key: str, parent: str, *, snapshotter: str) -> list[mount_pb2.Mount]:
        """Make a view that garbage collection leaves alone; return its mounts."""
        request = pb.ViewSnapshotRequest(
            snapshotter=snapshotter,
            key=key,
            parent=parent,
            labels={"containerd.io/gc.root": "test"},
        )
        with self._snapshots_service() as service:
            made = service.View(request, metadata=IN_NAMESPACE, timeout=CALL_TIMEOUT_S)
        return list(made.mounts)

    @contextmanager
    def _snapshots_service(self) -> Iterator[snapshots_pb2_grpc.SnapshotsStub]:
        with grpc.insecure_channel(f"unix:{self.socket}") as channel:
            yield snapshots_pb2_grpc.SnapshotsStub(channel)


@contextmanager
def mounted(mounts: Iterable[mount_pb2.Mount], target: Path) -> Iterator[None]:
    """Mount as a snapshotter said, on a directory, for the block."""
    (mount,) = mounts
    subprocess.run(
        ["mount", "-t", mount.type, "-o", ",".join(mount.options), mount.source, target],
        check=True,
        timeout=CALL_TIMEOUT_S,
        # By mount(2), as containerd does: fsconfig(2) takes 255 bytes of an option.
        env={**os.environ, "LIBMOUNT_FORCE_MOUNT2": "always"},
    )
    try:
        yield
    finally:
        subprocess.run(["umount", target], check=True, timeout=CALL_TIMEOUT_S)


def _saying(what: str, command: Sequence[str]) -> tuple[str, ...]:
    return ("/bin/sh", "-c", f'exec "$0" "$@" >{_SAID}/{what}', *command)


@contextmanager
def running(base: Path, snapshotters: Mapping[str, Path]) -> Iterator[Containerd]:
    """A started containerd, ended with its shims and mounts at the end, however that comes."""
    engine = Containerd(base, snapshotters)
    try:
        engine.start()
        yield engine
        for name in engine.tasks():
            engine.end(name)
        engine.stop()
    finally:
        clear(base)
        _remove_control_groups()


def _remove_control_groups() -> None:
    """Remove the parents of our containers' control groups, which runc leaves."""
    for parent in Path("/sys/fs/cgroup").glob(f"*/{NAMESPACE}"):
        with suppress(OSError):  # another containerd of ours uses it
            parent.rmdir()
