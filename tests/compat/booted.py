"""The unit under a real systemd, the first process of a Debian of its own: `make systemd`.

Debian's systemd is process 1 in mount, PID, cgroup, UTS, IPC and network namespaces of its own, on
a tree of its own, of which nothing of this machine can be seen but the source tree, read-only, and
the kernel's: it has /tmp, /run, /dev, /var and /etc of its own, /proc/sys and /sys read-only, and
may not load modules, set the clock or reboot. In it `systemctl` starts snapfs, programs that
notice the least failure (tests/crash/workloads.py) work on its mounts, and each thing that systemd
does to a service is done to it under them. Prints a table; exits 1 when anything failed.

The Python is the tree's, the libraries are those of the environment that `make setup` made: both
must be of one minor version.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from snapfs.config import ENVIRONMENT_PREFIX
from tests.compat.fresh_debian import HERE, TREES, run, sources_of
from tests.crash.workloads import fill
from tests.support.daemon import eventually

PACKAGES = ("systemd", "python3", "fuse3", "libfuse3-3")
MASKED = (
    *("systemd-sysctl.service", "systemd-modules-load.service", "systemd-binfmt.service"),
    *("systemd-remount-fs.service", "systemd-random-seed.service", "systemd-logind.service"),
    *("getty.target", "proc-sys-fs-binfmt_misc.automount", "dev-hugepages.mount"),
    *("sys-kernel-config.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount"),
    "sys-fs-fuse-connections.mount",
)
"""What is for a machine and not for one tree."""
WORKLOADS = ("names", "random", "unlinked", "mapping", "append", "walk")
LANES = ("main", "no-open")
LABEL = "containerd.io/snapshot/snapfs.lane"
TIMEOUT_S = 60
LAUNCHER = """#!/bin/sh
PYTHONPATH={path} exec /usr/bin/python3 -c 'from snapfs.cli.main import main; main()' "$@"
"""

_BOOT = r"""
set -eu
echo $$ >"$CGROUP/cgroup.procs"
exec unshare --mount --pid --cgroup --uts --ipc --net --fork --kill-child --propagation=private \
	sh -c "$INSIDE"
"""

_INSIDE = r"""
set -eu
mount --make-rprivate /
mount --bind "$TREE" "$TREE"
cd "$TREE"
mount -t proc -o nosuid,nodev,noexec proc proc
for it in sys sysrq-trigger irq bus; do
	[ ! -e proc/$it ] || mount --bind -o ro proc/$it proc/$it
done
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t fusectl fusectl sys/fs/fuse/connections
mount -t tmpfs -o mode=755,nosuid tmpfs dev
while read -r name major minor; do mknod -m 666 "dev/$name" c "$major" "$minor"; done <<END
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0
fuse 10 229
END
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mkdir -p ".$OURS" .before
mount --bind -o ro "$OURS" ".$OURS"
hostname snapfs-booted
pivot_root . .before
cd /
umount -l /.before
rmdir /.before
exec env -i container=snapfs PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
	setpriv --bounding-set=-sys_module,-sys_boot,-sys_time,-sys_rawio,-syslog \
	/lib/systemd/systemd --unit=multi-user.target --log-target=journal --show-status=0
"""


class Booted:
    """A running systemd, and commands in its world."""

    def __init__(self, tree: Path, init: int) -> None:
        self.tree = tree
        self._enter = ["env", *_without_settings(), "nsenter", "-t", str(init), "--all"]
        self.programs: dict[str, subprocess.Popen[str]] = {}
        self.calls = 0
        self.refused: list[str] = []
        """What calls of the service said that failed."""

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command there and return what it prints."""
        done = subprocess.run(
            [*self._enter, *command], capture_output=True, text=True, timeout=TIMEOUT_S
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.stdout}{done.stderr}{self.journal()}")
        return done.stdout.strip()

    def snapfs(self, *arguments: str) -> Any:
        return json.loads(self.run("snapfs", *arguments, "--json"))

    def journal(self) -> str:
        return self.run("journalctl", "-u", "snapfs", "-n", "40", "--no-pager", check=False)

    def property(self, name: str) -> str:
        return self.run("systemctl", "show", "snapfs", "--property", name, "--value")

    def answers(self) -> bool:
        done = subprocess.run(
            [*self._enter, "snapfs", "status", "--json"], capture_output=True, timeout=TIMEOUT_S
        )
        lanes = json.loads(done.stdout)["lanes"] if done.returncode == 0 else []
        return bool(lanes) and all(it["state"] == "serving" for it in lanes)

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Call the service all the time beside the block; each must be answered."""
        over = threading.Event()

        def call() -> None:
            while not over.is_set():
                self.calls += 1
                done = subprocess.run(
                    [*self._enter, "snapfs", "snapshot", "list", "--json"],
                    capture_output=True,
                    text=True,
                    timeout=TIMEOUT_S,
                )
                if done.returncode:
                    self.refused.append(done.stderr)

        caller = threading.Thread(target=call)
        caller.start()
        try:
            yield
        finally:
            over.set()
            caller.join()

    def workers(self) -> dict[str, int]:
        return {it["name"]: it["worker_pid"] for it in self.snapfs("status")["lanes"]}

    def launch(self, name: str, place: str) -> None:
        """Start a program there, outside the unit's cgroup."""
        python = ["env", f"PYTHONPATH={HERE}", "python3"]
        self.programs[f"{name} {place}"] = subprocess.Popen(
            [*self._enter, *python, "-m", "tests.crash.workloads", name, place, "1"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def failed(self) -> list[str]:
        """Return what the programs that have ended said."""
        ended = [(it, at) for it, at in self.programs.items() if at.poll() is not None]
        return [f"{name}: {at.communicate()[0]}" for name, at in ended]


def _without_settings() -> list[str]:
    """Return what keeps env(1) from handing on our settings of snapfs: they are of this machine."""
    return [f"--unset={name}" for name in os.environ if name.startswith(ENVIRONMENT_PREFIX)]


def tree() -> Path:
    """Return a Debian like this one with systemd in it; made when missing."""
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    made = TREES / f"booted-{suite}"
    if not made.exists():
        TREES.mkdir(parents=True, exist_ok=True)
        growing = Path(tempfile.mkdtemp(prefix=f"{made.name}.", dir=TREES))
        growing.chmod(0o755)
        with tempfile.TemporaryDirectory() as sources:
            run(
                *("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase"),
                *(f"--include={','.join(PACKAGES)}", suite, growing),
                *sources_of(suite, Path(sources)),
            )
        growing.rename(made)
    return made


def furnish(tree: Path) -> None:
    """Put the unit and the command where they belong, and take out what is for machines."""
    units = tree / "etc/systemd/system"
    for name in MASKED:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    (tree / "etc/machine-id").write_text("")
    shutil.rmtree(tree / "var/lib/snapfs", ignore_errors=True)
    shutil.copy(HERE / "systemd/snapfs.service", units)
    command = tree / "usr/local/bin/snapfs"
    path = (HERE, HERE / "plugin", sysconfig.get_path("purelib"))
    command.write_text(LAUNCHER.format(path=":".join(map(str, path))))
    command.chmod(0o755)


@contextmanager
def booted(tree: Path) -> Iterator[Booted]:
    """Boot a tree; whatever is started in it ends with it."""
    cgroup = _cgroups() / f"snapfs-booted-{os.getpid()}"
    cgroup.mkdir()
    environ = {
        "PATH": os.environ["PATH"],
        "TREE": str(tree),
        "OURS": str(HERE),
        "CGROUP": str(cgroup),
        "INSIDE": _INSIDE,
    }
    try:
        with subprocess.Popen(
            ["sh", "-c", _BOOT], env=environ, stdin=subprocess.DEVNULL, start_new_session=True
        ) as outside:
            try:
                init: int = eventually(lambda: _systemd(outside), what="systemd")
                machine = Booted(tree, init)
                says = ("systemctl", "is-system-running", "--wait")
                eventually(lambda: machine.run(*says, check=False) == "running", what="the boot")
                try:
                    yield machine
                finally:
                    for program in machine.programs.values():
                        program.kill()
                        program.communicate()
            finally:
                outside.kill()  # and process 1 with it, so all that is inside
    finally:
        eventually(lambda: "populated 0" in (cgroup / "cgroup.events").read_text())
        for below, _, _ in os.walk(cgroup, topdown=False):
            Path(below).rmdir()


def _cgroups() -> Path:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if " - cgroup2 " in line:
            return Path(line.split()[4])
    raise AssertionError("no cgroup2 hierarchy is mounted here")


def _systemd(outside: subprocess.Popen[bytes]) -> int | None:
    assert outside.poll() is None, "the tree could not be entered"
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, fields = stat.read_text().split("(", 1)[1].rsplit(")", 1)
        except OSError:
            continue
        if name == "systemd" and int(fields.split()[1]) == outside.pid:
            return int(stat.parent.name)
    return None


def kill_worker(machine: Booted) -> None:
    for pid in machine.workers().values():
        machine.run("sh", "-c", f"kill -KILL {pid}")


def stop_and_start(machine: Booted) -> None:
    machine.run("systemctl", "stop", "snapfs")
    assert machine.property("ActiveState") == "inactive"
    machine.run("systemctl", "start", "snapfs")


ACTS: dict[str, Callable[[Booted], object]] = {
    "`systemctl restart snapfs`": lambda it: it.run("systemctl", "restart", "snapfs"),
    "`systemctl stop snapfs`, then `start`": stop_and_start,
    "`kill -9` of the workers": kill_worker,
    "`systemctl kill -s KILL --kill-who=main snapfs`": lambda it: it.run(
        "systemctl", "kill", "-s", "KILL", "--kill-who=main", "snapfs"
    ),
    "`systemctl kill -s KILL snapfs`: the service and its workers at once": lambda it: it.run(
        "systemctl", "kill", "-s", "KILL", "snapfs"
    ),
    "`snapfs upgrade`": lambda it: it.run("snapfs", "upgrade"),
}

SAME_PROCESS = ("`kill -9` of the workers", "`snapfs upgrade`")


def begin(machine: Booted) -> None:
    """Start the service, and programs on mounted snapshots of two lanes."""
    machine.run("systemctl", "start", "snapfs")
    machine.run("snapfs", "snapshot", "prepare", "base-key")
    layer = machine.snapfs("snapshot", "info", "base-key")["id"]
    fill(machine.tree / "var/lib/snapfs/layers" / str(layer) / "fs")
    machine.run("snapfs", "snapshot", "commit", "base-key", "base")
    for lane in LANES:
        machine.run(
            *("snapfs", "snapshot", "prepare", "--parent=base", f"--label={LABEL}={lane}", lane)
        )
        machine.run("mkdir", "-p", f"/mnt/{lane}")
        machine.run("snapfs", "mount", lane, f"/mnt/{lane}")
        for name in WORKLOADS:
            machine.launch(name, f"/mnt/{lane}")


def act(machine: Booted, what: Callable[[Booted], object], *, anew: bool) -> float:
    """Do something to the service; return after how many seconds it is ready again.

    It is when systemd says so, which the service tells it when its own socket has answered. `anew`:
    by another process.
    """
    before, began_s = machine.property("MainPID"), time.monotonic()
    with nullcontext() if what is stop_and_start else machine.calling():
        what(machine)
        _await_ready(machine, before if anew else None)
    took_s = time.monotonic() - began_s
    eventually(machine.answers, timeout_s=TIMEOUT_S, what="an answer")
    time.sleep(1)  # for the programs to do some turns
    return took_s


def _await_ready(machine: Booted, before: str | None) -> None:
    """Return when systemd says that the service runs, by another process than `before`."""

    def ready() -> bool:
        now = machine.property("SubState"), machine.property("MainPID")
        return now[0] == "running" and (before is None or now[1] not in ("0", before))

    eventually(ready, timeout_s=TIMEOUT_S, what="the service")


def end(machine: Booted) -> tuple[int, list[str]]:
    """End the programs, then the service; return turns, and what is wrong."""
    wrong, turns = [*machine.failed(), *machine.refused], 0
    for name, program in machine.programs.items():
        said, _ = program.communicate(timeout=TIMEOUT_S)
        if program.returncode == 0:
            turns += int(said.split()[-1])
        elif not wrong:
            wrong.append(f"{name}: {said}")
    for lane in LANES:
        machine.run("snapfs", "umount", f"/mnt/{lane}")
        machine.run("snapfs", "snapshot", "commit", lane, f"{lane}-done")
    machine.run("snapfs", "fsck")
    machine.run("systemctl", "stop", "snapfs")
    if left := re.findall(r".* fuse\.snapfs .*", machine.run("cat", "/proc/mounts")):
        wrong.append(f"still mounted: {left}")
    if (kept := machine.property("NFileDescriptorStore")) not in ("", "0"):
        wrong.append(f"{kept} descriptors are in the store after the stop")
    return turns, wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.compat.booted")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is done")
    chosen = parser.parse_args()
    made = tree()
    furnish(made)
    found: dict[str, list[float]] = {name: [] for name in ACTS}
    with booted(made) as machine:
        release = machine.run("systemctl", "--version").splitlines()[0]
        begin(machine)
        for name, what in list(ACTS.items()) * chosen.rounds:
            if not machine.failed():
                found[name].append(act(machine, what, anew=name not in SAME_PROCESS))
        turns, wrong = end(machine)
    print(f"{release}; {len(machine.programs)} programs, {turns} turns, {machine.calls} calls\n")
    print("| done to the unit under programs | times | ready again within |\n|---|---|---|")
    for name, took in found.items():
        print(f"| {name} | {len(took)} | {max(took, default=0):.1f} s |")
    print("", f"failed: {len(wrong)}", *wrong, sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
