"""Cost of a metastore operation with 100, 10,000 and 100,000 snapshots in it.

    python -m bench scaling [--sizes N,...] [--samples N]

Prints the median of each operation in microseconds, each one durable when it is counted, and the
ratio of the largest to the smallest store.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import arguments
from snapfs.model import Kind, Usage
from snapfs.snapshots import MetaStore

DEPTH = 10
FILLERS = 64


def fill(metastore: MetaStore, first: int, last: int) -> None:
    """Create the snapshots first..last-1, from many threads, so that they share fsyncs."""

    def work(start: int) -> None:
        for number in range(start, last, FILLERS):
            metastore.create(
                Kind.VIEW, f"fill/{number}", f"base{DEPTH - 1}", {"number": f"{number}"}
            )

    threads = [threading.Thread(target=work, args=(first + it,)) for it in range(FILLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def chain(metastore: MetaStore) -> None:
    for level in range(DEPTH):
        metastore.create(Kind.ACTIVE, "key", f"base{level - 1}" if level else "")
        metastore.commit("key", f"base{level}", Usage())


def measure(metastore: MetaStore, samples: int) -> dict[str, float]:
    """Return the median microseconds of each operation."""
    parent = f"base{DEPTH - 1}"
    operations: dict[str, Callable[[int], object]] = {
        "empty read": lambda _: _empty_read(metastore),
        "empty update": lambda _: metastore.store.update(lambda _tx: None),
        "create": lambda it: metastore.create(Kind.ACTIVE, f"probe{it}", parent),
        "info": lambda it: metastore.info(f"probe{it}"),
        "get": lambda it: metastore.get(f"probe{it}"),
        "update": lambda it: metastore.update(f"probe{it}", {"k": "v"}),
        "commit": lambda it: metastore.commit(f"probe{it}", f"done{it}", Usage(1, 1)),
        "walk, first 100": lambda _: [
            x for x, _ in zip(metastore.walk(), range(100), strict=False)
        ],
        "remove": lambda it: metastore.remove(f"done{it}"),
    }
    return {name: _median(operation, samples) for name, operation in operations.items()}


def _empty_read(metastore: MetaStore) -> None:
    with metastore.store.view():
        pass


def _median(operation: Callable[[int], object], samples: int) -> float:
    times = []
    for number in range(samples):
        began = time.perf_counter()
        operation(number)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


def main() -> None:
    parser = arguments.parser("scaling", __doc__)
    parser.add_argument("--sizes", default="100,10000,100000", help="snapshots in the store")
    parser.add_argument("--samples", type=int, default=300, help="of each operation (300)")
    chosen = parser.parse_args()
    sizes = [int(size) for size in chosen.sizes.split(",")]
    results = []
    with tempfile.TemporaryDirectory() as directory, MetaStore(Path(directory, "m")) as metastore:
        chain(metastore)
        present = 0
        for size in sizes:
            fill(metastore, present, size)
            present = size
            results.append(measure(metastore, chosen.samples))
    print(f"{'median, us':20}" + "".join(f"{size:>10,}" for size in sizes) + f"{'ratio':>8}")
    for name in results[0]:
        row = [result[name] for result in results]
        print(
            f"{name:20}" + "".join(f"{value:10.0f}" for value in row) + f"{row[-1] / row[0]:8.2f}"
        )


if __name__ == "__main__":
    main()
