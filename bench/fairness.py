"""Measure how long clients wait while a large file is copied up beside them.

    python -m bench fairness [--clients N] [--gib N] [--systems NAME,...]

Busy clients (64) on 16 mounted trees each open, read and close files of the image, one operation
after the other, and every tenth makes and removes a file; then the first client's tree gets a file
of 4 GiB appended to. Milliseconds that an operation took before and while it was copied up; what
makes and removes a file is several requests and waits for others in its directory, so each kind
has its own median.
"""

from __future__ import annotations

import array
import contextlib
import itertools
import math
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import arguments, disk, ending, report, systems
from bench.rows import image_files
from bench.systems import System
from tests.support.images import debian_tree

TREES = 16
CLIENTS = 64
GIB = 1 << 30
DISK_GIB = 4
"""What the disk has beside the file and its copy."""
MIB = 1 << 20
FILES = 400
CHANGE_EVERY = 10
"""Operations of a client from one that makes and removes a file to the next."""
WARM_UP_S = 3.0
QUIET_S = 5.0


def main() -> None:
    """Measure each system and print the table."""
    parser = arguments.parser("fairness", __doc__)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--gib", type=float, default=4)
    parser.add_argument("--systems", default="", help="names of columns; all that there are")
    chosen = parser.parse_args()
    names = {name for name in chosen.systems.split(",") if name}
    ending.end_on_signals()
    size = int(chosen.gib * GIB)
    gib = DISK_GIB + 2 * math.ceil(chosen.gib)  # the file and its copy
    with ending.scratch_directory() as scratch, disk.own_disk(scratch, gib) as own:
        fill = lambda layer: _write_large(layer / "large", size)  # noqa: E731
        with systems.snapfs_serving(own / "snapfs", debian_tree(), fill=fill) as serve:
            rows: dict[str, dict[str, float]] = {}
            for system in systems.all_systems(serve, own):
                if system.writable and (not names or system.name in names):
                    for what, figure in measure(system, chosen.clients).items():
                        rows.setdefault(what, {})[system.name] = figure
    title = f"{chosen.clients} clients, {TREES} trees, {chosen.gib:g} GiB copied up"
    print(report.table(title, list(rows.items()), reference=systems.OVERLAYFS))


def _write_large(path: Path, size: int) -> None:
    block = os.urandom(MIB)
    with path.open("wb", buffering=0) as file:
        for _ in range(size // MIB):
            file.write(block)
        os.fsync(file.fileno())


def measure(system: System, clients: int) -> dict[str, float]:
    """Return figures of one system, waits in milliseconds."""
    with contextlib.ExitStack() as stack:
        trees = [stack.enter_context(system.mounted()) for _ in range(TREES)]
        started = [_start_client(trees[number % TREES], number) for number in range(clients)]
        try:
            time.sleep(WARM_UP_S)
            quiet_from = time.monotonic_ns()
            time.sleep(QUIET_S)
            copy_from = time.monotonic_ns()
            with (trees[0] / "large").open("ab") as file:
                file.write(b"x")
            copy_to = time.monotonic_ns()
        finally:
            waits = [_end_client(pid, reader) for pid, reader in started]
    interval = copy_to - copy_from
    before = _Waits(waits, quiet_from, copy_from)
    meanwhile = _Waits(waits, copy_from, copy_to)
    return {
        "seconds of the copy-up": interval / 1e9,
        "operations a second before": len(before.all) / (copy_from - quiet_from) * 1e9,
        "operations a second meanwhile": len(meanwhile.all) / interval * 1e9,
        **_figures("before", before),
        **_figures("meanwhile", meanwhile),
    }


class _Waits:
    """Nanoseconds that operations took that began in an interval, sorted."""

    def __init__(self, clients: Sequence[array.array[int]], start: int, end: int) -> None:
        self.reads: list[int] = []
        self.changes: list[int] = []
        for client in clients:
            for turn, (began, took) in enumerate(zip(client[::2], client[1::2], strict=True)):
                if start <= began < end:
                    (self.reads if turn % CHANGE_EVERY else self.changes).append(took)
        self.all = sorted(self.reads + self.changes)
        self.reads.sort()
        self.changes.sort()


def _figures(when: str, waits: _Waits) -> dict[str, float]:
    found = {f"longest to median {when}": waits.all[-1] / statistics.median(waits.all)}
    for kind, durations in ("read", waits.reads), ("change", waits.changes):
        median = statistics.median(durations)
        found |= {
            f"a {kind} {when}: median, ms": median / 1e6,
            f"a {kind} {when}: 99.9 % at most, ms": durations[len(durations) * 999 // 1000] / 1e6,
            f"a {kind} {when}: longest, ms": durations[-1] / 1e6,
            f"a {kind} {when}: longest to median": durations[-1] / median,
        }
    return found


def _start_client(tree: Path, number: int) -> tuple[int, int]:
    """Fork a client; it works until SIGUSR1, then writes (start, duration) pairs to a pipe."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    os.close(reader)
    ending.end_with_parent()
    try:
        with open(writer, "wb") as pipe:
            _work(tree, number).tofile(pipe)
    finally:
        os._exit(0)


def _work(tree: Path, number: int) -> array.array[int]:
    done = False

    def end(_number: int, _frame: object) -> None:
        nonlocal done
        done = True

    signal.signal(signal.SIGUSR1, end)
    source = random.Random(number)
    files = list(image_files(tree / "usr" / "share", FILES))
    own = f"{tree}/client-{number}"
    waits: array.array[int] = array.array("q")
    for turn in itertools.count():
        path = source.choice(files)
        began = time.monotonic_ns()
        if turn % CHANGE_EVERY:
            fd = os.open(path, os.O_RDONLY)
            os.read(fd, 4096)
            os.close(fd)
        else:
            os.close(os.open(own, os.O_WRONLY | os.O_CREAT))
            os.unlink(own)
        waits.extend((began, time.monotonic_ns() - began))
        if done:
            return waits
    raise AssertionError


def _end_client(pid: int, reader: int) -> array.array[int]:
    os.kill(pid, signal.SIGUSR1)
    waits: array.array[int] = array.array("q")
    with open(reader, "rb") as pipe:
        waits.frombytes(pipe.read())
    os.waitpid(pid, 0)
    return waits


if __name__ == "__main__":
    main()
