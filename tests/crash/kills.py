"""Kills workers and control processes under workloads, again and again.

    python -m tests.crash.kills --workers 1000 --controls 200 [--seconds 3600] [--seed N]

prints a table: kills, turns that each workload made, and what failed. A program that fails is begun
anew in a place of its own, so that one failure does not hide the next.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.crash import workloads
from tests.support.daemon import RunningDaemon, clear, eventually
from tests.support.lanes import abort, drop_dentries

LANES = {"main": "passthrough", "no-open": "no-open", "views": "readonly"}
LABEL = "containerd.io/snapshot/snapfs.lane"
END_TIMEOUT_S = 120.0
MOST_FAILURES = 20
"""What cannot work any more need not be tried for hours."""


@dataclass
class Outcome:
    """What a siege came to."""

    worker_kills: Counter[str] = field(default_factory=Counter)
    """By the mode of the lane."""
    control_kills: int = 0
    turns: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    back_s: list[float] = field(default_factory=list)
    """From a control process's start until it answers."""

    def table(self) -> str:
        kills = {f"worker, {mode}": n for mode, n in sorted(self.worker_kills.items())}
        kills["control process"] = self.control_kills
        kills["all"] = sum(kills.values())
        lines = ["| killed | times |", "|---|---|", *(f"| {it} | {n} |" for it, n in kills.items())]
        if self.back_s:
            lines += ["", f"a control process answers within {max(self.back_s):.1f} s of its start"]
        lines += ["", "| workload | turns |", "|---|---|"]
        lines += [f"| {name} | {count} |" for name, count in sorted(self.turns.items())]
        lines += ["", f"failed: {len(self.failures)}", *self.failures]
        return "\n".join(lines)


@dataclass
class Running:
    """One workload at work."""

    name: str
    lane: str
    seed: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def title(self) -> str:
        return f"{self.name}, {LANES[self.lane]}"


class Siege:
    """A daemon, snapshots in all lanes, workloads on them, and what kills."""

    def __init__(self, base: Path, seed: int, names: tuple[str, ...]) -> None:
        self.base = base
        self.dice = random.Random(seed)
        self.names = names
        self.outcome = Outcome()
        self.daemon = RunningDaemon(base, arguments=["--log-level", "info"])
        self.archives = base / "archives"
        self.archives.mkdir()
        self.running: list[Running] = []
        self.snapshots: dict[str, int] = {}
        self.places: dict[str, Path] = {}

    def begin(self) -> None:
        self.daemon.start()
        self._layer("base-key")
        workloads.fill(self.daemon.root / "layers" / str(self.snapshots["base-key"]) / "fs")
        self.daemon.run("snapshot", "commit", "base-key", "base")
        for lane in LANES:
            kind = "view" if lane == "views" else "prepare"
            self._layer(lane, "base", kind=kind, lane=lane)
            wanted = workloads.READING if lane == "views" else self.names
            for name in wanted:
                self._launch(name, lane)

    def _layer(self, key: str, *parent: str, kind: str = "prepare", lane: str = "main") -> None:
        labels = [] if lane == "views" else ["--label", f"{LABEL}={lane}"]
        above = [f"--parent={it}" for it in parent] if kind == "prepare" else parent
        self.daemon.run("snapshot", kind, *labels, key, *above)
        found = self.daemon.json("snapshot", "info", key)
        self.snapshots[key] = found["id"]
        self.places[key] = self.daemon.state / "mnt" / found["lane"] / str(found["id"])

    def _launch(self, name: str, lane: str, seed: int = 1) -> None:
        place = self.places[lane]
        log = self.base / f"{name}-{lane}-{seed}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.crash.workloads", name, place, str(seed)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=Path(__file__).parents[2],
                env={**os.environ, "ARCHIVES": str(self._archives(lane))},
            )
        self.running.append(Running(name, lane, seed, process, log))

    def _archives(self, lane: str) -> Path:
        place = self.archives / lane
        place.mkdir(exist_ok=True)
        return place

    def lanes(self) -> dict[str, Any]:
        return {it["name"]: it for it in self.daemon.json("status")["lanes"]}

    def kill_worker(self) -> None:
        """Kill the worker of some lane, and return when another one serves."""
        lane, found = self.dice.choice(sorted(self.lanes().items()))
        pid = found["worker_pid"]
        if pid is None:
            return
        time.sleep(self.dice.random() * 0.3)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.outcome.worker_kills[found["mode"]] += 1

        def served() -> bool:
            now = self.lanes()[lane]
            return now["state"] == "serving" and now["worker_pid"] not in (None, pid)

        eventually(served, timeout_s=60, what=f"the next worker of {lane}")

    def kill_control(self) -> None:
        time.sleep(self.dice.random() * 0.3)
        self.daemon.kill()
        self.outcome.control_kills += 1
        began_s = time.monotonic()
        self.daemon.start()
        self.outcome.back_s.append(time.monotonic() - began_s)

    def all_well(self) -> bool:
        return all(it.process.poll() is None for it in self.running)

    def renew(self) -> bool:
        """Note which programs have failed and begin them anew; False when too much failed."""
        for it in [it for it in self.running if it.process.poll() is not None]:
            self.running.remove(it)
            self._finish(it)
            self._launch(it.name, it.lane, it.seed + 1)
        return len(self.outcome.failures) < MOST_FAILURES

    def strike(self, kill: Callable[[], None]) -> None:
        """Kill; who does not come back is a failure, too."""
        try:
            kill()
        except AssertionError as error:
            self.outcome.failures.append(str(error))

    def end(self) -> Outcome:
        """Stop the workloads and check what is left behind."""
        for it in self.running:
            self._finish(it)
        outcome = self.outcome
        outcome.failures += self._wrong_usage()
        found = self.daemon.run("fsck", check=False)
        if found.exit_code:
            outcome.failures.append(f"fsck: {found.stdout}")
        outcome.failures += self._rubbish()
        return outcome

    def clear(self) -> None:
        """End everything, however the siege went."""
        for it in self.running:
            it.process.kill()
            it.process.communicate()
        if self.daemon.process is not None:
            self.daemon.kill()
        abort(self.base)
        clear(self.base)

    def _finish(self, it: Running) -> None:
        try:
            it.process.communicate(timeout=END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            it.process.kill()
            it.process.wait()
            self.outcome.failures.append(f"{it.title}: does not end")
            return
        said = it.log.read_text()
        if it.process.returncode:
            self.outcome.failures.append(f"{it.title}: {said}")
        else:
            self.outcome.turns[it.title] += int(said.split()[-1])

    def _wrong_usage(self) -> list[str]:
        """Compare what the service says that snapshots take with a walk."""
        wrong = []
        for lane in (it for it in LANES if it != "views"):
            layer = self.daemon.root / "layers" / str(self.snapshots[lane]) / "fs"
            if not _comes(partial(_is_counted, self.daemon, lane, layer)):
                wrong.append(f"usage of {lane} is not what a walk finds")
        return wrong

    def _rubbish(self) -> list[str]:
        """Return what is left in work directories once nobody uses anything."""
        left = []
        for lane in (it for it in LANES if it != "views"):
            work = self.daemon.root / "layers" / str(self.snapshots[lane]) / "work" / "snapfs"
            if not _comes(partial(_is_clean, work)):
                left.append(f"left in {lane}: {_kept(work)}")
        return left


def _is_counted(daemon: RunningDaemon, key: str, layer: Path) -> bool:
    said = daemon.json("snapshot", "usage", key)
    seen: dict[tuple[int, int], int] = {}
    for above, directories, names in os.walk(layer):
        for path in (above, *(os.path.join(above, it) for it in (*directories, *names))):
            found = os.lstat(path)
            seen[found.st_dev, found.st_ino] = found.st_blocks * 512
    return bool((said["size_bytes"], said["inodes"]) == (sum(seen.values()), len(seen)))


def _kept(work: Path) -> list[str]:
    return [it for it in os.listdir(work) if it[0] in "to"]


def _is_clean(work: Path) -> bool:
    return not _kept(work)


def _comes(check: Callable[[], bool], timeout_s: float = 30.0) -> bool:
    """Whether something becomes true, while the kernel forgets what nobody uses."""
    end_s = time.monotonic() + timeout_s
    while not check():
        if time.monotonic() > end_s:
            return False
        drop_dentries()
        time.sleep(0.1)
    return True


def run(
    base: Path,
    *,
    workers: int,
    controls: int,
    seconds: float = float("inf"),
    seed: int = 0,
    names: tuple[str, ...] = (),
) -> Outcome:
    """Kill so many workers and control processes under all workloads, or for so long."""
    siege = Siege(base, seed, names or tuple(workloads.WORKLOADS))
    end_s = time.monotonic() + seconds
    try:
        siege.begin()
        while siege.renew() and time.monotonic() < end_s:
            left = [
                workers - siege.outcome.worker_kills.total(),
                controls - siege.outcome.control_kills,
            ]
            if sum(left) <= 0:
                break
            kill = siege.dice.choices(
                (siege.kill_worker, siege.kill_control), [max(0, n) for n in left]
            )
            siege.strike(kill[0])
        return siege.end()
    finally:
        siege.clear()


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.crash.kills")
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--controls", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end after so many")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="snapfs-kills-"))
    try:
        outcome = run(
            base,
            workers=chosen.workers,
            controls=chosen.controls,
            seconds=chosen.seconds,
            seed=chosen.seed,
        )
    finally:
        shutil.rmtree(base, ignore_errors=True)
    if chosen.json:
        print(json.dumps({"worker_kills": outcome.worker_kills, "turns": outcome.turns}))
    print(f"seed {chosen.seed}\n\n{outcome.table()}")
    return bool(outcome.failures)


if __name__ == "__main__":
    sys.exit(main())
