"""Time image unpack, and containers from start to exit, on containerd's overlayfs and on snapfs.

    python -m bench containers [--runs N] [--rows WORD,...] [--lanes NAME,...]

Debian's containerd, runc and ctr for all; snapfs with containers in its default lane, and in that
without opens. The image is a Debian tree under four small layers. Each figure
is the median of the runs, in which all take turns, after one that is not timed. Ten builds at once
take longer than all else together, and are done when --rows names them.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import arguments, ending, engines, report
from tests.support.containerd import Containerd
from tests.support.images import debian_image

RUNS = 3
AT_ONCE = 10
COMMANDS = {
    "true": ("/bin/true",),
    "python3": ("/usr/bin/python3", "-c", "import json, re, argparse"),
    "git": ("/bin/sh", "-c", "cd /tmp && git init -q a && git -C a status >/dev/null"),
    "ls -lR /usr": ("/bin/sh", "-c", "ls -lR /usr >/dev/null"),
    "build": (
        *("/bin/sh", "-c"),
        "cp -a /usr/lib/python3* /tmp && cd /tmp && git init -q && git add -A && rm -rf python3*",
    ),
}
ONLY_IF_NAMED = frozenset({f"{AT_ONCE} at once: build"})
"""Longer than all other rows together."""
LANES = {"main": "snapfs", "no-open": engines.NO_OPEN}
"""Snapshotters by the lane that their containers are in."""
REFERENCE = "overlayfs"
Row: TypeAlias = tuple[str, dict[str, float]]
"""A name, and seconds by snapshotter."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which part is to be run."""

    runs: int
    words: Sequence[str]
    """Of names of rows; all but ONLY_IF_NAMED when there are none."""
    snapshotters: Sequence[str]

    def has(self, row: str) -> bool:
        if not self.words:
            return row not in ONLY_IF_NAMED
        return any(word in row for word in self.words)

    def medians(self, row: str, once: Callable[[str], float], *, warm_ups: int = 1) -> Row:
        """Return the median for each snapshotter, all taking turns."""
        times: dict[str, list[float]] = {name: [] for name in self.snapshotters}
        began = time.perf_counter()
        for number in range(-warm_ups, self.runs):
            for snapshotter in self.snapshotters:
                seconds = once(snapshotter)
                if number >= 0:
                    times[snapshotter].append(seconds)
        took = time.perf_counter() - began
        print(f"{row}: measured for {took:.0f} s", file=sys.stderr, flush=True)
        return row, {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Run the chosen rows on the chosen snapshotters in turn and print the table."""
    chosen = choose()
    ending.end_on_signals()
    rows: list[Row] = []
    try:
        for durability in ("full", "metadata"):
            rows += of_durability(durability, chosen)
    finally:  # what was measured before an interruption counts, too
        if rows:
            print(report.table("seconds", rows, reference=REFERENCE))
    if not rows:
        sys.exit(f"no row's name contains {' or '.join(chosen.words)}")


def choose() -> Chosen:
    """Return what the command line chooses."""
    parser = arguments.parser("containers", __doc__)
    parser.add_argument("--runs", type=int, default=RUNS, help=f"timed runs ({RUNS})")
    parser.add_argument("--rows", default="", help="words that names of rows contain")
    parser.add_argument("--lanes", default="", help=f"of {', '.join(LANES)}; all of them")
    given = parser.parse_args()
    lanes = [name for name in given.lanes.split(",") if name] or list(LANES)
    if unknown := set(lanes) - LANES.keys():
        parser.error(f"no lane {', '.join(sorted(unknown))} here; there are {', '.join(LANES)}")
    if given.runs < 1:
        parser.error("--runs: one at least")
    words = [word for word in given.rows.split(",") if word]
    return Chosen(given.runs, words, [REFERENCE, *(LANES[name] for name in lanes)])


def of_durability(durability: str, chosen: Chosen) -> Iterator[Row]:
    """Yield the rows with services of such a durability, which start if there are any."""
    unpacking = f"unpack, durability = {durability}"
    commands = {
        (title, count): command
        for title, command in COMMANDS.items()
        for count in (1, AT_ONCE)
        if durability == "full" and chosen.has(_named(title, count))
    }
    if not commands and not chosen.has(unpacking):
        return
    with engines.running(durability=durability) as both:
        image = debian_image()
        archive = image.write(both.scratch / "image.tar")
        if chosen.has(unpacking):
            yield chosen.medians(unpacking, lambda name: unpack(both.containerd, archive, name))
        for snapshotter in chosen.snapshotters if commands else ():
            both.containerd.load(archive, snapshotter=snapshotter)
        for (title, count), command in commands.items():
            once = partial(start_to_exit, both.containerd, image.name, command, count)
            # Many at once find warm what one alone has read; without that row, they warm it.
            is_warm = count > 1 and (title, 1) in commands
            yield chosen.medians(_named(title, count), once, warm_ups=not is_warm)


def _named(title: str, count: int) -> str:
    return f"start to exit: {title}" if count == 1 else f"{count} at once: {title}"


def unpack(engine: Containerd, archive: Path, snapshotter: str) -> float:
    """Return the seconds to unpack the image's layers; its blobs are there already."""
    engine.ctr("images", "import", "--no-unpack", archive)
    rows = engine.ctr("images", "list").stdout.decode().splitlines()[1:]
    digest = next(word for word in rows[0].split() if word.startswith("sha256:"))
    seconds = seconds_of(
        lambda: engine.ctr("snapshots", "--snapshotter", snapshotter, "unpack", digest)
    )
    engine.remove_everything()
    return seconds


def start_to_exit(
    engine: Containerd, image: str, command: Sequence[str], count: int, snapshotter: str
) -> float:
    """Return the seconds of `ctr run --rm`, of so many at once."""

    def run(number: int) -> None:
        engine.run(image, f"{snapshotter}-{number}", *command, snapshotter=snapshotter)

    with ThreadPoolExecutor(count) as pool:
        return seconds_of(lambda: list(pool.map(run, range(count))))


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
