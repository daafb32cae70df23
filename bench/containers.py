"""Time image unpack, and containers from start to exit, on containerd's overlayfs and on snapfs.

Debian's containerd, runc and ctr for all; snapfs with containers in its default lane, and in that
without opens. The image is a Debian tree under four small layers.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import ending, engines, report
from tests.support.containerd import Containerd
from tests.support.images import debian_image

RUNS = 5
AT_ONCE = 10
COMMANDS = {
    "true": ("/bin/true",),
    "python3": ("/usr/bin/python3", "-c", "import json, re, argparse"),
    "git": ("/bin/sh", "-c", "cd /tmp && git init -q a && git -C a status >/dev/null"),
    "ls -R /usr": ("/bin/sh", "-c", "ls -lR /usr >/dev/null"),
    "build": (
        *("/bin/sh", "-c"),
        "cp -a /usr/lib/python3* /tmp && cd /tmp && git init -q && git add -A && rm -rf python3*",
    ),
}
SNAPSHOTTERS = (*engines.SNAPSHOTTERS, engines.NO_OPEN)


def main() -> None:
    """Run everything on all snapshotters in turn and print the tables."""
    ending.end_on_signals()
    rows: list[tuple[str, dict[str, float]]] = []
    for durability in ("full", "metadata"):
        with engines.running(durability=durability) as both:
            image = debian_image()
            archive = image.write(both.scratch / "image.tar")
            figures = unpack(both.containerd, archive)
            rows.append((f"unpack, durability = {durability}", figures))
            if durability == "full":
                rows += start_to_exit(both.containerd, archive, image.name)
    print(report.table("seconds", rows, reference="overlayfs"))


def unpack(engine: Containerd, archive: Path) -> dict[str, float]:
    """Return the seconds to unpack the image's layers; its blobs are there already."""

    def once(snapshotter: str) -> float:
        engine.ctr("images", "import", "--no-unpack", archive)
        rows = engine.ctr("images", "list").stdout.decode().splitlines()[1:]
        digest = next(word for word in rows[0].split() if word.startswith("sha256:"))
        start = time.perf_counter()
        engine.ctr("snapshots", "--snapshotter", snapshotter, "unpack", digest)
        seconds = time.perf_counter() - start
        engine.remove_everything()
        return seconds

    return medians(once)


def start_to_exit(
    engine: Containerd, archive: Path, image: str
) -> list[tuple[str, dict[str, float]]]:
    """Return the seconds of `ctr run --rm`, one at a time and some at once."""
    for snapshotter in SNAPSHOTTERS:
        engine.load(archive, snapshotter=snapshotter)
    rows = []
    for title, command in COMMANDS.items():

        def once(snapshotter: str, command: tuple[str, ...] = command) -> float:
            return seconds_of(lambda: run(engine, image, snapshotter, command))

        def many(snapshotter: str, command: tuple[str, ...] = command) -> float:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                return seconds_of(
                    lambda: list(
                        pool.map(
                            lambda number: run(engine, image, snapshotter, command, number),
                            range(AT_ONCE),
                        )
                    )
                )

        rows.append((f"start to exit: {title}", medians(once)))
        rows.append((f"{AT_ONCE} at once: {title}", medians(many)))
    return rows


def run(
    engine: Containerd, image: str, snapshotter: str, command: tuple[str, ...], number: int = 0
) -> None:
    engine.run(image, f"{snapshotter}-{number}", *command, snapshotter=snapshotter)


def medians(once: Callable[[str], float]) -> dict[str, float]:
    """Return the median of RUNS runs for each snapshotter, all taking turns; one warms up."""
    times: dict[str, list[float]] = {name: [] for name in SNAPSHOTTERS}
    for number in range(RUNS + 1):
        for snapshotter in SNAPSHOTTERS:
            seconds = once(snapshotter)
            if number:
                times[snapshotter].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
