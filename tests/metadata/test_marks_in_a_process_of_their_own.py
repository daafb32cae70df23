"""Large stores are marked by another process: it finds the same, and may end at any time."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs.metadata import Collected, External, Metadata, Resource, apart, marking
from snapfs.metadata.barrier import Written
from snapfs.metadata.collectibles import Externals
from snapfs.metadata.graph import Mark
from snapfs.metadata.marking import Found, Marks
from snapfs.model import DeadlineExceeded, Unavailable
from snapfs.store import Store
from tests.metadata.kit import NOW, TABLES, Backend, image, write
from tests.metadata.test_garbage_collection import GC, HERE, Graph

DEADLINE_S = 120.0

CHILD = """
import os, sys, time
from pathlib import Path
from snapfs.metadata import apart, marking

find = marking.find

def changed(tx, *arguments, **named):
    {}
    return find(tx, *arguments, **named)

marking.find = changed
apart.main(*sys.argv[1:])
"""

WAITS = """
    there = Path({!r})
    there.with_suffix(".new").write_text(str(os.getpid()))
    there.with_suffix(".new").rename(there)
    while not there.with_suffix(".go").exists():
        time.sleep(0.01)
"""


@pytest.fixture(autouse=True)
def every_store_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marking, "HERE_ROWS", -1)


@pytest.fixture
def graph(store: Store, metadata: Metadata, backend: Backend) -> Graph:
    return Graph(store, metadata, backend)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where another process says that it is in its view, and waits to be let go."""
    there = tmp_path / "child"
    monkeypatch.setattr(apart, "COMMAND", child(WAITS.format(os.fspath(there))))
    yield there
    there.with_suffix(".go").touch()


def child(does: str) -> tuple[str, ...]:
    return (sys.executable, "-P", "-c", CHILD.format(does))


def await_child(there: Path) -> int:
    """Return the number of the process once it is in its view."""
    end = time.monotonic() + DEADLINE_S
    while not there.exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    return int(there.read_text())


def fill(metadata: Metadata, graph: Graph) -> None:
    """Make something of each kind that is kept, and some that is not."""
    layers = [graph.content(f"layer {number}") for number in range(5)]
    labels = {f"{GC}ref.content.{number}": layer for number, layer in enumerate(layers[:3])}
    manifest = graph.content("manifest", labels)
    metadata.images.create(HERE, image("i", manifest))
    graph.snapshot("base")
    graph.snapshot("top", "base", {GC + "root": ""})
    graph.snapshot("loose", "base")
    graph.snapshot("back", labels={f"{GC}bref.content": manifest})
    condition = {f"{GC}ref.snapshot.snapfs/base": ""}
    metadata.leases.create("here", "flat", {GC + "flat": ""})
    flat = graph.content("flat", {**condition, f"{GC}ref.content": layers[3]})
    metadata.leases.add("here", "flat", Resource("content", flat))
    graph.content("other", ns="there")


def externals() -> Externals:
    resources = [
        External(
            namespace="here", key="used", active=True, labels={f"{GC}ref.snapshot.snapfs": "loose"}
        ),
        External(namespace="here", key="leased", leases={"flat"}),
        External(namespace="here", key="unused"),
    ]
    return Externals({"mounts": resources, "none": []})


def shown(found: Found) -> tuple[object, ...]:
    return found.revision, dict(found.marks), [list(it) for it in found.batches()]


def test_what_another_process_finds_is_what_is_found_here(
    metadata: Metadata, graph: Graph, store: Store
) -> None:
    fill(metadata, graph)
    ours, theirs = externals(), externals()
    with store.view() as tx:
        here = marking.find(tx, NOW, ours, batch=2)
    there = apart.find(store, NOW, theirs, batch=2)
    assert shown(there) == shown(here)
    assert len(there.marks) > 5
    assert len(list(there.batches())) > 1
    assert theirs.alive == ours.alive
    assert {it.key for it in ours.alive} == {"used", "leased"}
    assert {it.name for it in metadata.garbage()} >= {"snapfs/loose"}


def test_a_store_without_anything_has_no_marks(store: Store) -> None:
    assert shown(apart.find(store, NOW, Externals({}), batch=2)) == (store.revision, {}, [])


@given(
    st.dictionaries(st.integers(0, 40), st.sampled_from(Mark)),
    st.lists(st.dictionaries(st.integers(0, 40), st.sampled_from(Mark))),
)
def test_marks_are_a_mapping(first: dict[int, Mark], more: list[dict[int, Mark]]) -> None:
    oids = sorted(first)
    marks = Marks(oids, bytes(first[oid] for oid in oids))
    for it in more:
        marks.add(it)
        first |= it
    assert (len(marks), dict(marks)) == (len(first), first)
    assert [oid in marks for oid in range(42)] == [oid in first for oid in range(42)]


def test_one_that_is_killed_removes_nothing_and_holds_back_no_pages(
    metadata: Metadata, graph: Graph, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(metadata, graph)
    there = graph.left()
    with monkeypatch.context() as context:
        context.setattr(apart, "COMMAND", child("os.kill(os.getpid(), 9)"))
        with pytest.raises(Unavailable, match="ended with -9: it was killed"):
            metadata.collector.collect()
    assert graph.left() == there
    assert store.forget_dead_readers() == 0  # it was done at once
    metadata.collector.collect()
    assert graph.left() < there


def test_one_that_fails_says_why(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "COMMAND", child("raise ValueError('no view')"))
    with pytest.raises(Unavailable, match="ended with 1: ValueError: no view"):
        apart.find(store, NOW, Externals({}), batch=2)
    monkeypatch.setattr(apart, "COMMAND", ("/nowhere/python",))
    with pytest.raises(Unavailable, match="no process can be started to mark"):
        apart.find(store, NOW, Externals({}), batch=2)


def test_one_that_does_not_end_is_ended(
    store: Store, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apart, "DEADLINE_S", 0.0)
    with pytest.raises(DeadlineExceeded):
        apart.find(store, NOW, Externals({}), batch=2)


def test_who_stops_does_not_wait_for_it(store: Store, tmp_path: Path, place: Path) -> None:
    with Metadata(store, tmp_path / "content", {}) as metadata:
        metadata.gc.start()
        future = metadata.gc.trigger()
        process = os.pidfd_open(await_child(place))
    with pytest.raises(Unavailable, match="stopp"):
        future.result(DEADLINE_S)
    ended = select.poll()
    ended.register(process, select.POLLIN)
    assert ended.poll(1000 * DEADLINE_S)
    os.close(process)


def test_a_store_grows_while_it_is_marked(tmp_path: Path, place: Path) -> None:
    with (
        Store.open(tmp_path / "metadata", TABLES, map_size_bytes=1 << 20) as store,
        Metadata(store, tmp_path / "content", {}) as metadata,
    ):
        write(metadata, HERE, b"garbage")
        done: list[Collected] = []
        thread = threading.Thread(target=lambda: done.append(metadata.collector.collect()))
        thread.start()
        await_child(place)
        size = store.stats().map_size_bytes
        number = 0
        while store.stats().map_size_bytes == size:
            metadata.namespaces.create(f"n{number}", {"x": "y" * 3000})
            number += 1
        place.with_suffix(".go").touch()
        thread.join(DEADLINE_S)
        assert [it.removed for it in done] == [{"content": 1}]


def test_what_is_written_during_a_mark_stays_though_the_log_is_cut_meanwhile(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = threading.Semaphore(0)
    look = Written.look

    def look_and_say(self: Written) -> None:
        look(self)
        looked.release()

    monkeypatch.setattr(Written, "look", look_and_say)
    monkeypatch.setattr(apart, "LOOK_S", 0.01)
    with (
        Store.open(tmp_path / "metadata", TABLES, keep_revisions=5) as store,
        Metadata(store, tmp_path / "content", {}) as metadata,
    ):
        layer = write(metadata, HERE, b"layer")
        manifest = write(metadata, HERE, b"manifest", {GC + "ref.content": layer})
        write(metadata, HERE, b"garbage")
        done: list[Collected] = []
        thread = threading.Thread(target=lambda: done.append(metadata.collector.collect()))
        thread.start()
        await_child(place)
        began = store.revision
        for number in range(20):
            metadata.images.create(HERE, image(f"i{number}", manifest))
            for _ in range(2):
                assert looked.acquire(timeout=DEADLINE_S)
            while looked.acquire(blocking=False):
                pass
        with store.view() as tx:
            assert tx.compacted_revision > began
        place.with_suffix(".go").touch()
        thread.join(DEADLINE_S)
        assert [it.removed for it in done] == [{"content": 1}]
        assert {it.digest for it in metadata.content.walk("here")} == {layer, manifest}


SERVICE = """
import sys
from pathlib import Path
from snapfs.metadata import Metadata, apart, marking
from snapfs.store import Store
from tests.metadata.kit import TABLES
import json
root, apart.COMMAND = Path(sys.argv[1]), json.loads(sys.argv[2])
marking.HERE_ROWS = -1
with Store.open(root / "metadata", TABLES) as store:
    with Metadata(store, root / "content", {}) as metadata:
        metadata.garbage()
"""


def test_it_ends_with_the_service(tmp_path: Path, place: Path) -> None:
    arguments = (os.fspath(tmp_path), json.dumps(apart.COMMAND))
    root = Path(__file__).parents[2]  # where the service finds `tests`
    with subprocess.Popen([sys.executable, "-c", SERVICE, *arguments], cwd=root) as service:
        try:
            ended = select.poll()
            ended.register(os.pidfd_open(await_child(place)), select.POLLIN)
        finally:
            service.send_signal(signal.SIGKILL)
    assert ended.poll(1000 * DEADLINE_S)
