"""Move a volume to another service, then again after some pages of it have changed.

A file of half random and half repeating bytes, of which 10 MiB are then written anew in pages of 8
KiB, wherever they fall. snapfs pushes over a unix socket, then to a third service over ssh to this
host; rsync (with and without -z) and tar go through a pipe. Times of snapfs are those of the
command; the one over the unix socket has the first reading of the layer in it.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import arguments, ending, report
from tests.support import daemon
from tests.sync.ends import Sshd

MIB = 1 << 20
PAGE_BYTES = 8192
CHANGED_BYTES = 10 * MIB
Moved = tuple[float, float]
"""Seconds and MiB."""


def main() -> None:
    """Run everything once and print the tables."""
    parser = arguments.parser("sync", __doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the file")
    size_bytes = parser.parse_args().mib * MIB
    ending.end_on_signals()
    with ending.scratch_directory() as scratch, ExitStack() as stack:
        places = [scratch / name for name in ("here", "unix", "ssh")]
        for place in places:
            place.mkdir()
        sshd = Sshd(scratch / "sshd", scratch / "ssh" / "root")
        stack.callback(sshd.close)
        environ = {"SNAPFS_SYNC_SSH_CONFIG": str(sshd.config)}
        ann, bob, _ = (
            stack.enter_context(
                daemon.running(place, arguments=["--log-level", "info"], environ=environ)
            )
            for place in places
        )
        ann.run("remote", "add", "unix", f"unix://{bob.root}")
        ann.run("remote", "add", "ssh", f"ssh://127.0.0.1:{sshd.port}{scratch}/ssh/root")
        measure(scratch, ann, size_bytes)
        ann.run("volume", "umount", "db")


def measure(scratch: Path, ann: daemon.RunningDaemon, size_bytes: int) -> None:
    """Print seconds and MiB of each way."""
    ann.run("volume", "create", "db", "--mount")
    table = ann.state / "volumes" / "db" / "table"
    source = random.Random(1)
    _write(table, source, size_bytes)
    rows: list[tuple[str, dict[str, Moved]]] = []
    for title in ("first time", f"{CHANGED_BYTES // MIB} MiB changed"):
        if rows:
            _change(table, source)
        ann.run("volume", "snapshot", "db", "-m", title)
        original = scratch / "original"
        original.mkdir(exist_ok=True)
        shutil.copyfile(table, original / "table")
        ways: dict[str, Callable[[], float]] = {
            "snapfs": lambda: _snapfs(ann, "unix"),
            "snapfs, ssh": lambda: _snapfs(ann, "ssh"),
            "rsync": lambda: _rsync(scratch, "plain"),
            "rsync -z": lambda: _rsync(scratch, "packed", "-z"),
            "tar": lambda: _tar(scratch),
        }
        rows.append((title, {name: _timed(way) for name, way in ways.items()}))
    for which, unit in enumerate(("seconds", "MiB moved")):
        figures = [(title, {k: v[which] for k, v in found.items()}) for title, found in rows]
        print(report.table(unit, figures, reference="rsync"), end="\n\n")


def _write(table: Path, source: random.Random, size_bytes: int) -> None:
    with table.open("wb") as file:
        for number in range(size_bytes // MIB):
            some = source.randbytes(MIB if number % 2 else 1024)
            file.write(some * (MIB // len(some)))


def _change(table: Path, source: random.Random) -> None:
    pages = table.stat().st_size // PAGE_BYTES
    with table.open("r+b") as file:
        for page in source.sample(range(pages), CHANGED_BYTES // PAGE_BYTES):
            file.seek(page * PAGE_BYTES)
            file.write(source.randbytes(PAGE_BYTES))


def _timed(way: Callable[[], float]) -> Moved:
    os.sync()
    began = time.perf_counter()
    moved = way()
    return time.perf_counter() - began, moved


def _snapfs(ann: daemon.RunningDaemon, remote: str) -> float:
    (done,) = ann.json("push", "db", remote)
    return float(done["sent_bytes"]) / MIB


def _rsync(scratch: Path, target: str, *more: str) -> float:
    (scratch / target).mkdir(exist_ok=True)
    words = ["rsync", "-a", "--inplace", "--no-whole-file", "--fsync", "--stats", *more]
    command = [*words, f"{scratch}/original/", f"{scratch}/{target}/"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"Total bytes sent: ([\d,]+)", said)
    assert found is not None
    return int(found.group(1).replace(",", "")) / MIB


def _tar(scratch: Path) -> float:
    (scratch / "unpacked").mkdir(exist_ok=True)
    pack = ["tar", "-C", scratch / "original", "-c", "."]
    with subprocess.Popen(pack, stdout=subprocess.PIPE) as packing:
        subprocess.run(["tar", "-C", scratch / "unpacked", "-x"], check=True, stdin=packing.stdout)
    os.sync()
    return (scratch / "original" / "table").stat().st_size / MIB


if __name__ == "__main__":
    main()
