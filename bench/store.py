"""Time the store by itself: reads, durable updates of 16 writers, and what watches cost writers.

Updates are timed with and without 100 consumers of watches in the same process, in turns, so that
the last columns are ratios of one run.
"""

from __future__ import annotations

import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import arguments, report
from snapfs.model import Unavailable
from snapfs.store import Index, Specifier, Store, Table, WriteTx

SIZES = (1_000, 100_000)
READS = 40_000
WRITERS = 16
TURNS = 5
TURN_S = 1.0
WATCHES = 100
SCOPE = "bench"


class Item(msgspec.Struct, frozen=True):
    number: int
    labels: dict[str, str]


ITEMS = Table(1, "item", Item, indexes=(Index("number", lambda it: [b"%d" % it.number]),))
OTHERS = Table(2, "other", Item)


def main() -> None:
    sizes = arguments.sizes("store", __doc__, SIZES, "objects in the store")
    rates: list[tuple[str, dict[str, float]]] = []
    costs: list[tuple[str, dict[str, float]]] = []
    for size in sizes:
        per_second, cpu_us = measure(size)
        rates.append((f"{size:,} objects", per_second))
        costs.append((f"{size:,} objects", cpu_us))
    print(report.table("per second", rates, reference="updates"), end="\n\n")
    print(report.table("µs of processor time for an update", costs, reference="updates"))


def measure(size: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return the rates of a store with `size` objects, and what its updates cost."""
    root = Path(tempfile.mkdtemp(prefix="snapfs-bench-"))
    try:
        with Store.open(root / "store", [ITEMS, OTHERS]) as store:
            began = time.monotonic()
            for _ in fill(store, size):
                pass
            figures = {"created in batches": size / (time.monotonic() - began)}
            figures["reads by name"] = reads(store, size)
            rates, costs = updates(store, size)
            return figures | rates, costs
    finally:
        shutil.rmtree(root)


def fill(store: Store, size: int) -> Iterator[None]:
    def one(number: int) -> Callable[[WriteTx], Any]:
        return lambda tx: tx.create(ITEMS, SCOPE, f"item-{number}", _item(number))

    for first in range(0, size, 10_000):
        store.batch(one(number) for number in range(first, min(size, first + 10_000)))
        yield


def reads(store: Store, size: int) -> float:
    """Return how many objects a second are read by name, each in a view of its own."""
    names = [f"item-{random.randrange(size)}" for _ in range(READS)]
    began = time.monotonic()
    for name in names:
        with store.view() as tx:
            tx.get(ITEMS, SCOPE, name)
    return READS / (time.monotonic() - began)


def updates(store: Store, size: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return rates and costs of durable updates: alone, and with watches of three kinds."""
    kinds: dict[str, Callable[[], Any]] = {
        "updates": lambda: consumers(store, 0),
        "with 100 watches of everything": lambda: consumers(store, WATCHES),
        "of one object each": lambda: consumers(store, WATCHES, lambda n: _one_of(n)),
        "of another table": lambda: consumers(store, WATCHES, lambda n: Specifier(OTHERS)),
    }
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for _ in range(TURNS):
        for kind, watched in kinds.items():
            with watched():
                found[kind].append(rate(store, size))
    middle = {
        kind: [statistics.median(it) for it in zip(*runs, strict=True)]
        for kind, runs in found.items()
    }
    return {kind: it[0] for kind, it in middle.items()}, {k: it[1] for k, it in middle.items()}


def rate(store: Store, size: int) -> tuple[float, float]:
    """Return how many updates a second WRITERS threads make, each waiting for its own.

    And the time of the processor that the whole process took for one, in µs: it says what
    watches cost also on a machine that does other things.
    """
    end = time.monotonic() + TURN_S
    counts = [0] * WRITERS

    def write(writer: int) -> None:
        while time.monotonic() < end:
            name = f"item-{random.randrange(size)}"
            store.update(partial(_touch, name))
            counts[writer] += 1

    threads = [threading.Thread(target=write, args=(number,)) for number in range(WRITERS)]
    began, cpu_began = time.monotonic(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cpu_us = 1e6 * (time.process_time() - cpu_began) / sum(counts)
    return sum(counts) / (time.monotonic() - began), cpu_us


@contextmanager
def consumers(
    store: Store, count: int, specify: Callable[[int], Specifier[Any]] | None = None
) -> Iterator[None]:
    """Have threads take all that `count` watches have, until the block ends."""
    watches = [
        store.watch(None, *([specify(number)] if specify else []), commits=specify is None)
        for number in range(count)
    ]

    def consume(watch: Any) -> None:
        try:
            while True:
                watch.take()
        except Unavailable:
            return

    threads = [threading.Thread(target=consume, args=(watch,)) for watch in watches]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for watch in watches:
            watch.close()
        for thread in threads:
            thread.join()


def _one_of(number: int) -> Specifier[Item]:
    return Specifier(ITEMS, name=f"item-{number}")


def _touch(name: str, tx: WriteTx) -> None:
    row = tx.get(ITEMS, SCOPE, name)
    if row is not None:
        tx.update(row, _item(row.body.number), spec=False)


def _item(number: int) -> Item:
    return Item(number, {"containerd.io/snapshot.ref": f"sha256:{number:064x}"})


if __name__ == "__main__":
    main()
