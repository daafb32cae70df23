"""Checklist M12: resources of others are collected with the rest."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snapfs.metadata import External, Metadata, Resource, collector, marking
from snapfs.model import Compacted, FailedPrecondition, NotFound, Unavailable
from snapfs.store import Store
from tests.metadata.kit import HOUR, NOW, Clock, image, rfc3339, write
from tests.metadata.test_garbage_collection import GC, HERE


class Mounts:
    """Resources in a dictionary, and one round at a time."""

    word = "mounts"

    def __init__(self) -> None:
        self.there: dict[tuple[str, str], External] = {}
        self.refuses: set[str] = set()
        self.said: list[str] = []
        self.broken = False
        self.is_mute = False
        self.error: Exception = FailedPrecondition("busy")

    def put(self, key: str, namespace: str = "here", **fields: object) -> None:
        it = External(namespace=namespace, key=key, **fields)  # type: ignore[arg-type]
        self.there[namespace, key] = it

    def begin(self) -> Mounts:
        if self.broken:
            raise Unavailable("not now")
        self.said.append("begin")
        return self

    def all(self) -> list[External]:
        if self.is_mute:
            raise ValueError("out of words")
        return list(self.there.values())

    def remove(self, resource: External) -> None:
        if resource.key in self.refuses:
            raise self.error
        del self.there[resource.namespace, resource.key]

    def finish(self) -> None:
        self.said.append("finish")

    def cancel(self) -> None:
        self.said.append("cancel")

    @property
    def left(self) -> set[str]:
        return {key for _, key in self.there}


@pytest.fixture
def mounts() -> Mounts:
    return Mounts()


@pytest.fixture
def changes() -> list[bool]:
    return []


@pytest.fixture
def metadata(
    store: Store, tmp_path: Path, clock: Clock, mounts: Mounts, changes: list[bool]
) -> Iterator[Metadata]:
    def told(*, deletion: bool) -> None:
        changes.append(deletion)

    with Metadata(
        *(store, tmp_path / "content", {}),
        clock_ns=clock,
        collectibles=[mounts],
        changed=[told],
    ) as built:
        yield built


def test_what_is_used_held_or_named_stays_and_the_rest_goes(
    metadata: Metadata, mounts: Mounts
) -> None:
    metadata.leases.create("here", "live")
    metadata.leases.create("here", "dead", {GC + "expire": rfc3339(NOW - HOUR)})
    labels = {GC + "ref.mounts": "named", GC + "ref.mounts/2": "too", GC + "ref.mountsx": "loose"}
    root = write(metadata, HERE, b"root", {GC + "root": "", **labels})
    loose = write(metadata, HERE, b"loose", {GC + "ref.mounts": "named by garbage"})
    mounts.put("used", active=True)
    mounts.put("leased", leases=["live", "none"])
    mounts.put("leased by the dead", leases=["dead"])
    mounts.put("rooted", labels={GC + "root": "1"})
    mounts.put("named")
    mounts.put("too")
    mounts.put("named by garbage")
    mounts.put("named elsewhere", namespace="there", labels={})
    mounts.put("loose")
    mounts.put("with the root", labels={GC + "bref.content": root})
    mounts.put("with garbage", labels={GC + "bref.content": loose})
    mounts.put("of nobody", namespace="unheard-of")
    alive = {"used", "leased", "rooted", "named", "too", "with the root"}
    would_go = {it.name for it in metadata.garbage() if it.table == "mounts"}
    assert would_go == mounts.left - alive
    assert mounts.said == ["begin", "cancel"]
    done = metadata.collector.collect()
    assert mounts.left == alive
    assert done.removed == {"lease": 1, "content": 1, "mounts": len(would_go)}
    assert mounts.said[2:] == ["begin", "finish"]


def test_what_a_resource_names_lives_as_long_as_it_does(metadata: Metadata, mounts: Mounts) -> None:
    layer = write(metadata, HERE, b"layer", {GC + "ref.mounts": "second"})
    mounts.put("first", active=True, labels={GC + "ref.content": layer})
    mounts.put("second")
    assert metadata.collector.collect().removed == {}
    mounts.put("first")
    assert metadata.collector.collect().removed == {"content": 1, "mounts": 2}
    with pytest.raises(NotFound):
        metadata.content.info("here", layer)


def test_what_a_flat_lease_holds_names_nothing(metadata: Metadata, mounts: Mounts) -> None:
    content = write(metadata, HERE, b"data", {GC + "ref.mounts": "m"})
    metadata.leases.create("here", "flat", {GC + "flat": ""})
    metadata.leases.add("here", "flat", Resource("content", content))
    mounts.put("m")
    metadata.collector.collect()
    assert mounts.left == set()
    assert metadata.content.info("here", content)


def test_what_is_named_after_the_mark_stays(
    metadata: Metadata, mounts: Mounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = write(metadata, HERE, b"data", {GC + "root": ""})
    mounts.put("m")
    mounts.put("n")
    sweep = metadata.collector._mark_and_sweep

    def meanwhile(*arguments: object) -> object:
        seen = sweep(*arguments)  # type: ignore[arg-type]
        label = f"{GC}ref.mounts"
        metadata.content.update("here", digest, {label: "m"}, [f"labels.{label}"])
        return seen

    monkeypatch.setattr(metadata.collector, "_mark_and_sweep", meanwhile)
    metadata.collector.collect()
    assert mounts.left == {"m"}


@pytest.mark.logs("gc.resource_kept", "gc.collectible_left_out")
def test_one_that_fails_stops_nothing(metadata: Metadata, mounts: Mounts) -> None:
    mounts.put("busy")
    mounts.put("idle")
    mounts.refuses.add("busy")
    write(metadata, HERE, b"loose")
    done = metadata.collector.collect()
    assert (done.removed, done.failed) == ({"content": 1, "mounts": 1}, ["mounts/busy"])
    mounts.broken = True
    write(metadata, HERE, b"loose")
    assert metadata.collector.collect().removed == {"content": 1}
    assert mounts.left == {"busy"}


def before_a_sweep(
    metadata: Metadata, monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]
) -> None:
    """Have a change made after the mark and before the first batch."""
    find = marking.find
    changes = [change]

    def meanwhile(*arguments: Any, **named: Any) -> object:
        found = find(*arguments, **named)
        threads = [threading.Thread(target=changes.pop()) for _ in changes[:]]
        for thread in threads:
            thread.start()
            thread.join(20)
        return found

    monkeypatch.setattr(marking, "find", meanwhile)


def test_what_is_named_before_the_sweep_stays(
    metadata: Metadata, mounts: Mounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = f"{GC}ref.mounts"
    waiting = write(metadata, HERE, b"waiting", {label: "m"})
    digest = write(metadata, HERE, b"data", {GC + "root": ""})
    layer = write(metadata, HERE, b"layer")
    write(metadata, HERE, b"loose")
    mounts.put("m")
    mounts.put("n", labels={GC + "ref.content": layer})
    mounts.put("o")

    def change() -> None:
        metadata.images.create(HERE, image("i", waiting))
        metadata.content.update("here", digest, {label: "n"}, [f"labels.{label}"])

    before_a_sweep(metadata, monkeypatch, change)
    assert metadata.collector.collect().removed == {"content": 1, "mounts": 1}
    assert mounts.left == {"m", "n"}
    assert metadata.content.info("here", layer)


@pytest.mark.logs("gc.log_trimmed")
def test_what_a_resource_names_outlives_a_log_that_was_trimmed(
    metadata: Metadata, mounts: Mounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = write(metadata, HERE, b"layer")
    write(metadata, HERE, b"loose")
    mounts.put("m", active=True, labels={GC + "ref.content": layer})
    written, trimmed = collector.written, [True]

    def once(*arguments: Any) -> object:
        if trimmed:
            trimmed.clear()
            raise Compacted("the log is gone")
        return written(*arguments)

    monkeypatch.setattr(collector, "written", once)
    assert metadata.collector.collect().removed == {"content": 1}
    assert metadata.content.info("here", layer)


@pytest.mark.logs("gc.collectible_left_out")
@pytest.mark.parametrize("fault", ["broken", "is_mute"])
def test_what_a_resource_names_stays_when_nobody_can_tell(
    metadata: Metadata, mounts: Mounts, fault: str
) -> None:
    layer = write(metadata, HERE, b"layer")
    write(metadata, HERE, b"loose")
    mounts.put("m", active=True, labels={GC + "ref.content": layer})
    setattr(mounts, fault, True)
    with pytest.raises(Unavailable, match="mounts"):
        metadata.collector.collect()
    setattr(mounts, fault, False)
    assert metadata.collector.collect().removed == {"content": 1}
    setattr(mounts, fault, True)
    write(metadata, HERE, b"loose")
    assert metadata.collector.collect().removed == {"content": 1}
    assert metadata.content.info("here", layer)


@pytest.mark.logs("gc.resource_kept")
def test_errors_of_any_kind_stop_nothing(metadata: Metadata, mounts: Mounts) -> None:
    mounts.put("busy")
    mounts.put("idle")
    mounts.refuses.add("busy")
    mounts.error = KeyError("what")
    done = metadata.collector.collect()
    assert (done.removed, done.failed) == ({"mounts": 1}, ["mounts/busy"])
    assert mounts.said == ["begin", "finish"]


def test_who_wants_to_hears_of_every_change_when_it_is_done(
    metadata: Metadata, changes: list[bool]
) -> None:
    metadata.images.create(HERE, image("i", write(metadata, HERE, b"data")))
    assert changes
    assert not any(changes)
    with pytest.raises(NotFound):
        metadata.images.delete("here", "none")
    before = len(changes)
    metadata.images.delete("here", "i")
    assert changes[before:] == [True]
