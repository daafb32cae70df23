"""Time a collection among many objects, and how long writers wait meanwhile.

The store holds images with a manifest and eight layers each; some have no name, so are garbage. A
writer makes durable updates, one after the other, while the store is idle, while a collection
marks, and during a whole one. Ratios are to the idle store.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import arguments, ending, report
from snapfs import anchors
from snapfs.metadata import TABLES as METADATA
from snapfs.metadata import Context, Descriptor, Metadata, linking
from snapfs.metadata.schema import BLOBS, CONTENT, IMAGES, SHARED, BlobBody, ContentBody, ImageBody
from snapfs.store import Store, WriteTx

SIZES = (100_000, 1_000_000)
LAYERS = 8
OBJECTS = LAYERS + 2
"""Of an image: its name, its manifest and its layers."""

GARBAGE = 100
"""One image in so many has no name."""

IDLE_S = 5.0
TABLES = (*anchors.TABLES, *METADATA)
NAMESPACES = ("one", "two", "three", "four")
MEDIA_TYPE = "application/vnd.oci.image.manifest.v1+json"
MARK_TARGET_S = 10.0
WAIT_TARGET_MS = 50.0


@dataclass
class Waits:
    """How long each update of a writer took, in ms."""

    taken_ms: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        cuts = statistics.quantiles(self.taken_ms, n=100)
        return {"median": cuts[49], "99 of 100": cuts[98], "longest": max(self.taken_ms)}


def main() -> None:
    """Measure each size and print the tables."""
    sizes = arguments.sizes("gc", __doc__, SIZES, "objects in the store")
    ending.end_on_signals()
    for size in sizes:
        root = Path(tempfile.mkdtemp(prefix="snapfs-bench-"))
        try:
            measure(root, size)
        finally:
            shutil.rmtree(root)


def measure(root: Path, size: int) -> None:
    """Fill a store in `root` with `size` objects, collect, and print what that took."""
    with (
        Store.open(root / "metadata", TABLES) as store,
        Metadata(store, root / "content", {}) as metadata,
    ):
        fill(store, size)
        with writing(metadata) as idle:
            time.sleep(IDLE_S)
        with writing(metadata) as marking:
            began, cpu_began = time.monotonic(), _cpu_s()
            garbage = metadata.garbage()
            mark_s, cpu_s = time.monotonic() - began, _cpu_s() - cpu_began
        with writing(metadata) as sweeping:
            done = metadata.collector.collect()
        phases = {"idle": idle, "mark": marking, "mark and sweep": sweeping}
        rows = {name: waits.figures() for name, waits in phases.items()}
        print(f"{size:,} objects: {done.marked:,} alive, {len(garbage):,} garbage\n")
        table = [
            (figure, {name: figures[figure] for name, figures in rows.items()})
            for figure in rows["idle"]
        ]
        print(report.table("ms of an update", table, reference="idle"), end="\n\n")
        print(
            f"Mark alone {mark_s:.1f} s, of which {cpu_s:.1f} s of the processor (promised for a "
            f"million: {MARK_TARGET_S:.0f} s). Mark and sweep {done.elapsed_ns / 1e9:.1f} s. "
            f"Longest wait {rows['mark and sweep']['longest']:.0f} ms "
            f"(promised: {WAIT_TARGET_MS:.0f} ms).\n",
            flush=True,
        )


def _cpu_s() -> float:
    """Return the time of the processor that this thread and ended children took."""
    children = os.times()
    return time.thread_time() + children.children_user + children.children_system


def fill(store: Store, size: int) -> None:
    """Make images until there are `size` objects."""
    blob = store.update(lambda tx: tx.create(BLOBS, SHARED, _digest(0), BlobBody(1)))
    images = size // OBJECTS
    for first in range(0, images, 1000):
        last = min(first + 1000, images)
        store.batch(partial(_image, blob=blob.oid, number=it) for it in range(first, last))


def _image(tx: WriteTx, *, blob: int, number: int) -> None:
    namespace = NAMESPACES[number % len(NAMESPACES)]
    manifest = OBJECTS * number + 1
    labels = {}
    for layer in range(LAYERS):
        digest = _digest(manifest + 1 + layer)
        body = ContentBody(size_bytes=1, blob=blob)
        linking.create(tx, CONTENT, namespace, digest, body)
        labels[f"containerd.io/gc.ref.content.l.{layer}"] = digest
    body = ContentBody(size_bytes=1, blob=blob, labels=labels)
    linking.create(tx, CONTENT, namespace, _digest(manifest), body)
    if number % GARBAGE:
        target = Descriptor(MEDIA_TYPE, _digest(manifest), 1)
        linking.create(tx, IMAGES, namespace, f"image-{number}", ImageBody(target=target))


def _digest(number: int) -> str:
    return f"sha256:{number:064x}"


@contextmanager
def writing(metadata: Metadata) -> Iterator[Waits]:
    """Have a writer make updates until the block ends; what it waited is there then."""
    waits, end = Waits(), threading.Event()
    thread = threading.Thread(target=_write, args=(metadata, waits, end.is_set))
    thread.start()
    try:
        yield waits
    finally:
        end.set()
        thread.join()


def _write(metadata: Metadata, waits: Waits, ended: Callable[[], bool]) -> None:
    context = Context("writer")
    metadata.namespaces.set_label(context.namespace, "count", "0")
    while not ended():
        began = time.perf_counter()
        metadata.namespaces.set_label(context.namespace, "count", str(len(waits.taken_ms)))
        waits.taken_ms.append(1000 * (time.perf_counter() - began))


if __name__ == "__main__":
    main()
