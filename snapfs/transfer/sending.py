"""The side that has a layer: what it is, and those of its chunks that the other side lacks."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import TypeVar

import msgspec

from snapfs.model import DataLoss, InvalidArgument
from snapfs.transfer import packing, places
from snapfs.transfer.manifest import Chunk, Digest, Entry
from snapfs.transfer.packing import Packed
from snapfs.transfer.places import Place
from snapfs.transfer.stock import Manifest, Stock

T = TypeVar("T")

WORKERS = 4
AHEAD = 32
"""Chunks that are packed before the first of them is taken: at most 8 MiB."""
PART_BYTES = 1 << 20


class Offer(msgspec.Struct, frozen=True, array_like=True):
    """A layer that is to be sent."""

    digest: bytes
    below: tuple[bytes, ...]
    """Digests of the layers under it, the parent's first."""
    manifest_bytes: int


class Source:
    """Sends layers of one root. Thread-safe."""

    def __init__(self, stock: Stock) -> None:
        self._stock = stock

    def offer(self, name: str) -> Offer:
        """Return what the layer of a committed snapshot is; reads layers that were never read."""
        digest, *below = self._stock.chain(name)
        size_bytes = self._stock.of(name).path.stat().st_size
        return Offer(digest, tuple(below), size_bytes)

    def manifest(self, name: str) -> Iterator[bytes]:
        """Yield the manifest of a committed snapshot's layer in parts."""
        with self._stock.of(name).path.open("rb") as file:
            while part := file.read(PART_BYTES):
                yield part

    def chunks(self, name: str, wanted: Iterable[bytes]) -> Iterator[Packed]:
        """Yield the chunks of a layer with these digests, packed, in the order of the layer.

        Raises InvalidArgument for a digest that is not the layer's, DataLoss when what is on disk
        is not what was scanned.
        """
        known = self._stock.of(name)
        spots = _spots(known, set(wanted))
        found = self._stock.committed(name)
        layers = [self._stock.directories.upper(it) for it in (found.id, *found.parent_ids)]
        with places.opened(layers) as opened, _pool() as pool:
            own, below = opened[0], opened[1:]
            jobs = (
                partial(packing.pack, *job)
                for entry, chunks in spots
                for job in _read(own, below, entry, chunks)
            )
            yield from _in_order(pool, jobs)


def _spots(known: Manifest, wanted: set[bytes]) -> Iterator[tuple[Entry, list[Chunk]]]:
    """Yield the files that have chunks that are wanted, with these, each chunk once."""
    for entry in known.entries():
        chunks = []
        for chunk in entry.chunks:
            if chunk.digest in wanted:
                wanted.discard(chunk.digest)
                chunks.append(chunk)
        if chunks:
            yield entry, chunks
    if wanted:
        raise InvalidArgument(f"{len(wanted)} chunks were asked for that the layer does not have")


def _read(
    own: Place, below: list[Place], entry: Entry, chunks: list[Chunk]
) -> Iterator[tuple[Chunk, bytes, bytes, int]]:
    """Yield what `pack` wants of each chunk of a file."""
    fd = own.open(entry.path)
    base = places.find_base(below, entry.path)
    try:
        for chunk in chunks:
            data = os.pread(fd, chunk.size_bytes, chunk.offset)
            if not packing.matches(chunk, data):
                raise DataLoss(
                    f"{entry.path!r} of a committed layer has changed on disk; run `snapfs fsck`, "
                    "and restore the layer from a copy"
                )
            yield chunk, data, *_base(base, chunk)
    finally:
        os.close(fd)
        if base is not None:
            os.close(base[1])


def _base(base: tuple[int, int] | None, chunk: Chunk) -> tuple[bytes, int]:
    if base is None:
        return b"", 0
    offset, count = packing.base_range(chunk)
    return os.pread(base[1], count, offset), base[0]


@contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="pack")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(pool: ThreadPoolExecutor, jobs: Iterator[partial[T]]) -> Iterator[T]:
    """Yield what the jobs return, in their order; a few are done ahead."""
    waiting: deque[Future[T]] = deque(pool.submit(job) for job in islice(jobs, AHEAD))
    while waiting:
        done = waiting.popleft().result()
        waiting.extend(pool.submit(job) for job in islice(jobs, 1))
        yield done


def digests(offer: Offer) -> list[Digest]:
    """Return the digests of an offer's layers, its own first."""
    return [Digest(it) for it in (offer.digest, *offer.below)]
