"""Time the file workloads on overlayfs, fuse-overlayfs and snapfs in one run; print ratios.

    make bench            or      .venv/bin/python bench/files.py [--runs N] [WORD ...]

A WORD keeps the workloads whose name contains it. Times are the median of N runs, each on a
fresh upper over the same Debian tree. The order of file systems changes from run to run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import filesystems, report
from bench.workloads import WORKLOADS, Workload
from tests.support.images import debian_tree


def main() -> None:
    """Run the chosen workloads and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("words", nargs="*")
    arguments = parser.parse_args()
    chosen = [
        w for w in WORKLOADS if not arguments.words or any(x in w.name for x in arguments.words)
    ]
    with tempfile.TemporaryDirectory(prefix="snapfs-bench-", dir="/var/tmp") as directory:
        scratch = Path(directory)
        lower = scratch / "lower"
        lower.mkdir()
        subprocess.run(["tar", "-C", lower, "-xf", debian_tree()], check=True, timeout=300)
        rows = [(w.name, measure(w, lower, scratch, arguments.runs)) for w in chosen]
    print(report.table("seconds", rows, reference="overlayfs"))


def measure(workload: Workload, lower: Path, scratch: Path, runs: int) -> dict[str, float]:
    """Return the median seconds of `workload` for each file system."""
    systems = filesystems.available()
    times: dict[str, list[float]] = {name: [] for name in systems}
    for number in range(runs):
        names = list(systems)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            with systems[name](lower, scratch) as merged:
                times[name].append(time_once(workload, merged))
    return {name: statistics.median(values) for name, values in times.items()}


def time_once(workload: Workload, merged: Path) -> float:
    """Return the seconds that `workload` takes on `merged`."""
    workload.prepare(merged)
    os.sync()
    if workload.cold:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    start = time.perf_counter()
    workload.run(merged)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
