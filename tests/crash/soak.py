"""Uses everything for as long as wanted, and finds out what grows: `make soak SOAK_S=3600`.

    python -m tests.crash.soak --seconds 3600

One round makes snapshots in lanes, mounts, changes, commits, reads and removes them, while programs
work beside it, clients connect and leave, and workers are killed. After each the kernel is made to
forget what nobody uses, and what is held is counted. After a warm-up none of it may grow: the slope
of each row, the median of those between any two samples (Theil and Sen), over the time that was
measured, stays below an allowance. Prints a table; exits 1 when a row grows or a call fails.

In the first half the worker of `main` and the control process live on, and it is their memory that
is looked at; it is the workers of other lanes that are killed. In the second half these two are
killed as well, now and then: what they hold is to be what it was by the next round, and what
outlives them (mounts, processes, memory that one leaves to the next, inodes) to stay as it was.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from snapfs.service.client import Client
from tests.crash import workloads
from tests.crash.kills import LABEL, LANES, Siege
from tests.support.daemon import eventually, mounts_below, processes_below
from tests.support.lanes import drop_dentries

KILLED = ("no-open", "views")
KILL_EVERY = 5
"""Rounds."""
KILL_OWN_EVERY = 2
"""Rounds of the second half."""
CLIENTS = 20
WARM_UP = 1 / 3
"""Of the samples, which the slope leaves out."""
LEAST_SAMPLES = 6
"""Of the first half."""
LEAST_SAMPLES_KILLED = 4
"""Of the second."""
SETTLE_S = 10.0
ALLOWANCES = {
    "control, anonymous KiB": 6 << 10,
    "worker of main, anonymous KiB": 4 << 10,
    "control, descriptors": 4,
    "control, memfds": 0.5,
    "control, threads": 8,
    "worker of main, descriptors": 4,
    "worker of main, nodes": 8,
    "worker of main, files": 4,
    "worker of main, backing ids": 4,
    "mounts": 0.5,
    "processes": 1,
    "inodes on disk": 8,
    "snapshots": 0.5,
}
"""How much each row may grow from the warm-up to the end of a half."""
OF_A_LIFE = ("control, anonymous KiB", "worker of main, anonymous KiB")
"""Rows that say something of a process that lives on."""
OF_THE_MACHINE = ("mounts", "processes", "inodes on disk", "snapshots")
"""Rows that are the same whoever lives."""


@dataclass
class Soaked:
    """Samples by row, and what failed."""

    samples: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    killed: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    """Those of the second half, when the worker of `main` and the control process are killed."""
    rounds: int = 0
    kills: int = 0
    own_kills: dict[str, int] = field(default_factory=lambda: {"worker of main": 0, "control": 0})
    failures: list[str] = field(default_factory=list)

    def growth(self, row: str) -> float:
        """Return by how much a row grows in a half, or in both if it is of the machine."""
        first = self.samples[row]
        first = first[int(len(first) * WARM_UP) :]
        if row in OF_A_LIFE:
            return grown(first)
        if row in OF_THE_MACHINE:
            return grown([*first, *self.killed[row]])
        return max(grown(first), grown(self.killed[row]))

    def growing(self) -> list[str]:
        return [row for row, most in ALLOWANCES.items() if self.growth(row) > most]

    def table(self) -> str:
        lines = [
            f"{self.rounds} rounds, {self.kills} workers of other lanes killed",
            *(f"{what}: killed {times} times" for what, times in self.own_kills.items()),
            "",
            "| held | at first | after the warm-up | at the end | by the slope | allowed |",
            "|---|---|---|---|---|---|",
        ]
        for row, most in ALLOWANCES.items():
            found = [value for _, value in (*self.samples[row], *self.killed[row])]
            warm = found[int(len(found) * WARM_UP)]
            figures = (found[0], warm, found[-1], self.growth(row), most)
            lines.append(f"| {row} | " + " | ".join(f"{it:.4g}" for it in figures) + " |")
        lines += ["", f"failed: {len(self.failures)}", *self.failures]
        lines += [f"grows: {row}" for row in self.growing()]
        return "\n".join(lines)


def grown(samples: Sequence[tuple[float, float]]) -> float:
    """Return by how much a row grows over the time of its samples, by their slope."""
    return slope(samples) * (samples[-1][0] - samples[0][0]) if samples else 0.0


def slope(samples: Sequence[tuple[float, float]]) -> float:
    """Return the median of the slopes between any two samples (Theil-Sen)."""
    between = [
        (later - earlier) / (end - begin)
        for index, (begin, earlier) in enumerate(samples)
        for end, later in samples[index + 1 :]
        if end > begin
    ]
    return statistics.median(between) if between else 0.0


class Soak(Siege):
    """A daemon with programs at work, and rounds of everything else."""

    def __init__(self, base: Path, seed: int, names: tuple[str, ...]) -> None:
        super().__init__(base, seed, names)
        self.soaked = Soaked()
        self.target = base / "target"
        self.target.mkdir()
        self.kills_own = False
        """The second half has begun."""
        self._killed_rounds = 0

    def round(self, number: int) -> None:
        if self.kills_own:
            self.kill_own()
        for lane in ("main", "no-open"):
            self.life(f"r{number}-{lane}", lane)
        self.clients()
        if number % KILL_EVERY == KILL_EVERY - 1:
            self.kill(self.dice.choice(KILLED))

    def life(self, key: str, lane: str) -> None:
        """A snapshot from its beginning to its end, with a child and a view of it."""
        run, name = self.daemon.run, f"{key}-done"
        run("snapshot", "prepare", "--label", f"{LABEL}={lane}", "--parent", "base", key)
        run("mount", key, self.target)
        self.change(self.target)
        run("umount", self.target)
        run("snapshot", "commit", key, name)
        run("mount", name, self.target)
        self.read(self.target)
        run("umount", self.target)
        run("snapshot", "prepare", "--parent", name, key)
        run("snapshot", "diff", name)
        for gone in (key, name):
            run("snapshot", "remove", gone)

    def change(self, place: Path) -> None:
        for number in range(40):
            path = place / "new" / f"n{number}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(workloads.content(number, 20_000))
        os.link(path, place / "linked")
        os.setxattr(path, "user.x", b"1")
        path.rename(place / "new" / "moved")
        (place / "new" / "n1").unlink()
        (place / "base" / "d0" / "e0" / "f0").write_bytes(b"changed")
        (place / "base" / "d1").rename(place / "moved directory")
        shutil.rmtree(place / "base" / "d2")
        unnamed = os.open(place, os.O_TMPFILE | os.O_RDWR)
        os.write(unnamed, b"x")
        os.close(unnamed)

    def read(self, place: Path) -> None:
        for number in range(2, 39):
            found = (place / "new" / f"n{number}").read_bytes()
            assert found == workloads.content(number, 20_000), f"n{number} is not as it was written"

    def clients(self) -> None:
        """Connect in all ways: politely, to watch, to say nonsense, to say nothing."""
        address = self.daemon.address
        for number in range(CLIENTS):
            with Client(address, timeout_s=30) as client:
                assert client.info("base").snapshot.name == "base"
            with socket.socket(socket.AF_UNIX) as noisy:
                noisy.connect(os.fspath(address))
                noisy.send(self.dice.randbytes(number * 100 + 1))
            with grpc.insecure_channel(f"unix:{address}") as channel:
                asked = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
                next(iter(asked))
                asked.cancel()
        with Client(address, timeout_s=30) as client:
            list(client.list())
            client.status()

    def kill_own(self) -> None:
        """Kill the worker of `main` and the control process in turn."""
        turn, waits = divmod(self._killed_rounds, KILL_OWN_EVERY)
        self._killed_rounds += 1
        if waits:
            return
        if turn % 2:
            self.kill_control()
            self.soaked.own_kills["control"] += 1
        else:
            self.kill("main")
            self.soaked.own_kills["worker of main"] += 1

    def kill(self, lane: str) -> None:
        pid = self.lanes()[lane]["worker_pid"]
        os.kill(pid, signal.SIGKILL)
        self.soaked.kills += lane in KILLED

        def served() -> bool:
            now = self.lanes()[lane]
            return now["state"] == "serving" and now["worker_pid"] not in (None, pid)

        eventually(served, timeout_s=60, what=f"the next worker of {lane}")

    def sample(self, at_s: float) -> None:
        """Count what is held, when what nobody uses has been let go of."""
        eventually(lambda: not self.daemon.json("status")["pending_removals"], timeout_s=60)
        end_s, before = time.monotonic() + SETTLE_S, -1
        while time.monotonic() < end_s:
            drop_dentries()
            counts = self.lanes()["main"]["counts"]
            if counts["nodes"] == before:
                break
            before = counts["nodes"]
            time.sleep(0.05)
        into = self.soaked.killed if self.kills_own else self.soaked.samples
        for row, value in self.held(counts).items():
            if not (self.kills_own and row in OF_A_LIFE):
                into[row].append((at_s, value))

    def held(self, counts: dict[str, int]) -> dict[str, float]:
        control, worker = self.daemon.pid, self.daemon.worker_pid()
        layers = self.daemon.root / "layers"
        listed = self.daemon.json("snapshot", "list")
        return {
            "control, anonymous KiB": anonymous_kib(control),
            "worker of main, anonymous KiB": anonymous_kib(worker),
            "control, descriptors": len(descriptors(control)),
            "control, memfds": sum("/memfd:" in it for it in descriptors(control)),
            "control, threads": len(os.listdir(f"/proc/{control}/task")),
            "worker of main, descriptors": len(descriptors(worker)),
            "worker of main, nodes": counts["nodes"],
            "worker of main, files": counts["files"],
            "worker of main, backing ids": counts["backing"],
            "mounts": len(mounts_below(self.base)),
            "processes": len(processes_below(self.base)),
            "inodes on disk": inodes(layers) - self.inodes_of_programs(layers),
            "snapshots": len(listed),
        }

    def inodes_of_programs(self, layers: Path) -> int:
        """Return what the programs beside the rounds have made; it comes and goes."""
        return sum(inodes(layers / str(self.snapshots[lane])) for lane in LANES if lane != "views")


def anonymous_kib(pid: int) -> int:
    """Return the memory that a process has for itself: not of files, a shared page in part."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss_Anon:"):
            return int(line.split()[1])
    raise AssertionError("no Pss_Anon")


def descriptors(pid: int) -> list[str]:
    found = []
    for it in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(os.readlink(it))
        except FileNotFoundError:
            continue
    return found


def inodes(top: Path) -> int:
    return sum(1 + len(names) for _, _, names in os.walk(top))


def run(base: Path, *, seconds: float, seed: int = 0, names: tuple[str, ...] = ()) -> Soaked:
    """Soak for so many seconds, and for as many rounds as a slope needs."""
    soak = Soak(base, seed, names or ("random", "append"))
    soaked = soak.soaked
    began_s = time.monotonic()
    try:
        soak.begin()
        while soak.all_well():
            soak.round(soaked.rounds)
            soaked.rounds += 1
            now_s = time.monotonic() - began_s
            soak.sample(now_s)
            if not soak.kills_own:
                soak.kills_own = now_s > seconds / 2 and soaked.rounds >= LEAST_SAMPLES
            elif now_s > seconds and len(soaked.killed["mounts"]) >= LEAST_SAMPLES_KILLED:
                break
        soaked.failures += soak.end().failures
        return soaked
    finally:
        soak.clear()


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.crash.soak")
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    chosen = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="snapfs-soak-"))
    try:
        soaked = run(base, seconds=chosen.seconds, seed=chosen.seed)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    print(f"seed {chosen.seed}\n\n{soaked.table()}")
    return bool(soaked.failures or soaked.growing())


if __name__ == "__main__":
    sys.exit(main())
