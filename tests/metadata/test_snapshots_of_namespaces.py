"""Snapshots of a snapshotter as namespaces know them; the snapshotter is a real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snapfs import filters
from snapfs.metadata import Context, Metadata, Resource, Snapshots
from snapfs.metadata.backends import inherited
from snapfs.metadata.references import GC, Name, Type
from snapfs.metadata.schema import SNAPSHOT_LINKS
from snapfs.model import (
    Active,
    AlreadyExists,
    Committed,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    View,
)
from snapfs.snapshots import NoTrees, Snapshotter
from snapfs.store import Store
from tests.metadata.kit import Clock, digest_of, image

REF = "containerd.io/snapshot.ref"
ROOT = {"containerd.io/gc.root": ""}
ONE, TWO, THREE = Context("one"), Context("two"), Context("three")


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[Snapshotter]:
    """A snapshotter with a root and a store of its own."""
    with Snapshotter(tmp_path / "foreign", trees=NoTrees()) as opened:
        yield opened


@pytest.fixture
def metadata(store: Store, tmp_path: Path, foreign: Snapshotter) -> Iterator[Metadata]:
    with Metadata(store, tmp_path / "content", {"other": foreign}) as built:
        yield built


@pytest.fixture
def snapshots(metadata: Metadata) -> Snapshots:
    return metadata.snapshots("other")


def held(metadata: Metadata, lease: str, namespace: str = "one") -> list[Resource]:
    return metadata.leases.resources(namespace, lease)


def snapshot(key: str) -> Resource:
    return Resource("snapshots/other", key)


def names(snapshots: Snapshots, namespace: str, *wanted: str) -> list[str]:
    return [it.name for it in snapshots.walk(namespace, wanted)]


def test_a_chain_is_made_committed_looked_at_and_removed(
    snapshots: Snapshots, foreign: Snapshotter, metadata: Metadata
) -> None:
    mounts = snapshots.prepare(ONE, "a", labels=ROOT)
    assert mounts == snapshots.mounts("one", "a")
    snapshots.commit(ONE, "a", "base", ROOT | {"said": "1"})
    snapshots.prepare(ONE, "b", "base", ROOT)
    snapshots.view(ONE, "c", "base", ROOT)
    kinds = {it.name: (type(it), it.parent) for it in snapshots.walk("one")}
    assert kinds == {"base": (Committed, ""), "b": (Active, "base"), "c": (View, "base")}
    assert snapshots.stat("one", "base").labels == ROOT | {"said": "1"}
    assert names(snapshots, "one", "kind==active", "labels.said==1") == ["b", "base"]
    assert snapshots.usage("one", "base") == foreign.usage(
        next(foreign.walk(["kind==committed"])).name
    )
    assert all(it.name.startswith("one/") for it in foreign.walk())
    with pytest.raises(FailedPrecondition, match="has children"):
        snapshots.remove("one", "base")
    for key in ("b", "c", "base"):
        snapshots.remove("one", key)
        with pytest.raises(NotFound):
            snapshots.stat("one", key)
    assert len(list(foreign.walk())) == 3  # until the collector comes
    metadata.collector.collect()
    assert list(foreign.walk()) == []


def explained(metadata: Metadata, namespace: str, key: str) -> tuple[bool, str]:
    why = metadata.explain(namespace, Name(Type.SNAPSHOT, f"other/{key}"))
    return why.kept, why.path[-1].name if why.path else why.reason


def test_a_snapshot_is_explained_by_either_name_and_one_of_no_namespace_too(
    metadata: Metadata, snapshots: Snapshots, foreign: Snapshotter
) -> None:
    snapshots.prepare(ONE, "k", labels=ROOT)
    snapshots.prepare(TWO, "k")
    foreign.prepare("by-hand")
    assert explained(metadata, "one", "k") == (True, "other/k")
    (listed,) = [it.name for it in foreign.walk() if it.name.startswith("one/")]
    assert explained(metadata, "three", listed) == (True, "other/k")
    assert explained(metadata, "two", "k")[0] is False
    by_hand = metadata.explain("one", Name(Type.SNAPSHOT, "other/by-hand"))
    assert by_hand.kept
    assert "no collection removes it" in by_hand.reason


def test_what_there_is_not_is_said_with_where_to_look(
    metadata: Metadata, snapshots: Snapshots
) -> None:
    snapshots.prepare(ONE, "k", labels=ROOT)
    with pytest.raises(NotFound) as elsewhere:
        explained(metadata, "three", "k")
    assert str(elsewhere.value) == (
        "snapshot 'k' does not exist in namespace 'three', but in one; name that with --namespace"
    )
    with pytest.raises(NotFound) as nowhere:
        metadata.explain("one", Name(Type.IMAGE, "none"))
    assert str(nowhere.value) == (
        "image 'none' does not exist in namespace 'one': it never did, or was collected; "
        "`snapfs image list` shows what there is"
    )


def test_the_same_key_is_another_snapshot_in_another_namespace_and_after_a_removal(
    snapshots: Snapshots, foreign: Snapshotter, metadata: Metadata
) -> None:
    for context in (ONE, TWO):
        snapshots.prepare(context, "k", labels=ROOT)
    snapshots.remove("one", "k")
    snapshots.prepare(ONE, "k", labels=ROOT)
    assert len(list(foreign.walk())) == 3
    metadata.collector.collect()
    assert len(list(foreign.walk())) == 2
    assert names(snapshots, "one") == names(snapshots, "two") == ["k"]


def test_refusals_leave_nothing(
    snapshots: Snapshots, foreign: Snapshotter, metadata: Metadata
) -> None:
    snapshots.prepare(ONE, "a", labels=ROOT)
    snapshots.prepare(ONE, "b", labels=ROOT)
    snapshots.commit(ONE, "b", "base", ROOT)
    before = [it.name for it in foreign.walk()]
    refused: list[tuple[type[Exception], Any]] = [
        (NotFound, lambda: snapshots.prepare(ONE, "x", "nothing")),
        (InvalidArgument, lambda: snapshots.prepare(ONE, "x", "a")),
        (AlreadyExists, lambda: snapshots.prepare(ONE, "a")),
        (AlreadyExists, lambda: snapshots.view(ONE, "base")),
        (NotFound, lambda: snapshots.commit(ONE, "nothing", "x")),
        (AlreadyExists, lambda: snapshots.commit(ONE, "a", "base")),
        (FailedPrecondition, lambda: snapshots.commit(ONE, "base", "x")),
        (NotFound, lambda: snapshots.commit(ONE, "a", "x", parent="nothing")),
        (NotFound, lambda: snapshots.remove("two", "a")),
        (NotFound, lambda: snapshots.mounts("one", "x")),
        (InvalidArgument, lambda: snapshots.update("one", "a", {}, ["parent"])),
        (InvalidArgument, lambda: snapshots.prepare(ONE, "x", labels={"k": "v" * 5000})),
        (InvalidArgument, lambda: metadata.snapshots("unheard-of")),
    ]
    for error, call in refused:
        with pytest.raises(error):
            call()
    assert [it.name for it in foreign.walk()] == before
    assert names(snapshots, "one") == ["a", "base"]


def test_a_commit_may_put_a_parentless_snapshot_on_another(snapshots: Snapshots) -> None:
    for name in ("base", "other"):
        snapshots.prepare(ONE, "k", labels=ROOT)
        snapshots.commit(ONE, "k", name, ROOT)
    snapshots.prepare(ONE, "k", labels=ROOT)
    snapshots.commit(ONE, "k", "top", ROOT, parent="base")
    assert snapshots.stat("one", "top").parent == "base"
    snapshots.prepare(ONE, "k", "base", ROOT)
    with pytest.raises(InvalidArgument, match="cannot be committed on"):
        snapshots.commit(ONE, "k", "more", parent="other")


def test_leases_hold_what_is_made_and_touched(snapshots: Snapshots, metadata: Metadata) -> None:
    metadata.leases.create("one", "l")
    under = Context("one", lease="l")
    snapshots.prepare(under, "a")
    assert held(metadata, "l") == [snapshot("a")]
    snapshots.commit(under, "a", "base")
    assert held(metadata, "l") == [snapshot("base")]
    metadata.collector.collect()
    assert names(snapshots, "one") == ["base"]
    metadata.leases.create("one", "m")
    with pytest.raises(AlreadyExists):
        snapshots.prepare(Context("one", lease="m"), "base")
    assert held(metadata, "m") == [snapshot("base")]
    with pytest.raises(NotFound, match="lease"):
        snapshots.prepare(Context("one", lease="nothing"), "x")
    metadata.leases.delete("one", "l")
    metadata.leases.delete("one", "m")
    metadata.collector.collect()
    assert names(snapshots, "one") == []


def test_only_labels_that_are_the_snapshotters_reach_it(
    snapshots: Snapshots, foreign: Snapshotter
) -> None:
    labels = ROOT | {"containerd.io/snapshot/x": "1", "other": "2", REF: "r"}
    snapshots.prepare(ONE, "a", labels=labels)
    (told,) = foreign.walk()
    assert told.labels == {"containerd.io/snapshot/x": "1", REF: "r"}
    changed = {"containerd.io/snapshot/x": "3", "other": ""}
    paths = [f"labels.{key}" for key in changed]
    assert snapshots.update("one", "a", changed, paths).labels == ROOT | {
        "containerd.io/snapshot/x": "3",
        REF: "r",
    }
    assert foreign.stat(told.name).labels["containerd.io/snapshot/x"] == "3"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, {}),
        ({"a": "1"}, {}),
        ({REF: "r"}, {REF: "r"}),
        ({"containerd.io/snapshot/x": "1"}, {"containerd.io/snapshot/x": "1"}),
        ({"containerd.io/snapshot/": "1", "b": "2"}, {"containerd.io/snapshot/": "1"}),
        ({REF + "x": "1", "containerd.io/snapshots/x": "1", "containerd.io/snapshot": "1"}, {}),
    ],
)
def test_a_snapshotter_hears_of_labels_with_its_prefix_and_the_reference(
    given: dict[str, str], told: dict[str, str]
) -> None:
    assert inherited(given) == told


def test_labels_that_the_snapshotter_does_not_take_stay_as_they_were(
    store: Store, tmp_path: Path, foreign: Snapshotter
) -> None:
    class Failing(Remote):
        def update(self, *_arguments: Any) -> Any:
            raise DeadlineExceeded("no answer yet")

    label = "containerd.io/snapshot/x"
    with Metadata(store, tmp_path / "content", {"other": foreign}) as metadata:
        snapshots = metadata.snapshots("other")
        snapshots.prepare(ONE, "k", labels={label: "old", "note": "old"})
    with Metadata(store, tmp_path / "content", {"other": Failing(foreign)}) as metadata:
        snapshots = metadata.snapshots("other")
        with pytest.raises(DeadlineExceeded):
            snapshots.update("one", "k", {label: "new", "note": "new"})
        assert snapshots.stat("one", "k").labels == {label: "old", "note": "old"}


def test_labels_changed_by_two_at_once_are_the_same_on_both_sides(
    store: Store, tmp_path: Path, foreign: Snapshotter
) -> None:
    first, second = "containerd.io/snapshot/first", "containerd.io/snapshot/second"

    class Slow(Remote):
        calls = 0

        def update(self, *arguments: Any) -> Any:
            self.calls += 1
            if self.calls == 1:
                snapshots.update("one", "k", {second: "2"}, [f"labels.{second}"])
            return foreign.update(*arguments)

    with Metadata(store, tmp_path / "content", {"other": Slow(foreign)}) as metadata:
        snapshots = metadata.snapshots("other")
        snapshots.prepare(ONE, "k")
        told = snapshots.update("one", "k", {first: "1"}, [f"labels.{first}"])
        assert told.labels == {first: "1", second: "2"}
        (link,) = links(store, "one")
        assert foreign.stat(link.body.backend).labels == link.body.labels == told.labels


def test_a_parent_whose_child_was_collected_can_be_removed(
    snapshots: Snapshots, metadata: Metadata, foreign: Snapshotter
) -> None:
    snapshots.prepare(ONE, "k", labels=ROOT)
    snapshots.commit(ONE, "k", "base", ROOT)
    snapshots.prepare(ONE, "child", "base")
    metadata.collector.collect()
    assert names(snapshots, "one") == ["base"]
    snapshots.remove("one", "base")
    metadata.collector.collect()
    assert list(foreign.walk()) == []


def test_two_that_make_the_same_reference_at_once_may_both_commit_it(snapshots: Snapshots) -> None:
    labels = ROOT | {REF: "layer"}
    for context in (ONE, TWO):
        snapshots.prepare(context, "extract", labels=labels)
    for context in (ONE, TWO):
        snapshots.commit(context, "extract", "layer", labels)
        with pytest.raises(AlreadyExists):
            snapshots.prepare(context, "extract", labels=labels)
        assert names(snapshots, context.namespace) == ["layer"]


class Remote:
    """A snapshotter that commits what it is asked to prepare for a reference, as remote ones do."""

    def __init__(self, inner: Snapshotter) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def prepare(self, key: str, parent: str, labels: dict[str, str]) -> Any:
        ref = labels.get(REF)
        if ref is None:
            return self._inner.prepare(key, parent, labels)
        wanted = f"labels.{filters.quoted(REF)}=={filters.quoted(ref)}"
        if next(self._inner.walk([wanted]), None) is None:
            self._inner.prepare(f"{key}-fetched", parent, labels)
            self._inner.commit(f"{key}-fetched", f"remote/{ref}", labels)
        raise AlreadyExists(f"{ref} is here")


def test_namespaces_adopt_one_snapshot_by_its_reference_and_it_stays_for_either(
    store: Store, tmp_path: Path, foreign: Snapshotter
) -> None:
    with Metadata(store, tmp_path / "content", {"other": Remote(foreign)}) as metadata:
        snapshots = metadata.snapshots("other")
        for context in (ONE, TWO, THREE):
            metadata.leases.create(context.namespace, "l")
            under = Context(context.namespace, lease="l")
            for _ in range(2):
                with pytest.raises(AlreadyExists):
                    snapshots.prepare(under, "extract", labels={REF: "layer"})
            assert held(metadata, "l", context.namespace) == [snapshot("layer")]
            assert names(snapshots, context.namespace) == ["layer"]
        assert [it.name for it in foreign.walk()] == ["remote/layer"]
        for namespace, left in (("one", 1), ("two", 1), ("three", 0)):
            metadata.leases.delete(namespace, "l")
            metadata.collector.collect()
            assert names(snapshots, namespace) == []
            assert len(list(foreign.walk())) == left
        with pytest.raises(NotFound):
            snapshots.prepare(ONE, "extract", "nothing", {REF: "layer"})


def prepare_and_commit(snapshots: Snapshots) -> None:
    snapshots.prepare(ONE, "k", labels=ROOT)
    snapshots.commit(ONE, "k", "name", ROOT)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("call", ["prepare", "commit"])
def test_what_died_half_way_is_settled_by_the_next_start(
    store: Store, tmp_path: Path, foreign: Snapshotter, call: str, when: str
) -> None:
    class Died(Remote):
        def dies(self, *arguments: Any) -> None:
            if when == "after":
                getattr(foreign, call)(*arguments)
            raise SystemExit

        def prepare(self, key: str, parent: str, labels: dict[str, str]) -> Any:
            return (
                self.dies(key, parent, labels)
                if call == "prepare"
                else foreign.prepare(key, parent, labels)
            )

        def commit(self, key: str, name: str, labels: dict[str, str], parent: str = "") -> Any:
            self.dies(key, name, labels, parent)

    with Metadata(store, tmp_path / "content", {"other": Died(foreign)}) as metadata:
        snapshots = metadata.snapshots("other")
        with pytest.raises(SystemExit):
            prepare_and_commit(snapshots)
        metadata.collector.collect()
        with pytest.raises(Unavailable, match="is being made"):
            snapshots.prepare(ONE, "k" if call == "prepare" else "name")
    with Metadata(store, tmp_path / "content", {"other": foreign}) as metadata:
        snapshots = metadata.snapshots("other")
        snapshots.recover()
        metadata.collector.collect()
        there = names(snapshots, "one")
        assert len(list(foreign.walk())) == len(there)
        if call == "prepare":
            assert there == []
        else:
            assert there == (["name"] if when == "after" else ["k"])
        snapshots.prepare(ONE, "k2", labels=ROOT)


@pytest.mark.parametrize("late", ["before it is asked for again", "after", "never"])
def test_a_commit_that_comes_to_be_after_its_deadline_loses_nothing(
    store: Store, tmp_path: Path, foreign: Snapshotter, late: str
) -> None:
    asked: list[tuple[Any, ...]] = []

    class Slow(Remote):
        def commit(self, *arguments: Any) -> None:
            asked.append(arguments)
            if len(asked) == 1:
                raise DeadlineExceeded("no answer yet")
            if late == "after":
                foreign.commit(*asked[0])
            foreign.commit(*arguments)

    with Metadata(store, tmp_path / "content", {"other": Slow(foreign)}) as metadata:
        snapshots = metadata.snapshots("other")
        with pytest.raises(DeadlineExceeded):
            prepare_and_commit(snapshots)
        snapshots.settle()
        metadata.collector.collect()
        assert names(snapshots, "one") == ["k"]
        with pytest.raises(Unavailable, match="is being made"):
            snapshots.prepare(ONE, "name")
        if late == "before it is asked for again":
            foreign.commit(*asked[0])
            with pytest.raises(AlreadyExists):
                snapshots.commit(ONE, "k", "name", ROOT)
        else:
            snapshots.commit(ONE, "k", "name", ROOT)
        metadata.collector.collect()
        assert names(snapshots, "one") == ["name"]
        assert isinstance(snapshots.stat("one", "name"), Committed)
        assert len(list(foreign.walk())) == 1


@pytest.mark.parametrize("comes", [True, False])
def test_a_snapshot_that_comes_to_be_after_its_deadline_is_removed(
    store: Store, tmp_path: Path, foreign: Snapshotter, clock: Clock, comes: bool
) -> None:
    asked: list[tuple[Any, ...]] = []

    class Slow(Remote):
        def prepare(self, *arguments: Any) -> None:
            asked.append(arguments)
            raise DeadlineExceeded("no answer yet")

    with Metadata(store, tmp_path / "content", {"other": Slow(foreign)}) as metadata:
        with pytest.raises(DeadlineExceeded):
            metadata.snapshots("other").prepare(ONE, "k", labels=ROOT)
        assert metadata.collector.collect().failures == 0
        assert names(metadata.snapshots("other"), "one") == []
        if comes:
            foreign.prepare(*asked[0])
        else:
            with store.view() as tx:
                expiry_ns = tx.next_expiry(clock.now_ns)
            assert expiry_ns is not None
            clock.now_ns = expiry_ns
        assert metadata.collector.collect().failures == 0
        assert list(foreign.walk()) == []
        assert links(store, "one") == []


def test_a_commit_without_an_answer_is_given_up_with_its_snapshot(
    store: Store, tmp_path: Path, foreign: Snapshotter
) -> None:
    class Mute(Remote):
        def commit(self, *_arguments: Any) -> None:
            raise DeadlineExceeded("no answer yet")

    with Metadata(store, tmp_path / "content", {"other": Mute(foreign)}) as metadata:
        snapshots = metadata.snapshots("other")
        with pytest.raises(DeadlineExceeded):
            prepare_and_commit(snapshots)
        snapshots.remove("one", "k")
        metadata.collector.collect()
        snapshots.prepare(ONE, "name", labels=ROOT)
        metadata.collector.collect()
        assert [it.name for it in foreign.walk()] == [it.body.backend for it in links(store, "one")]


def test_what_gives_its_name_to_an_adopted_snapshot_is_still_removed(
    store: Store, tmp_path: Path, foreign: Snapshotter
) -> None:
    with Metadata(store, tmp_path / "content", {"other": Remote(foreign)}) as metadata:
        snapshots = metadata.snapshots("other")
        snapshots.prepare(ONE, "layer")
        snapshots.remove("one", "layer")
        with pytest.raises(AlreadyExists):
            snapshots.prepare(ONE, "extract", labels={REF: "layer"})
        metadata.images.create(
            ONE, image("i", digest_of(b""), {f"{GC}ref.snapshot.other": "layer"})
        )
        metadata.collector.collect()
        assert names(snapshots, "one") == ["layer"]
        assert [it.name for it in foreign.walk()] == ["remote/layer"]


def links(store: Store, namespace: str) -> list[Any]:
    with store.view() as tx:
        return list(tx.rows(SNAPSHOT_LINKS, namespace))


def test_a_snapshot_that_is_being_made_is_not_collected(
    store: Store, tmp_path: Path, foreign: Snapshotter
) -> None:
    class Slow(Remote):
        def prepare(self, key: str, parent: str, labels: dict[str, str]) -> Any:
            metadata.collector.collect()
            made = foreign.prepare(key, parent, labels)
            metadata.collector.collect()
            assert list(snapshots.walk("one")) == []
            return made

    with Metadata(store, tmp_path / "content", {"other": Slow(foreign)}) as metadata:
        snapshots = metadata.snapshots("other")
        snapshots.prepare(ONE, "k")
        assert names(snapshots, "one") == ["k"]
