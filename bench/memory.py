"""Measure memory: of containers that share an image, and of many files that were looked up.

    python -m bench memory [--containers N] [--inodes N]

Density: N containers (64), each a snapshot of one image, bind-mounted, in which a process has read
all programs and libraries and stays. What each costs is the growth from the first container to the
last; fuse-overlayfs has a quarter of them. Page cache and kernel memory are what the benchmark's
own control group is charged for, with service, mounts and containers in it; kernel memory has the
stacks and page tables of a container's process, too. Of the servers, anonymous memory and memfds
count: a worker's and the service's, or all of fuse-overlayfs'. So others may run meanwhile, but for
who drops caches.

Nodes: N empty files (a million) in a thousand directories are looked up by `find`, then forgotten
by `echo 2 > drop_caches`; resident memory of the server before, then, and when it has settled.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import arguments, ending, memorygroup, report, systems
from bench.memorygroup import MemoryGroup
from bench.systems import FUSE_OVERLAYFS, System
from tests.support.images import debian_tree

MIB = 1 << 20
CONTAINERS = 64
INODES = 1_000_000
DIRECTORIES = 1000
TIMEOUT_S = 600
IDLE_S = 1.0
SERVICE_S = 11.0
"""For the service to give back what it no longer needs, which it does with each health check."""
WORKER_S = 5.0
"""The same for a worker, when it is asked how it is."""
TOUCH = """
    python3 -c 'import json, re, argparse'
    cat /usr/bin/* /usr/lib/*/*.so* | wc -c
    echo ready; read end
"""


def main() -> None:
    """Measure both and print tables."""
    parser = arguments.parser("memory", __doc__)
    parser.add_argument("--containers", type=int, default=CONTAINERS)
    parser.add_argument("--inodes", type=int, default=INODES)
    chosen = parser.parse_args()
    ending.end_on_signals()
    with ending.scratch_directory() as scratch:
        if chosen.containers:
            with memorygroup.joined(scratch.name) as group:
                print(density(scratch, chosen.containers, group), end="\n\n", flush=True)
        if chosen.inodes:
            print(looked_up(scratch, chosen.inodes), flush=True)


def density(scratch: Path, containers: int, group: MemoryGroup) -> str:
    """Return the table of growth for each container."""
    with systems.snapfs_serving(scratch / "snapfs", debian_tree()) as serve:
        columns = systems.all_systems(serve, scratch)
        rows: dict[str, dict[str, float]] = {}
        for system in columns:
            many = max(2, containers // 4) if system.name == FUSE_OVERLAYFS else containers
            for what, growth in _growth(system, many, group).items():
                rows.setdefault(what, {})[system.name] = growth
    title = f"MiB a container, {containers} of one image"
    return report.table(title, list(rows.items()), reference=systems.OVERLAYFS)


def _growth(system: System, containers: int, group: MemoryGroup) -> dict[str, float]:
    """Return MiB that each container after the first costs, by where it shows."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_container(system))
        before = _memory(system, group)
        for _ in range(containers - 1):
            stack.enter_context(_container(system))
        after = _memory(system, group)
    each = {what: (after[what] - before[what]) / (containers - 1) / MIB for what in before}
    return {**each, "all of it": sum(each.values())}


@contextlib.contextmanager
def _container(system: System) -> Iterator[None]:
    with system.mounted() as merged:
        process = subprocess.Popen(
            ["chroot", merged, "/bin/sh", "-c", TOUCH],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin, process.stdout:
            process.stdout.readline()  # how much it was
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError(f"{system.name}: a container could not read its image")
            try:
                yield
            finally:
                process.stdin.close()
                process.wait(TIMEOUT_S)


def _memory(system: System, group: MemoryGroup) -> dict[str, float]:
    """Return bytes in use."""
    time.sleep(SERVICE_S)
    charged = group.charged()
    return {
        "page cache": charged.page_cache,
        "kernel memory": charged.kernel,
        "servers": sum(map(_own_bytes, system.servers())),
    }


def _own_bytes(pid: int) -> int:
    """Return the anonymous memory and memfds of a process, without what it shares of files."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(it) * 1024 for it in re.findall(r"^Pss_(?:Anon|Shmem): +(\d+)", text, re.M))


def resident_bytes(pid: int | None) -> int:
    """Return the resident memory of a process; none has none."""
    if pid is None:
        return 0
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def looked_up(scratch: Path, inodes: int) -> str:
    """Return the table of the server's memory around many lookups; the layers are in memory."""
    place = scratch / "memory"
    place.mkdir()
    options = f"size=8g,nr_inodes={2 * inodes + 100_000}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", place], check=True, timeout=60)
    archive = scratch / "empty.tar"
    subprocess.run(["tar", "-cf", archive, "-T", "/dev/null"], check=True, timeout=60)
    with systems.snapfs_serving(place / "s", archive, fill=lambda it: _fill(it, inodes)) as serve:
        rows: dict[str, dict[str, float]] = {}
        for system in systems.all_systems(serve, scratch)[1:]:
            for what, size in _around_lookups(system).items():
                rows.setdefault(what, {})[system.name] = size / MIB
    # Mount name spaces that others have made meanwhile may hold on to it.
    subprocess.run(["umount", "-l", place], check=True, timeout=60)
    title = f"MiB resident in the server, {inodes:,} files"
    return report.table(title, list(rows.items()), reference=FUSE_OVERLAYFS)


def _fill(layer: Path, inodes: int) -> None:
    for directory in range(DIRECTORIES):
        (layer / f"d{directory}").mkdir()
        for number in range(inodes // DIRECTORIES):
            os.mknod(layer / f"d{directory}" / f"file-{number}")


def _around_lookups(system: System) -> dict[str, float]:
    with system.mounted() as merged:
        os.stat(merged)
        worker = system.worker()
        before = resident_bytes(worker)
        argv = ["find", merged, "-printf", "%s"]
        subprocess.run(argv, check=True, timeout=TIMEOUT_S, stdout=subprocess.DEVNULL)
        looked_up = resident_bytes(worker)
        Path("/proc/sys/vm/drop_caches").write_text("2")
        _until_idle(worker)
        time.sleep(WORKER_S)
        forgotten = resident_bytes(worker)
    return {"before": before, "looked up": looked_up, "forgotten": forgotten}


def _until_idle(pid: int | None) -> None:
    """Return when a process has used no processor for a while: it has forgotten."""
    used = -1.0
    while systems.processor_seconds(pid) != used:
        used = systems.processor_seconds(pid)
        time.sleep(IDLE_S)


if __name__ == "__main__":
    main()
