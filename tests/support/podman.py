"""Debian's podman and buildah as root, with a storage of their own below a directory.

Everything that they keep is below `base`, their control groups below one of ours. runc and not
crun: crun 1.8 refuses machines that mount both versions of control groups.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.daemon import clear

TIMEOUT_S = 120.0
CACHE = Path("/var/lib/containers/cache")
"""Where the two note which blobs they have seen; they have no option for that."""

_CONTAINERS = """\
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runc"
tmp_dir = "{base}/tmp_dir"
[network]
network_config_dir = "{base}/networks"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
"""
_STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{base}/graph"
runroot = "{base}/run"
[storage.options.overlay]
mount_program = "{program}"
"""


class Podman:
    """One private storage, and the programs that work on it."""

    def __init__(self, base: Path, program: Path, mount_options: str = "nodev") -> None:
        self.base = base
        self._program = program
        self._group = f"/snapfs-test-podman-{os.getpid()}"
        for name in ("tmp", "networks"):
            (base / name).mkdir(parents=True)
        self._mount_options = mount_options
        values = {"base": base, "program": program}
        (base / "containers.conf").write_text(_CONTAINERS.format(**values))
        (base / "storage.conf").write_text(_STORAGE.format(**values))

    def podman(self, *arguments: object, check: bool = True) -> str:
        """Run `podman ARGUMENTS`; return what it printed."""
        return self._run("podman", *arguments, check=check)

    def buildah(self, *arguments: object) -> str:
        """Run `buildah ARGUMENTS`; return what it printed."""
        return self._run("buildah", *arguments)

    def run(self, *arguments: object) -> str:
        """Run a container without a network that may make devices; return what it printed."""
        how = ("--network=none", "--cap-add=mknod", f"--cgroup-parent={self._group}")
        return self.podman("run", *how, *arguments)

    def _run(self, command: str, *arguments: object, check: bool = True) -> str:
        how = f"overlay.mountopt={self._mount_options}"
        argv = [
            *(command, "--root", self.base / "graph", "--runroot", self.base / "run"),
            *("--storage-driver", "overlay"),
            *("--storage-opt", f"overlay.mount_program={self._program}"),
            *("--storage-opt", f'"{how}"' if command == "buildah" else how),  # it reads a CSV line
            *arguments,
        ]
        done = subprocess.run(
            list(map(str, argv)),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            cwd=self.base,
            env={
                **os.environ,
                "CONTAINERS_CONF": str(self.base / "containers.conf"),
                "CONTAINERS_STORAGE_CONF": str(self.base / "storage.conf"),
                "TMPDIR": str(self.base / "tmp"),
            },
        )
        assert not check or not done.returncode, f"{command} {arguments}: {done.stderr}"
        return done.stdout

    def close(self) -> None:
        """End what runs and forget control groups, whatever a test did."""
        self.podman("rm", "--all", "--force", "--time", 0, check=False)
        clear(self.base)
        for parent in Path("/sys/fs/cgroup").glob(f"*{self._group}"):
            for group, _, _ in os.walk(parent, topdown=False):
                os.rmdir(group)


@contextmanager
def running(program: Path, mount_options: str = "nodev") -> Iterator[Podman]:
    """A storage for the block, with nothing left of it afterwards.

    In /tmp, whatever directory tests have: podman refuses a path over 50 characters for its state.
    """
    had_cache = CACHE.exists()
    base = Path(tempfile.mkdtemp(prefix="snapfs-podman-", dir="/tmp"))
    base.chmod(0o755)  # a container with mapped owners goes through it
    podman = Podman(base, program, mount_options)
    try:
        yield podman
    finally:
        podman.close()
        shutil.rmtree(base)
        if not had_cache:
            shutil.rmtree(CACHE, ignore_errors=True)
