"""How long a killed control process, and a killed worker, are missed.

    python -m bench starting [--snapshots N] [--inodes N] [--rounds N]

The control process: from its exec until a client has the status, over a root with N snapshots,
while it adopts the workers that live; and the processor time that it took. A worker: from its kill
until `stat` of a name that nobody had asked for is answered, when the kernel knows N inodes of the
lane that `find` looked up, with the next worker at hand, as it is a while after a start, and
without; then until `find` has looked at all of them again.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import arguments, ending
from snapfs.model import SnapfsError
from snapfs.service.client import Client
from tests.support.daemon import RunningDaemon, clear, eventually, processes_below
from tests.support.lanes import abort

SNAPSHOTS = 100
INODES = 100_000
IN_A_DIRECTORY = 100
ROUNDS = 7
STEP_S = 0.005
PATIENCE_S = 60.0
LOADING_S = 2.0
"""For a worker at hand to have loaded its code."""
LANES = {"main": "passthrough", "no-open": "no-open"}
LABEL = "containerd.io/snapshot/snapfs.lane"


def main() -> None:
    """Measure both and print a table."""
    parser = arguments.parser("starting", __doc__)
    parser.add_argument("--snapshots", type=int, default=SNAPSHOTS)
    parser.add_argument("--inodes", type=int, default=INODES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    chosen = parser.parse_args()
    ending.end_on_signals()
    with ending.scratch_directory() as scratch:
        daemon = RunningDaemon(scratch, arguments=["--log-level", "info"])
        try:
            daemon.start()
            rows = workers(daemon, chosen.inodes, chosen.rounds)
            rows |= control(daemon, chosen.snapshots, chosen.rounds)
        finally:
            if daemon.process is not None:
                daemon.kill()
            abort(scratch)
            clear(scratch)
    print("| seconds | median | most |\n|---|---|---|")
    for what, seconds in rows.items():
        print(f"| {what} | {statistics.median(seconds):.2f} | {max(seconds):.2f} |")


def control(daemon: RunningDaemon, snapshots: int, rounds: int) -> dict[str, Sequence[float]]:
    """Kill the control process again and again."""
    for number in range(snapshots):
        daemon.run("snapshot", "prepare", f"key{number}")
    took, cpu = [], []
    for _ in range(rounds):
        daemon.kill()
        took.append(answered_s(daemon))
        cpu.append(processor_s(daemon.pid))
    return {"control process, until it answers": took, "of that, processor time": cpu}


def answered_s(daemon: RunningDaemon) -> float:
    """Start a control process; return after how many seconds a call of a client is answered."""
    began_s = time.monotonic()
    with daemon.log.open("ab") as log:
        daemon.process = subprocess.Popen(
            daemon.command(), stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=daemon.environ
        )
    while time.monotonic() < began_s + PATIENCE_S:
        try:
            with Client(daemon.address, timeout_s=1) as client:
                client.status()
            return time.monotonic() - began_s
        except SnapfsError:
            time.sleep(STEP_S)
    raise AssertionError(f"no answer within {PATIENCE_S} s")


def processor_s(pid: int) -> float:
    """Return the processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def workers(daemon: RunningDaemon, inodes: int, rounds: int) -> dict[str, Sequence[float]]:
    """Kill the workers of lanes in which the kernel knows many inodes."""
    daemon.run("snapshot", "prepare", "many")
    fill(daemon.root / "layers" / str(daemon.json("snapshot", "info", "many")["id"]) / "fs", inodes)
    daemon.run("snapshot", "commit", "many", "base")
    rows: dict[str, Sequence[float]] = {}
    for lane, mode in LANES.items():
        daemon.run("snapshot", "prepare", "--label", f"{LABEL}={lane}", "--parent", "base", lane)
        place = daemon.state / "mnt" / lane / str(daemon.json("snapshot", "info", lane)["id"])
        first, alone, again = [], [], []
        for number in range(rounds):
            look_up(place)
            processes = at_hand(daemon, lane)
            first.append(missed_s(processes[:1], place / f"d{number}" / "fresh"))
            look_up(place)
            alone.append(missed_s(at_hand(daemon, lane), place / f"d{number}" / "fresher"))
            began_s = time.monotonic()
            look_up(place)
            again.append(time.monotonic() - began_s)
        title = f"worker, {mode}, {inodes} inodes"
        rows[f"{title}, until a new name is answered"] = first
        rows[f"{title}, the same without a worker at hand"] = alone
        rows[f"{title}, from then until `find` has looked at all"] = again
    return rows


def at_hand(daemon: RunningDaemon, lane: str) -> list[int]:
    """Return the worker of a lane and the one that waits for its turn, when that has loaded."""
    serving = daemon.worker_pid(lane)
    words = {os.fsencode(f"--lane={lane}"), os.fsencode(f"--root={daemon.root}")}

    def found() -> list[int]:
        waiting = [it for it in processes_below(daemon.base) if words <= command(it)]
        return [serving, *(it for it in waiting if it != serving)]

    eventually(lambda: len(found()) > 1, what="a worker at hand")
    time.sleep(LOADING_S)
    return found()


def command(pid: int) -> set[bytes]:
    return set(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"))


def missed_s(pids: Sequence[int], asked: Path) -> float:
    """Kill processes; return after how many seconds a name is answered."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    began_s = time.monotonic()
    asked.exists()
    return time.monotonic() - began_s


def fill(layer: Path, inodes: int) -> None:
    for number in range(inodes // IN_A_DIRECTORY):
        directory = layer / f"d{number}"
        directory.mkdir()
        for name in range(IN_A_DIRECTORY):
            (directory / f"f{name}").touch()


def look_up(place: Path) -> None:
    subprocess.run(["find", place, "-newer", "/proc"], check=True, capture_output=True)


if __name__ == "__main__":
    main()
