"""Checklist M9 to M14: roots, references, and what a run removes."""

from __future__ import annotations

import pytest

from snapfs import anchors
from snapfs.anchors import Anchors, Ref
from snapfs.metadata import (
    Container,
    Context,
    Image,
    Metadata,
    Name,
    Resource,
    Runtime,
    Sandbox,
    Type,
    Typed,
    collector,
    linking,
)
from snapfs.metadata.schema import SNAPSHOT_LINKS, SnapshotLinkBody
from snapfs.model import NotFound
from snapfs.store import Store
from tests.metadata.kit import HOUR, NOW, Backend, Clock, digest_of, image, rfc3339, write

GC = "containerd.io/gc."
HERE = Context("here")


class Graph:
    """Short ways to put snapshots and content into one namespace, and to see what is left."""

    def __init__(self, store: Store, metadata: Metadata, backend: Backend) -> None:
        self.store, self.metadata, self.backend = store, metadata, backend

    def snapshot(
        self, key: str, parent: str = "", labels: dict[str, str] | None = None, ns: str = "here"
    ) -> None:
        self.backend.keys.add(f"{ns}/{key}")
        body = SnapshotLinkBody(
            snapshotter="snapfs", key=key, backend=f"{ns}/{key}", parent=parent, labels=labels or {}
        )
        self.store.update(lambda tx: linking.create(tx, SNAPSHOT_LINKS, ns, f"snapfs/{key}", body))

    def content(self, word: str, labels: dict[str, str] | None = None, ns: str = "here") -> str:
        return write(self.metadata, Context(ns), word.encode(), labels)

    def left(self, ns: str = "here") -> set[str]:
        """Return names of snapshots, and the words of content, that are left."""
        with self.store.view() as tx:
            links = {row.body.key for row in tx.rows(SNAPSHOT_LINKS, ns)}
        return links | {self._word(each.digest) for each in self.metadata.content.walk(ns)}

    def _word(self, digest: str) -> str:
        return self.metadata.content.path("here", digest).read_bytes().decode()


@pytest.fixture
def graph(store: Store, metadata: Metadata, backend: Backend) -> Graph:
    return Graph(store, metadata, backend)


def collect(metadata: Metadata) -> dict[str, int]:
    done = metadata.collector.collect()
    assert done.failed == []
    return done.removed


# Roots


def test_nothing_is_kept_without_a_root(metadata: Metadata, graph: Graph) -> None:
    graph.snapshot("a")
    graph.snapshot("b", "a")
    graph.content("c")
    assert collect(metadata) == {"snapshot link": 2, "content": 1}
    assert graph.left() == set()
    assert graph.backend.removed == ["here/b", "here/a"]
    assert collect(metadata) == {}


def test_images_containers_sandboxes_and_root_labels_are_roots(
    metadata: Metadata, graph: Graph
) -> None:
    layer = graph.content("layer")
    config = graph.content("config", {GC + "ref.snapshot.snapfs": "unpacked"})
    manifest = graph.content(
        "manifest", {GC + "ref.content.0": config, GC + "ref.content.l.0": layer}
    )
    graph.snapshot("base")
    graph.snapshot("unpacked", "base")
    graph.snapshot("of-container", "base")
    graph.snapshot("of-sandbox")
    graph.snapshot("rooted", labels={GC + "root": "1"})
    graph.content("rooted-content", {GC + "root.x": ""})
    graph.content("loose")
    graph.snapshot("loose-snapshot", "base")
    metadata.images.create(HERE, image("i", manifest))
    metadata.containers.create(
        HERE,
        Container(
            id="c",
            runtime=Runtime("r"),
            spec=Typed("s"),
            snapshotter="snapfs",
            snapshot_key="of-container",
        ),
    )
    metadata.sandboxes.create(
        HERE,
        Sandbox(id="s", runtime=Runtime("r"), labels={GC + "ref.snapshot.snapfs": "of-sandbox"}),
    )
    assert collect(metadata) == {"snapshot link": 1, "content": 1}
    assert graph.left() == {
        "layer", "config", "manifest", "base", "unpacked", "of-container", "of-sandbox",
        "rooted", "rooted-content",
    }  # fmt: skip


def test_a_live_lease_holds_and_an_expired_one_does_not(
    metadata: Metadata, graph: Graph, clock: Clock
) -> None:
    for name, label in (
        ("never", None),
        ("later", rfc3339(NOW + HOUR)),
        ("past", rfc3339(NOW - HOUR)),
        ("unreadable", "tomorrow"),
    ):
        graph.snapshot(name)
        metadata.leases.create("here", name, {} if label is None else {GC + "expire": label})
        metadata.leases.add("here", name, Resource("snapshots/snapfs", name))
    assert collect(metadata) == {"lease": 1, "snapshot link": 1}
    assert graph.left() == {"never", "later", "unreadable"}
    clock.now_ns += 2 * HOUR
    assert collect(metadata) == {"lease": 1, "snapshot link": 1}
    assert [each.id for each in metadata.leases.walk("here")] == ["never", "unreadable"]


def test_a_flat_lease_holds_what_it_names_and_parents_but_not_what_labels_say(
    metadata: Metadata, graph: Graph
) -> None:
    graph.snapshot("base")
    graph.snapshot("labelled")
    graph.snapshot("top", "base", {GC + "ref.snapshot.snapfs": "labelled"})
    layer = graph.content("layer")
    manifest = graph.content("manifest", {GC + "ref.content": layer})
    metadata.leases.create("here", "flat", {GC + "flat": rfc3339(NOW)})
    metadata.leases.add("here", "flat", Resource("snapshots/snapfs", "top"))
    metadata.leases.add("here", "flat", Resource("content", manifest))
    collect(metadata)
    assert graph.left() == {"base", "top", "manifest"}


def test_what_a_flat_and_a_full_lease_hold_is_held_fully(metadata: Metadata, graph: Graph) -> None:
    layer = graph.content("layer")
    manifest = graph.content("manifest", {GC + "ref.content": layer})
    for name, labels in (("flat", {GC + "flat": ""}), ("full", {})):
        metadata.leases.create("here", name, labels)
        metadata.leases.add("here", name, Resource("content", manifest))
    collect(metadata)
    assert graph.left() == {"manifest", "layer"}


def test_an_expired_image_goes_unless_a_lease_holds_it(metadata: Metadata, graph: Graph) -> None:
    past = {GC + "expire": rfc3339(NOW - HOUR)}
    kept, gone = graph.content("kept"), graph.content("gone")
    metadata.images.create(HERE, image("kept", kept, past))
    metadata.images.create(HERE, image("gone", gone, past))
    metadata.leases.create("here", "l")
    metadata.leases.add("here", "l", Resource("images", "kept"))
    assert collect(metadata) == {"image": 1, "content": 1}
    assert graph.left() == {"kept"}


def test_an_ingest_without_a_lease_stays_a_day(metadata: Metadata, clock: Clock) -> None:
    with metadata.content.writer(HERE, "r") as writer:
        writer.write(b"half")
    assert collect(metadata) == {}
    clock.now_ns += 25 * HOUR
    assert collect(metadata) == {"ingest": 1}
    assert list(metadata.content.statuses("here")) == []


def test_an_ingest_keeps_what_it_expects(metadata: Metadata, graph: Graph) -> None:
    digest = graph.content("there", ns="other")
    graph.content("there")
    with metadata.content.writer(Context("third"), "r", expected=digest):
        assert collect(metadata)["content"] == 2
    with pytest.raises(NotFound):
        metadata.content.info("here", digest)


def test_an_anchor_keeps_what_it_stands_or_stood_for(
    store: Store, metadata: Metadata, graph: Graph
) -> None:
    graph.snapshot("old")
    graph.snapshot("new")
    graph.snapshot("never")
    names = Anchors(store)
    with store.view() as tx:
        oids = {row.body.key: row.oid for row in tx.rows(SNAPSHOT_LINKS, "here")}
    for word in ("old", "new"):
        names.put("release", Ref("snapshot", word), target=oids[word])
    assert collect(metadata) == {"snapshot link": 1}
    assert graph.left() == {"old", "new"}
    assert anchors.TARGET_EDGE == 20


# References


def test_back_references_keep_their_object_with_the_other(metadata: Metadata, graph: Graph) -> None:
    root = graph.content("root", {GC + "root": ""})
    dead = graph.content("dead")
    graph.content("with-root", {GC + "bref.content": root})
    graph.content("with-dead", {GC + "bref.content": dead})
    metadata.images.create(HERE, image("i", root))
    graph.snapshot("with-image", labels={GC + "bref.image": "i"})
    metadata.containers.create(HERE, Container(id="c", runtime=Runtime("r"), spec=Typed("s")))
    graph.snapshot("with-container", labels={GC + "bref.container": "c"})
    graph.snapshot("with-snapshot", labels={GC + "bref.snapshot.snapfs/1": "with-container"})
    collect(metadata)
    assert graph.left() == {"root", "with-root", "with-image", "with-container", "with-snapshot"}


def test_a_conditional_reference_keeps_a_snapshot_that_was_used_lately(
    metadata: Metadata, graph: Graph, clock: Clock
) -> None:
    used = {GC + "cond.value-usedat": rfc3339(NOW)}
    graph.snapshot("lately", labels=used)
    graph.snapshot("unused")
    config = graph.content(
        "config",
        {
            GC + "cond.snapshot.snapfs/a": "usedat<2h|lately",
            GC + "cond.snapshot.snapfs/b": "usedat<2h|unused",
        },
    )
    metadata.images.create(HERE, image("i", config))
    collect(metadata)
    assert graph.left() == {"config", "lately"}
    clock.now_ns += 3 * HOUR
    collect(metadata)
    assert graph.left() == {"config"}


def test_a_reference_that_came_before_its_target_counts(metadata: Metadata, graph: Graph) -> None:
    late = digest_of(b"late")
    metadata.images.create(HERE, image("i", late))
    graph.content("late")
    collect(metadata)
    assert graph.left() == {"late"}
    metadata.content.delete("here", late)
    graph.content("late")
    collect(metadata)
    assert graph.left() == {"late"}


def test_references_stay_within_their_namespace(metadata: Metadata, graph: Graph) -> None:
    digest = graph.content("shared")
    graph.content("shared", ns="other")
    metadata.images.create(Context("other"), image("i", digest))
    collect(metadata)
    assert graph.left() == set()
    assert metadata.content.info("other", digest).digest == digest


def test_a_circle_goes_whole(metadata: Metadata, graph: Graph) -> None:
    a, b = digest_of(b"a"), digest_of(b"b")
    graph.content("a", {GC + "ref.content": b})
    graph.content("b", {GC + "ref.content": a})
    assert collect(metadata) == {"content": 2}


def test_replaced_labels_and_targets_let_go(metadata: Metadata, graph: Graph) -> None:
    one, two = graph.content("one"), graph.content("two")
    root = graph.content("root", {GC + "root": "", GC + "ref.content": one})
    metadata.content.update("here", root, {GC + "root": "", GC + "ref.content": two})
    collect(metadata)
    assert graph.left() == {"root", "two"}


# What fails, and what is asked


@pytest.mark.logs("gc.snapshot_kept")
def test_a_snapshot_that_cannot_be_removed_stops_nothing_and_is_tried_again(
    metadata: Metadata, graph: Graph, backend: Backend
) -> None:
    for name in ("a", "b", "c"):
        graph.snapshot(name)
    backend.refuses.add("here/b")
    done = metadata.collector.collect()
    assert done.failed == ["snapfs/b"]
    assert backend.removed == ["here/c", "here/a"]
    backend.refuses.clear()
    assert metadata.collector.collect().failed == []
    assert backend.removed == ["here/c", "here/a", "here/b"]
    assert graph.left() == set()


@pytest.mark.logs("gc.snapshot_kept")
def test_of_many_failures_some_are_named_and_all_counted(
    metadata: Metadata, graph: Graph, backend: Backend
) -> None:
    keys = [f"{number:03}" for number in range(105)]
    for key in keys:
        graph.snapshot(key)
        backend.refuses.add(f"here/{key}")
    done = metadata.collector.collect()
    assert set(done.failed) <= {f"snapfs/{key}" for key in keys}
    assert (len(done.failed), done.failures) == (100, 105)
    assert metadata.collector.last().failed == 105
    backend.refuses.clear()
    assert metadata.collector.collect().failures == 0
    assert graph.left() == set()


def test_a_dry_run_says_what_would_go_and_removes_nothing(metadata: Metadata, graph: Graph) -> None:
    graph.snapshot("a")
    digest = graph.content("b")
    wanted = {("snapshot link", "here", "snapfs/a"), ("content", "here", digest)}
    found = {(each.table, each.namespace, each.name) for each in metadata.garbage()}
    assert found == wanted
    assert graph.left() == {"a", "b"}


def test_explain_shows_the_path_that_keeps_an_object(metadata: Metadata, graph: Graph) -> None:
    graph.snapshot("base")
    graph.snapshot("top", "base")
    config = graph.content("config", {GC + "ref.snapshot.snapfs": "top"})
    metadata.images.create(HERE, image("web", config))
    why = metadata.explain("here", Name(Type.SNAPSHOT, "snapfs/base"))
    assert [step.name for step in why.path] == ["web", config, "snapfs/top", "snapfs/base"]
    assert (why.kept, why.reason) == (True, "it is an image")
    metadata.images.delete("here", "web")
    assert not metadata.explain("here", Name(Type.SNAPSHOT, "snapfs/base")).kept
    with pytest.raises(NotFound):
        metadata.explain("here", Name(Type.SNAPSHOT, "snapfs/none"))


def test_figures_of_the_last_run_are_kept(metadata: Metadata, graph: Graph) -> None:
    assert metadata.collector.last() is None
    graph.snapshot("a")
    collect(metadata)
    last = metadata.collector.last()
    assert last is not None
    assert last.removed == {"snapshot link": 1}
    assert last.elapsed_ns >= last.mark_ns > 0


def test_figures_of_runs_that_did_something_are_kept_and_of_idle_ones_the_last(
    metadata: Metadata, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector, "KEPT_RUNS", 3)
    for number in range(5):
        graph.snapshot(f"s{number}")
        collect(metadata)
        collect(metadata)
        collect(metadata)
    removed = [it.removed for it in metadata.collector.runs()]
    assert removed == [{}, {"snapshot link": 1}, {"snapshot link": 1}]


def test_sweeps_go_in_batches(metadata: Metadata, graph: Graph, store: Store) -> None:
    def fill(tx: object) -> None:
        for number in range(500):
            body = SnapshotLinkBody(
                snapshotter="snapfs", key=f"k{number}", backend=f"here/k{number}"
            )
            linking.create(tx, SNAPSHOT_LINKS, "here", f"snapfs/k{number}", body)  # type: ignore[arg-type]

    store.update(fill)
    graph.backend.keys.update(f"here/k{number}" for number in range(500))
    before = store.revision
    assert collect(metadata) == {"snapshot link": 500}
    assert store.revision - before >= 3
    assert graph.left() == set()


def test_a_pulled_image_of_many_layers_goes_when_its_name_does(
    metadata: Metadata, graph: Graph
) -> None:
    layers = [graph.content(f"layer{number}") for number in range(20)]
    labels = {GC + f"ref.content.l.{n}": digest for n, digest in enumerate(layers)}
    manifest = graph.content("manifest", labels)
    metadata.images.create(HERE, Image(name="i", target=image("i", manifest).target))
    assert collect(metadata) == {}
    metadata.images.delete("here", "i")
    assert collect(metadata) == {"content": 21}
