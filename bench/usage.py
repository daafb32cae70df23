"""What a question for a snapshot's usage costs: a walk over its files, and the worker's count.

    python -m bench usage [--files N] [--runs N]

Prints one table of medians.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import arguments
from snapfs.fuse.lanes import Lanes
from snapfs.fuse.supervisor import Lane
from snapfs.snapshots import Snapshotter
from snapfs.snapshots.usage import measure

RUNS = 5
FILES = 100_000
FILES_IN_DIRECTORY = 500
TIMEOUT_S = 30.0


def fill(layer: Path, count: int) -> None:
    """Make files of some hundred bytes, as a container's writable layer after a build."""
    for number in range(count):
        directory = layer / str(number // FILES_IN_DIRECTORY)
        if not number % FILES_IN_DIRECTORY:
            directory.mkdir()
        (directory / str(number)).write_bytes(b"x" * 300)


def median_ms(runs: int, call: Callable[[], object]) -> float:
    took = []
    for _ in range(runs):
        began_s = time.perf_counter()
        call()
        took.append((time.perf_counter() - began_s) * 1000)
    return statistics.median(took)


def main() -> None:
    parser = arguments.parser("usage", __doc__)
    parser.add_argument("--files", type=int, default=FILES, help=f"in the layer ({FILES})")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"timed runs ({RUNS})")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="snapfs-bench-usage-") as name:
        base = Path(name)
        lane = Lane("bench", base / "mnt", base / "root", door=base / "lanes" / "bench.sock")
        lanes = Lanes.of(lane, start_timeout_s=TIMEOUT_S, stop_timeout_s=TIMEOUT_S)
        with Snapshotter(base / "root", trees=lanes) as snapshots:
            lane.start(TIMEOUT_S)
            try:
                report(snapshots, lane, chosen.files, chosen.runs)
            finally:
                lane.stop(TIMEOUT_S)


def report(snapshots: Snapshotter, lane: Lane, count: int, runs: int) -> None:
    snapshots.prepare("work")
    identity = snapshots.stat("work").id
    upper = snapshots.root / "layers" / str(identity) / "fs"
    fill(upper, count)
    tree = lane.mountpoint(identity)
    with (tree / "open").open("w") as held:  # keeps the tree open
        deadline_s = time.monotonic() + TIMEOUT_S
        while lane.usage(identity) is None and time.monotonic() < deadline_s:
            time.sleep(0.05)
        said = snapshots.usage("work")
        walked = measure(upper)
        if said != walked:
            raise SystemExit(f"the count says {said}, a walk {walked}")
        print(f"| {count:,} files | ms |\n|---|---|")

        def counted_ms() -> float:
            return median_ms(runs, lambda: snapshots.usage("work"))

        print(f"| walk | {median_ms(runs, lambda: measure(upper)):.1f} |")
        print(f"| count, nothing changed | {counted_ms():.2f} |")
        for number in range(1000):
            (tree / "0" / f"new-{number}").write_bytes(b"y" * 300)
        print(f"| count, 1,000 files changed | {counted_ms():.2f} |")
        held.write("done")


if __name__ == "__main__":
    main()
