"""snapfs, end to end, for a person to watch: `make demo`.

Starts a service and a containerd of its own in a temporary directory, makes an image from Debian
packages of this machine, runs a container on it, and takes everything down again. Nothing outside
the directory changes. Needs root; asks nothing.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from rich.console import Console

from tests.support import containerd
from tests.support.daemon import SNAPFS, RunningDaemon, clear, eventually, mounts_below
from tests.support.images import busybox_layer
from tests.support.oci import Image, Layer

PACKAGES = ("bash", "coreutils", "findutils", "sed", "grep")
IMAGE = "snapfs.demo/debian:1"
NAME = "snapfs"
CONTAINER = "demo"

console = Console(highlight=False, soft_wrap=True, emoji=False)


def main() -> None:
    """Run the demo; exit 1 with a message when something is not as it should be."""
    if os.geteuid() != 0:
        sys.exit("demo: mounts and containers need root; run it with sudo")
    began = time.monotonic()
    base = Path(tempfile.mkdtemp(prefix="snapfs-demo-"))
    try:
        Demo(base).run()
    finally:
        clear(base)
        subprocess.run(["rm", "-rf", "--one-file-system", base], check=True)
    console.print(f"\n[bold green]done[/] in {time.monotonic() - began:.0f} s; {base} is gone")


class Demo:
    """The acts, in order."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.daemon = RunningDaemon(base / "snapfs")
        self.daemon.base.mkdir()

    def run(self) -> None:
        with ExitStack() as stack:
            self._serve()
            self.engine = stack.enter_context(
                containerd.running(self.base / "containerd", {NAME: self.daemon.address})
            )
            self._import()
            self._run_container()
            self._look()
            self._kill_the_worker()
            self._restart_the_service()
            self._by_hand()
            self._remove()
        self.daemon.stop()
        self._nothing_left()

    def _serve(self) -> None:
        act("a service", "One process for metadata and gRPC, one worker for the FUSE mount.")
        shown("snapfs", *self.daemon.command()[1:], note="&")
        self.daemon.start()
        self._snapfs("status")

    def _import(self) -> None:
        act(
            "an image",
            f"A busybox layer and a layer of this machine's {', '.join(PACKAGES)}, as an OCI "
            "archive. A containerd of our own, with snapfs as proxy snapshotter, unpacks it.",
        )
        archive = Image(IMAGE, [busybox_layer(), debian_layer()]).write(self.base / "image.tar")
        self._ctr("images", "import", "--snapshotter", NAME, str(archive))
        self._snapfs("snapshot", "tree")

    def _run_container(self) -> None:
        act("a container", "It adds, changes and deletes; all of it goes to its own snapshot.")
        command = ("sleep", "3600")
        shown("ctr", "run", "--detach", "--snapshotter", NAME, IMAGE, CONTAINER, *command)
        self.engine.run_detached(IMAGE, CONTAINER, *command, snapshotter=NAME)
        self._exec("echo hello > /root/greeting; echo root:x:0:0::/:/bin/bash > /etc/passwd")
        self._exec("rm /usr/bin/sha512sum; cat /root/greeting; ls / | head -n 4")

    def _look(self) -> None:
        act("a look", "What stands on what, what is mounted, what the container changed.")
        self._snapfs("snapshot", "tree")
        self._snapfs("snapshot", "usage", self._key())
        self._snapfs("snapshot", "diff", self._key())

    def _kill_the_worker(self) -> None:
        act("a crash", "The worker dies; the service starts another under the same mount.")
        worker = self.daemon.worker_pid()
        shown("kill", "-9", str(worker))
        os.kill(worker, signal.SIGKILL)
        self._exec("echo still here >> /root/greeting; cat /root/greeting")
        eventually(lambda: self.daemon.worker_pid() != worker, what="another worker")
        self._snapfs("status")

    def _restart_the_service(self) -> None:
        act(
            "an upgrade",
            "The service stops and starts again, and adopts the worker that it left with the "
            "container. The container never notices.",
        )
        worker = self.daemon.worker_pid()
        shown("kill", str(self.daemon.pid))
        self.daemon.stop()
        self._exec("echo nobody serves gRPC now, and I write >> /root/greeting")
        shown("snapfs", *self.daemon.command()[1:], note="&")
        self.daemon.start()
        self._exec("cat /root/greeting")
        self._snapfs("status")
        if self.daemon.worker_pid() != worker:
            sys.exit("demo: the worker was not adopted")

    def _by_hand(self) -> None:
        act("an operator", "The same snapshots without containerd: mount, change, commit.")
        top = self._image_name()
        place = self.base / "place"
        place.mkdir()
        self._snapfs("mount", top, str(place), "--writable", "--key", "mine")
        shown("echo", "by hand", note=f"> {place}/note")
        (place / "note").write_text("by hand\n")
        self._snapfs("umount", str(place))
        self._snapfs("snapshot", "commit", "mine", "mine-1")
        self._snapfs("mount", "mine-1", str(place))
        self._show("cat", str(place / "note"))
        self._snapfs("umount", str(place))
        self._snapfs("snapshot", "tree", top)
        self._snapfs("snapshot", "remove", "mine-1")
        self._snapfs("fsck")

    def _remove(self) -> None:
        act("the end", "Container and image go; so do metadata, directories and mounts.")
        self.engine.end(CONTAINER)
        self._ctr("containers", "delete", CONTAINER)
        self._ctr("images", "remove", "--sync", IMAGE)
        eventually(lambda: self.daemon.json("snapshot", "list") == [], what="an empty metastore")
        layers = self.daemon.root / "layers"
        eventually(lambda: not any(it.name.isdigit() for it in layers.iterdir()), what="no layers")
        self._snapfs("snapshot", "list")

    def _nothing_left(self) -> None:
        left = mounts_below(self.base)
        if left:
            sys.exit(f"demo: still mounted: {left}")
        console.print("[dim]no mount and no process is left[/]")

    def _key(self) -> str:
        return next(name for name in self._names("active") if name.endswith(f"/{CONTAINER}"))

    def _image_name(self) -> str:
        return str(self.daemon.json("snapshot", "info", self._key())["parent"])

    def _names(self, kind: str) -> list[str]:
        found = self.daemon.json("snapshot", "list", "--filter", f"kind=={kind}")
        return [it["name"] for it in found]

    def _snapfs(self, *words: str) -> None:
        self._show("snapfs", *words)

    def _ctr(self, *words: str) -> None:
        shown("ctr", *words)
        said = self.engine.ctr(*words).stdout.decode()
        for line in said.splitlines()[-3:]:
            console.print(f"  {line}", markup=False)

    def _exec(self, script: str) -> None:
        shown("ctr", "tasks", "exec", CONTAINER, "bash", "-c", script)
        said = self.engine.exec(CONTAINER, "bash", "-c", script)
        for line in said.splitlines():
            console.print(f"  {line}", markup=False)

    def _show(self, *words: str) -> None:
        shown(*words)
        command = [str(SNAPFS) if words[0] == "snapfs" else words[0], *words[1:]]
        environ = {**self.daemon.environ, "SNAPFS_ADDRESS": str(self.daemon.address)}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
        for line in (done.stdout + done.stderr).splitlines():
            console.print(f"  {line}", markup=False)
        if done.returncode != 0:
            sys.exit(f"demo: {shlex.join(words)} failed")


def act(title: str, text: str) -> None:
    console.print(f"\n[bold]-- {title} --[/]\n[dim]{text}[/]\n")


def shown(*words: str, note: str = "") -> None:
    console.print(f"[cyan]$[/] [bold]{' '.join(filter(None, (shlex.join(words), note)))}[/]")


def debian_layer() -> bytes:
    """Return a layer with the programs of a few installed packages and the libraries they need."""
    layer = Layer()
    for name in ("lib", "lib64"):
        layer.symlink(name, f"usr/{name}")
    seen: set[str] = set()
    programs = [path for path in _package_files() if "/bin/" in path or "/sbin/" in path]
    for path in [*programs, *_libraries(programs)]:
        _add(layer, path, seen)
    return layer.archive()


def _package_files() -> list[str]:
    listed = subprocess.run(
        ["dpkg", "--listfiles", *PACKAGES], capture_output=True, text=True, check=True
    )
    return [path for path in listed.stdout.splitlines() if Path(path).is_file()]


def _libraries(programs: list[str]) -> Iterator[str]:
    listed = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False)
    for line in listed.stdout.splitlines():
        for word in line.split():
            if word.startswith("/") and not word.endswith(":"):
                yield word


def _add(layer: Layer, path: str, seen: set[str]) -> None:
    """Add a file under the name that it is asked for, with what a symbolic link points to."""
    for place in (path, os.path.realpath(path)):
        real = Path(place)
        # Debian's /bin, /lib and /lib64 are links to their fellows below /usr.
        name = os.path.join(os.path.realpath(real.parent), real.name)
        if name in seen:
            continue
        seen.add(name)
        for parent in reversed(Path(name).parents):
            if str(parent) not in seen and parent != Path("/"):
                seen.add(str(parent))
                layer.directory(str(parent)[1:])
        if real.is_symlink():
            layer.symlink(name[1:], os.readlink(real))
        else:
            layer.file(name[1:], real.read_bytes(), real.stat().st_mode & 0o7777)


if __name__ == "__main__":
    main()
