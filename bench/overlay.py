"""Time file work on kernel overlayfs, fuse-overlayfs and snapfs's lanes in one run; print ratios.

    python -m bench overlay [--runs N] [--rows WORD,...] [--lanes NAME,...] [--no-requests]

All are mounted over the same lower tree on an ext4 of the benchmark's own and take turns; each
figure is the median of the runs, a fresh upper each. A WORD keeps the rows whose name contains it.
`Cold` means: after `sync; echo 3 > drop_caches` on the mounted tree, so the kernel has forgotten
names, attributes and data, and the server has been told; what it keeps in its own memory it keeps.
`Warm` means: done twice before. A first run, which is not timed, counts requests from the kernel's
tracepoint (FORGET is not seen there), and says how many of a lane's were left to Python.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import arguments, disk, ending, processors, report, requests, systems, verdict
from bench.requests import Tracer
from bench.rows import ROWS, WARM_UPS, Row
from bench.systems import FUSE_OVERLAYFS, OVERLAYFS, System
from tests.support.images import debian_tree

RUNS = 5
DISK_GIB = 8
PACKAGES = ("vim",)
"""Besides those of the tests: about 12,000 files then."""


@dataclass
class Measured:
    """What one row took on one system."""

    seconds: list[float] = field(default_factory=list)
    server_seconds: list[float] = field(default_factory=list)
    """Processor time of the server meanwhile."""
    requests: Counter[str] | None = None
    python: Counter[str] = field(default_factory=Counter)
    """Those of them that were left to Python, and FORGET."""


Results = dict[tuple[str, str], Measured]
"""By row and system."""


def main() -> None:
    """Run the chosen rows on the chosen systems and print tables."""
    parser = arguments.parser("overlay", __doc__)
    parser.add_argument("--runs", type=int, default=RUNS, help="timed runs (5); 0: requests only")
    parser.add_argument("--rows", default="", help="words that names of rows contain")
    parser.add_argument("--lanes", default="", help="names of lanes; all that there are")
    parser.add_argument("--no-requests", action="store_true", help="neither warm up nor count")
    chosen = parser.parse_args()
    ending.end_on_signals()
    words = [word for word in chosen.rows.split(",") if word]
    rows = [row for row in ROWS if not words or any(word in row.name for word in words)]
    with ending.scratch_directory() as scratch, disk.own_disk(scratch, DISK_GIB) as own:
        archive = debian_tree(*PACKAGES)
        with (
            systems.snapfs_serving(own / "snapfs", archive) as serve,
            requests.tracer(scratch) as tracer,
        ):
            lanes = [name for name in chosen.lanes.split(",") if name]
            columns = systems.all_systems(serve, own, lanes)
            entries = count_entries(columns[0])
            results: Results = {}
            try:
                if not chosen.no_requests:
                    served = [it for it in columns if it.name != OVERLAYFS]
                    measure(rows, served, archive, results, tracer=tracer)
                for number in range(chosen.runs):
                    turn = number % len(columns)
                    measure(rows, columns[turn:] + columns[:turn], archive, results)
            finally:  # what was measured before an interruption counts, too
                print(page(rows, columns, results, entries), flush=True)


def measure(
    rows: Sequence[Row],
    columns: Iterable[System],
    archive: Path,
    results: Results,
    *,
    tracer: Tracer | None = None,
) -> None:
    """Do all rows once on each system; time them, or count their requests."""
    groups = list(dict.fromkeys(row.group for row in rows))
    for group in groups:
        # All of the group up to the last that is wanted: each row makes what the next needs.
        names = [row.name for row in rows if row.group == group]
        needed = [row for row in ROWS if row.group == group]
        while needed[-1].name not in names:
            needed.pop()
        for system in columns:
            if all(row.reads_only for row in needed) or system.writable:
                with system.mounted() as merged:
                    link = merged.parent / "tree.tar"
                    link.symlink_to(archive)
                    for row in needed:
                        measured = results.setdefault((row.name, system.name), Measured())
                        once(row, merged, system, measured, tracer)
                        _say(row, system, measured)
                    link.unlink()


def once(row: Row, merged: Path, system: System, measured: Measured, tracer: Tracer | None) -> None:
    """Do one row on one mounted tree."""
    if row.before is not None:
        row.before(merged)
    for _ in range(WARM_UPS if row.warm else 0):
        row.run(merged)
    os.sync()
    if row.cold:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    if tracer is not None:
        left = system.python_requests()
        with tracer.counting(merged) as measured.requests:
            row.run(merged)
        measured.python = system.python_requests() - left
        return
    worker = system.worker()
    used = systems.processor_seconds(worker)
    start = time.perf_counter()
    row.run(merged)
    measured.seconds.append(time.perf_counter() - start)
    measured.server_seconds.append(systems.processor_seconds(worker) - used)


def _say(row: Row, system: System, measured: Measured) -> None:
    """Show on standard error how far it is."""
    done = f"{measured.seconds[-1]:.4f} s" if measured.seconds else "counted"
    print(f"{row.name}: {system.name}: {done}", file=sys.stderr, flush=True)


def count_entries(system: System) -> int:
    """Return how many files and directories the tree has."""
    with system.mounted() as merged:
        return sum(len(names) + len(files) for _, names, files in os.walk(merged)) + 1


def page(rows: Sequence[Row], columns: Sequence[System], results: Results, entries: int) -> str:
    """Return what is printed: times, what they come to, requests."""
    names = [it.name for it in columns]
    times = [(row.name, _medians(row, names, results)) for row in rows]
    version = systems.fuse_overlayfs_version()
    parts = [f"The tree has {entries} entries. {version}. {processors.idle_words()}"]
    if any(it for _, it in times):
        parts.append(report.table("seconds", times, reference=OVERLAYFS))
        lanes = [it for it in names if it not in (OVERLAYFS, FUSE_OVERLAYFS)]
        parts.append(verdict.table(rows, [it for _, it in times], lanes))
    counted = [name for name in names if any(results[k].requests for k in results if k[1] == name)]
    if counted:
        parts.append(_requests_table(rows, counted, results, entries))
    return "\n\n".join(parts)


def _medians(row: Row, names: Sequence[str], results: Results) -> dict[str, float]:
    found = {name: results[row.name, name] for name in names if (row.name, name) in results}
    return {name: statistics.median(it.seconds) for name, it in found.items() if it.seconds}


def _requests_table(
    rows: Sequence[Row], names: Sequence[str], results: Results, entries: int
) -> str:
    """Return requests for each operation, by opcode, and the server's processor time for each."""
    lines = ["| requests an operation | " + " | ".join(names) + " |"]
    lines.append("| --- |" + " --- |" * len(names))
    for row in rows:
        cells = []
        for name in names:
            measured = results.get((row.name, name))
            counts = measured.requests if measured else None
            if measured is None or counts is None:
                cells.append("-")
                continue
            cells.append(_requests_cell(counts, row.operations or entries, measured))
        lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _requests_cell(counts: Counter[str], operations: int, measured: Measured) -> str:
    total = counts.total()
    words = [f"{total / operations:.2f}"]
    words += [f"{opcode} {count / operations:.2f}" for opcode, count in counts.most_common(4)]
    words += _python_words(measured.python, operations)
    if total and measured.server_seconds:
        used = statistics.median(measured.server_seconds)
        words.append(f"{used / total * 1e6:.0f} us each")
    return ", ".join(words)


def _python_words(counts: Counter[str], operations: int) -> list[str]:
    """Say what took the slow way, most often first, where that is a hundredth of an operation."""
    named = [
        f"{opcode} {count / operations:.2f}"
        for opcode, count in counts.most_common(4)
        if count * 100 >= operations
    ]
    return [f"Python {counts.total() / operations:.2f} ({', '.join(named)})"] if named else []


if __name__ == "__main__":
    main()
