"""Random graphs with writers at work during mark and sweep: no live object is lost, and after two
quiet runs no garbage is left."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import pytest

from snapfs.anchors import Anchors, Ref
from snapfs.metadata import Collector, Context, Metadata, Resource, collector, marking, ordering
from snapfs.metadata.graph import Walk, roots
from snapfs.metadata.schema import CONTENT
from snapfs.model import NotFound, SnapfsError
from snapfs.store import Store, WriteTx
from tests.metadata.kit import NOW, TABLES, Clock, digest_of, image, write

T = TypeVar("T")

GC = "containerd.io/gc."
DEADLINE_S = 60.0
NAMESPACE = "n"
HERE = Context(NAMESPACE)
WORDS = [f"word {number}" for number in range(24)]
DIGESTS = [digest_of(word.encode()) for word in WORDS]


class Mutator(threading.Thread):
    """Changes the graph at random. What it holds by a lease or an image it expects to find."""

    def __init__(self, metadata: Metadata, number: int, rounds: int) -> None:
        super().__init__(daemon=True)
        self.metadata, self.number, self.rounds = metadata, number, rounds
        self.random = random.Random(number)
        self.lost: list[str] = []

    def run(self) -> None:
        for round_ in range(self.rounds):
            try:
                self.step(f"{self.number}-{round_}")
            except SnapfsError as error:
                self.lost.append(f"{type(error).__name__}: {error}")

    def step(self, name: str) -> None:
        """Pull: a lease, a chain of content under it, an image; then the lease goes."""
        metadata = self.metadata
        metadata.leases.create(NAMESPACE, name)
        under = Context(NAMESPACE, lease=name)
        chain = self.random.sample(range(len(WORDS)), 3)
        below = ""
        for word in chain:
            below = self.put(under, word, below)
        metadata.images.create(under, image(name, below))
        metadata.leases.delete(NAMESPACE, name)
        self.check(below)
        if self.random.random() < 0.7:
            metadata.images.delete(NAMESPACE, name)

    def put(self, under: Context, word: int, below: str) -> str:
        """Have content under the lease, with a label on what it needs."""
        digest = DIGESTS[word]
        end = time.monotonic() + DEADLINE_S
        while not self.has(under, word):
            assert time.monotonic() < end, f"somebody writes {digest} all the time"
            time.sleep(0.01)
        if below:
            labels = {f"{GC}ref.content.{below}": below}
            self.metadata.content.update(
                NAMESPACE, digest, labels, [f"labels.{next(iter(labels))}"]
            )
        return digest

    def has(self, under: Context, word: int) -> bool:
        """Write content or have the lease hold what is there; False while another writes it."""
        try:
            write(self.metadata, under, WORDS[word].encode())
        except SnapfsError:
            resource = Resource("content", DIGESTS[word])
            self.metadata.leases.add(NAMESPACE, under.lease, resource)
            try:
                self.metadata.content.info(NAMESPACE, DIGESTS[word])
            except NotFound:
                return False
        return True

    def check(self, top: str) -> None:
        """What an image keeps is there, and so are its bytes."""
        info = self.metadata.content.info(NAMESPACE, top)
        self.metadata.content.path(NAMESPACE, top).read_bytes()
        for label, digest in info.labels.items():
            if label.startswith(GC):
                self.metadata.content.info(NAMESPACE, digest)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_no_live_object_is_lost_while_writers_run(
    tmp_path: Path, seed: int, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(marking, "HERE_ROWS", -1 if apart else 1_000_000)
    monkeypatch.setattr(collector, "BATCH", 3)
    with (
        Store.open(tmp_path / "metadata", TABLES, clock_ns=clock) as store,
        Metadata(store, tmp_path / "content", {}, clock_ns=clock) as metadata,
    ):
        mutators = [Mutator(metadata, 100 * seed + number, 12) for number in range(3)]
        for mutator in mutators:
            mutator.start()
        while any(mutator.is_alive() for mutator in mutators):
            metadata.collector.collect()
        for mutator in mutators:
            mutator.join(timeout=60)
            assert not mutator.is_alive()
            assert mutator.lost == []
        metadata.collector.collect()
        metadata.collector.collect()
        assert metadata.garbage() == []
        check_exact(store, metadata)
        assert store.check() == []


def check_exact(store: Store, metadata: Metadata) -> None:
    """What is left is what the roots reach, and every file belongs to a row."""
    with store.view() as tx:
        walk = Walk(tx, NOW)
        walk.add((root.oid, root.mark) for root in roots(tx, NOW))
        there = {row.oid for row in tx.rows(CONTENT, NAMESPACE)}
        assert there <= walk.marks.keys()
    assert metadata.content.cleanup() == []


class Interposed:
    """A store in which something else happens just before each update of a sweep."""

    def __init__(self, store: Store, meanwhile: Callable[[], None]) -> None:
        self._store, self._meanwhile = store, meanwhile
        self.view, self.stats = store.view, store.stats

    def update(self, function: Callable[[WriteTx], T], *, timeout_s: float | None = None) -> T:
        self._meanwhile()
        return self._store.update(function, timeout_s=timeout_s)


def sweeping(metadata: Metadata, store: Store, meanwhile: Callable[[], None]) -> Collector:
    interposed = cast(Store, Interposed(store, meanwhile))
    return Collector(interposed, metadata.content, {}, clock_ns=Clock())


def test_what_is_referred_to_after_the_mark_stays_with_all_below_it(
    metadata: Metadata, store: Store
) -> None:
    layer = write(metadata, HERE, b"layer")
    manifest = write(metadata, HERE, b"manifest", {GC + "ref.content": layer})
    write(metadata, HERE, b"garbage")
    names = iter(["first", "second", "third", "fourth"])

    def meanwhile() -> None:
        metadata.images.create(HERE, image(next(names), manifest))

    sweeping(metadata, store, meanwhile).collect()
    left = {each.digest for each in metadata.content.walk(NAMESPACE)}
    assert left == {layer, manifest}


def test_a_label_put_on_a_marked_row_after_the_mark_keeps_what_it_names(
    metadata: Metadata, store: Store
) -> None:
    layer = write(metadata, HERE, b"layer")
    root = write(metadata, HERE, b"root", {GC + "root": ""})

    def meanwhile() -> None:
        metadata.content.update(
            NAMESPACE, root, {GC + "ref.content": layer}, [f"labels.{GC}ref.content"]
        )

    sweeping(metadata, store, meanwhile).collect()
    assert metadata.content.info(NAMESPACE, layer).digest == layer


def test_a_lease_taken_after_the_mark_holds(metadata: Metadata, store: Store) -> None:
    layer = write(metadata, HERE, b"layer")
    metadata.leases.create(NAMESPACE, "l")

    def meanwhile() -> None:
        metadata.leases.add(NAMESPACE, "l", Resource("content", layer))

    sweeping(metadata, store, meanwhile).collect()
    assert metadata.content.info(NAMESPACE, layer).digest == layer


def test_an_anchor_put_after_the_mark_holds(metadata: Metadata, store: Store) -> None:
    layer = write(metadata, HERE, b"layer")
    with store.view() as tx:
        (row,) = tx.rows(CONTENT, NAMESPACE)

    def meanwhile() -> None:
        Anchors(store).put("release", Ref("content", layer), target=row.oid)

    sweeping(metadata, store, meanwhile).collect()
    assert metadata.content.info(NAMESPACE, layer).digest == layer


@pytest.mark.parametrize("circle", [False, True])
def test_what_is_wanted_again_between_two_batches_has_all_that_it_refers_to(
    metadata: Metadata, store: Store, monkeypatch: pytest.MonkeyPatch, circle: bool
) -> None:
    monkeypatch.setattr(collector, "BATCH", 1)
    layers = [write(metadata, HERE, b"%d" % number) for number in range(3)]
    references = {f"{GC}ref.content.{number}": layer for number, layer in enumerate(layers)}
    manifest = write(metadata, HERE, b"manifest", references)
    if circle:
        back = {f"{GC}ref.content": manifest}
        metadata.content.update(NAMESPACE, layers[0], back, [f"labels.{GC}ref.content"])
    for lease in ("m", "l"):
        metadata.leases.create(NAMESPACE, lease)
    begun: list[int] = []

    def meanwhile() -> None:
        begun.append(len(begun))
        if len(begun) == 2:
            metadata.leases.add(NAMESPACE, "l", Resource("content", manifest))

    sweeping(metadata, store, meanwhile).collect()
    left = {each.digest for each in metadata.content.walk(NAMESPACE)}
    assert manifest not in left or left == {manifest, *layers}


def test_garbage_goes_in_an_order_in_which_no_row_comes_before_one_that_leads_to_it() -> None:
    rng = random.Random(1)
    for _ in range(200):
        size = rng.randint(1, 12)
        edges = {it: rng.sample(range(size + 2), rng.randint(0, 2)) for it in range(size)}
        found = list(ordering.batches(range(size), edges.__getitem__, 3))
        place = {oid: number for number, batch in enumerate(found) for oid in batch}
        assert sorted(place) == list(range(size))
        for oid, targets in edges.items():
            assert all(place[oid] <= place[it] for it in targets if it in place)


def test_what_is_referred_to_between_two_batches_stays(
    metadata: Metadata, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector, "BATCH", 1)
    digests = [write(metadata, HERE, b"%d" % number) for number in range(5)]
    rescued: list[str] = []

    def meanwhile() -> None:
        there = [each.digest for each in metadata.content.walk(NAMESPACE)]
        wanted = [digest for digest in there if digest not in rescued]
        if len(rescued) < 2 and wanted:
            rescued.append(wanted[-1])
            metadata.images.create(HERE, image(f"i{len(rescued)}", wanted[-1]))

    sweeping(metadata, store, meanwhile).collect()
    left = {each.digest for each in metadata.content.walk(NAMESPACE)}
    assert left == set(rescued)
    assert len(digests) - len(left) == 3
