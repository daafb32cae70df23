"""Checklist M2 to M4 and M16: the common rules of every kind of object."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snapfs.metadata import (
    Container,
    Context,
    Descriptor,
    Image,
    Metadata,
    Resource,
    Runtime,
    Sandbox,
    Typed,
    linking,
)
from snapfs.metadata.schema import SNAPSHOT_LINKS, SnapshotLinkBody
from snapfs.model import (
    AlreadyExists,
    Conflict,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    NotImplementedYet,
)
from snapfs.store import Store
from tests.metadata.kit import HOUR, NOW, Clock, digest_of, image, rfc3339, write

HERE = Context("default")
D1, D2 = digest_of(b"1"), digest_of(b"2")


def container(id_: str = "c1", **fields: object) -> Container:
    given = {"runtime": Runtime("io.containerd.runc.v2"), "spec": Typed("spec", b"{}"), **fields}
    return Container(id=id_, **given)  # type: ignore[arg-type]


# Namespaces


def test_a_namespace_has_labels_and_they_are_replaced_and_deleted(metadata: Metadata) -> None:
    metadata.namespaces.create("one", {"a": "1", "b": "2"})
    metadata.namespaces.set_label("one", "a", "")
    metadata.namespaces.set_label("one", "c", "3")
    assert metadata.namespaces.labels("one") == {"b": "2", "c": "3"}
    metadata.namespaces.update("one", {"d": "4"}, ["labels"])
    assert metadata.namespaces.labels("one") == {"d": "4"}


def test_setting_a_label_creates_the_namespace_and_unknown_ones_have_none(
    metadata: Metadata,
) -> None:
    assert metadata.namespaces.labels("new") == {}
    metadata.namespaces.set_label("new", "k", "v")
    assert [each.name for each in metadata.namespaces.all()] == ["new"]


def test_a_namespace_in_use_is_listed_without_being_created(metadata: Metadata) -> None:
    metadata.images.create(Context("used"), image("i", D1))
    assert [each.name for each in metadata.namespaces.all()] == ["used"]
    assert metadata.namespaces.get("used").labels == {}


@pytest.mark.parametrize("name", ["version", "", "a b", "x" * 77])
def test_bad_namespaces_are_refused_by_every_call(metadata: Metadata, name: str) -> None:
    for call in (
        lambda: metadata.namespaces.create(name),
        lambda: metadata.images.create(Context(name), image("i", D1)),
        lambda: metadata.images.get(name, "i"),
        lambda: list(metadata.images.walk(name)),
        lambda: metadata.leases.create(name, "l"),
        lambda: metadata.content.info(name, D1),
    ):
        with pytest.raises(InvalidArgument):
            call()


def test_deleting_a_namespace_counts_everything_that_is_left(
    metadata: Metadata, store: Store
) -> None:
    there = Context("full")
    metadata.namespaces.create("full")
    metadata.images.create(there, image("i", D1))
    metadata.leases.create("full", "l")
    metadata.sandboxes.create(there, Sandbox(id="s", runtime=Runtime("r")))
    metadata.containers.create(there, container())
    write(metadata, there, b"data")
    link = SnapshotLinkBody(snapshotter="snapfs", key="k", backend="full/k")
    row = store.update(lambda tx: linking.create(tx, SNAPSHOT_LINKS, "full", "snapfs/k", link))
    ingest = metadata.content.writer(there, "r")
    with pytest.raises(FailedPrecondition) as refused:
        metadata.namespaces.delete("full")
    for word in (
        *("images", "content", "containers", "leases", "sandboxes", "ingests"),
        "snapshots of snapfs",
    ):
        assert word in str(refused.value)
    store.update(lambda tx: tx.delete(row))
    ingest.close()
    metadata.content.abort("full", "r")
    metadata.images.delete("full", "i")
    metadata.leases.delete("full", "l")
    metadata.sandboxes.delete("full", "s")
    metadata.containers.delete("full", "c1")
    metadata.content.delete("full", digest_of(b"data"))
    metadata.namespaces.delete("full")
    with pytest.raises(NotFound):
        metadata.namespaces.delete("full")


# Images


def test_an_image_is_created_once_and_found_by_name(metadata: Metadata) -> None:
    made = metadata.images.create(HERE, image("docker.io/library/a:1", D1, {"k": "v"}))
    assert metadata.images.get("default", "docker.io/library/a:1") == made
    assert (made.created_ns, made.updated_ns) == (NOW, NOW)
    with pytest.raises(AlreadyExists):
        metadata.images.create(HERE, image("docker.io/library/a:1", D2))
    with pytest.raises(NotFound):
        metadata.images.get("other", "docker.io/library/a:1")


@pytest.mark.parametrize(
    "bad",
    [
        Image(name="", target=Descriptor("t", D1, 1)),
        Image(name="i", target=Descriptor("", D1, 1)),
        Image(name="i", target=Descriptor("t", "sha256:1", 1)),
        Image(name="i", target=Descriptor("t", D1, 0)),
        Image(name="i", target=Descriptor("t", D1, 1), labels={"k": "x" * 4096}),
        Image(name="i", target=Descriptor("t", D1, 1, {"k": "x" * 4096})),
    ],
)
def test_a_bad_image_is_refused_and_nothing_is_there(metadata: Metadata, bad: Image) -> None:
    with pytest.raises(InvalidArgument):
        metadata.images.create(HERE, bad)
    assert list(metadata.images.walk("default")) == []


def test_an_update_by_mask_changes_what_it_names_and_a_map_is_really_replaced(
    metadata: Metadata, clock: Clock
) -> None:
    old = Image(name="i", target=Descriptor("t", D1, 1, {"a": "1"}), labels={"x": "1", "y": "2"})
    metadata.images.create(HERE, old)
    new = Image(name="i", target=Descriptor("u", D2, 2, {"b": "2"}), labels={"x": "9"})
    clock.now_ns += HOUR

    one = metadata.images.update(HERE, new, ["labels.x", "labels.gone"])
    assert (one.labels, one.target) == ({"x": "9", "y": "2"}, old.target)
    assert (one.created_ns, one.updated_ns) == (NOW, NOW + HOUR)
    assert metadata.images.update(HERE, new, ["labels"]).labels == {"x": "9"}
    assert metadata.images.update(HERE, new, ["annotations.b"]).target.annotations == {
        "a": "1",
        "b": "2",
    }
    assert metadata.images.update(HERE, new, ["annotations"]).target.annotations == {"b": "2"}
    assert metadata.images.update(HERE, new, ["target"]).target == new.target
    assert metadata.images.update(HERE, old).labels == old.labels


def test_an_unknown_path_a_stale_revision_and_an_unknown_image_are_refused(
    metadata: Metadata,
) -> None:
    made = metadata.images.create(HERE, image("i", D1))
    metadata.images.update(HERE, image("i", D2))
    with pytest.raises(InvalidArgument, match="labels"):
        metadata.images.update(HERE, image("i", D1), ["size"])
    with pytest.raises(Conflict) as conflict:
        metadata.images.update(HERE, image("i", D1), expect_revision=made.revision)
    assert conflict.value.actual > conflict.value.expected == made.revision
    with pytest.raises(NotFound):
        metadata.images.update(HERE, image("j", D1))


def test_deleting_an_image_may_insist_on_its_target(metadata: Metadata) -> None:
    metadata.images.create(HERE, image("i", D1))
    with pytest.raises(NotFound):
        metadata.images.delete("default", "i", target=D2)
    metadata.images.delete("default", "i", target=D1)
    with pytest.raises(NotFound):
        metadata.images.delete("default", "i")


def test_filters_select_images(metadata: Metadata) -> None:
    metadata.images.create(HERE, image("a", D1, {"env": "prod"}))
    metadata.images.create(HERE, image("b", D2, {"env": "test"}))
    metadata.images.create(HERE, image("c", D2))

    def names(*wanted: str) -> list[str]:
        return [each.name for each in metadata.images.walk("default", wanted)]

    assert names() == names("") == ["a", "b", "c"]
    assert names("name==a") == ["a"]
    assert names(f"target.digest=={D2}") == ["b", "c"]
    assert names("labels.env") == ["a", "b"]
    assert names("labels.env==test,name==b") == ["b"]
    assert names("labels.env==test", "name==c") == ["b", "c"]
    assert names("name~=^[ab]$") == ["a", "b"]
    with pytest.raises(InvalidArgument):
        metadata.images.walk("default", ["name=="])


def test_an_object_created_with_a_time_keeps_it(metadata: Metadata) -> None:
    made = metadata.images.create(HERE, image("i", D1), created_ns=5)
    assert made.created_ns == 5


# Containers and sandboxes


@pytest.mark.parametrize(
    "fields",
    [
        {"id_": "a b"},
        {"id_": ""},
        {"runtime": Runtime("")},
        {"spec": None},
        {"extensions": {"": Typed("x")}},
        {"snapshot_key": "k"},
        {"labels": {"k": "x" * 4096}},
    ],
)
def test_a_bad_container_is_refused(metadata: Metadata, fields: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        metadata.containers.create(HERE, container(**fields))  # type: ignore[arg-type]


def test_a_container_is_updated_by_mask_and_an_extension_that_is_dropped_is_gone(
    metadata: Metadata,
) -> None:
    metadata.containers.create(
        HERE, container(extensions={"a": Typed("1"), "b": Typed("2")}, labels={"k": "v"})
    )
    new = container(spec=Typed("spec", b"new"), extensions={"a": Typed("9")}, labels={"n": "1"})
    assert metadata.containers.update(HERE, new, ["extensions.a"]).extensions == {
        "a": Typed("9"),
        "b": Typed("2"),
    }
    assert metadata.containers.update(HERE, new, ["extensions"]).extensions == {"a": Typed("9")}
    assert metadata.containers.update(HERE, new, ["spec"]).spec == Typed("spec", b"new")
    whole = metadata.containers.update(HERE, new)
    assert whole.labels == {"n": "1"}
    assert metadata.containers.get("default", "c1") == whole


@pytest.mark.parametrize("field", ["image", "snapshot_key"])
def test_a_field_of_a_container_is_updated_alone(metadata: Metadata, field: str) -> None:
    given = {"image": "i", "snapshotter": "snapfs", "snapshot_key": "k", "labels": {"a": "1"}}
    made = metadata.containers.create(HERE, container(**given))
    new = container(**{**given, "image": "j", "snapshot_key": "l", "labels": {"a": "2"}})
    changed = metadata.containers.update(HERE, new, [field.replace("snapshot_key", "snapshotkey")])
    assert getattr(changed, field) == getattr(new, field)
    assert replace(changed, **{field: getattr(made, field)}, revision=0, updated_ns=0) == replace(
        made, revision=0, updated_ns=0
    )
    assert metadata.containers.update(HERE, new, ["labels.a", "labels.b"]).labels == {"a": "2"}


def test_filters_select_containers_and_content(metadata: Metadata) -> None:
    metadata.containers.create(HERE, container("a", image="i", labels={"env": "prod"}))
    metadata.containers.create(HERE, container("b", runtime=Runtime("io.other"), image="i"))
    digest = write(metadata, HERE, b"data", {"k": "v"})
    other = write(metadata, HERE, b"other")

    def ids(*wanted: str) -> list[str]:
        return [each.id for each in metadata.containers.walk("default", wanted)]

    assert ids("id==a") == ids("labels.env==prod") == ["a"]
    assert ids("runtime.name==io.other,image==i") == ["b"]
    assert ids("image==i") == ids("id==a", "runtime.name~=^io.other$") == ["a", "b"]
    assert [each.digest for each in metadata.content.walk("default", ["labels.k"])] == [digest]
    assert {each.digest for each in metadata.content.walk("default", ["labels.k!=v"])} == {other}
    assert list(metadata.content.walk("default", ["size==4"])) == []


def test_a_label_over_the_limit_is_named_by_its_first_64_bytes(metadata: Metadata) -> None:
    key = "k" * 100
    with pytest.raises(InvalidArgument, match=rf"label '{'k' * 64}': .* 4097 bytes"):
        metadata.namespaces.create("n", {key: "v" * (4097 - len(key))})
    metadata.namespaces.create("n", {key: "v" * (4096 - len(key))})


def test_the_runtime_and_the_snapshotter_of_a_container_stay(metadata: Metadata) -> None:
    metadata.containers.create(HERE, container(snapshotter="snapfs", snapshot_key="k"))
    for changed in (
        container(snapshotter="overlayfs", snapshot_key="k"),
        container(runtime=Runtime("other"), snapshotter="snapfs", snapshot_key="k"),
    ):
        with pytest.raises(InvalidArgument, match="cannot become"):
            metadata.containers.update(HERE, changed)
    with pytest.raises(InvalidArgument, match="no field 'snapshotter'"):
        metadata.containers.update(HERE, container(), ["snapshotter"])


def test_sandboxes_follow_the_same_rules(metadata: Metadata) -> None:
    made = metadata.sandboxes.create(
        HERE, Sandbox(id="s", runtime=Runtime("r"), sandboxer="podsandbox", labels={"a": "1"})
    )
    assert metadata.sandboxes.get("default", "s") == made
    assert [each.id for each in metadata.sandboxes.walk("default", ["labels.a==1"])] == ["s"]
    new = Sandbox(id="s", runtime=Runtime("r"), spec=Typed("x"), extensions={"e": Typed("1")})
    assert metadata.sandboxes.update(HERE, new, ["extensions.e"]).extensions == new.extensions
    assert metadata.sandboxes.update(HERE, new, ["spec"]).spec == Typed("x")
    with pytest.raises(InvalidArgument):
        metadata.sandboxes.update(HERE, new, ["sandboxer"])
    changed = metadata.sandboxes.update(HERE, Sandbox(id="s", runtime=Runtime("r")), ["labels"])
    assert (changed.labels, changed.sandboxer) == ({}, "podsandbox")
    with pytest.raises(InvalidArgument):
        metadata.sandboxes.update(HERE, Sandbox(id="s", runtime=Runtime("q")))
    metadata.sandboxes.delete("default", "s")
    with pytest.raises(NotFound):
        metadata.sandboxes.delete("default", "s")


# Leases


@pytest.mark.parametrize(
    ("resource", "error"),
    [
        (Resource("content", D1), None),
        (Resource("ingests", "ref"), None),
        (Resource("images", "i"), None),
        (Resource("snapshots/snapfs", "k/with/slashes"), None),
        (Resource("content", "sha256:1"), InvalidArgument),
        (Resource("snapshots", "k"), InvalidArgument),
        (Resource("snapshots/snapfs/more", "k"), InvalidArgument),
        (Resource("snapshots/", "k"), InvalidArgument),
        (Resource("leases", "l"), NotImplementedYet),
        (Resource("containers", "c"), NotImplementedYet),
        (Resource("other", "o"), InvalidArgument),
        (Resource("content", ""), InvalidArgument),
    ],
)
def test_what_a_lease_can_hold(
    metadata: Metadata, resource: Resource, error: type[Exception] | None
) -> None:
    metadata.leases.create("default", "l")
    if error is not None:
        with pytest.raises(error):
            metadata.leases.add("default", "l", resource)
        return
    metadata.leases.add("default", "l", resource)
    metadata.leases.add("default", "l", resource)
    assert metadata.leases.resources("default", "l") == [resource]
    metadata.leases.remove("default", "l", resource)
    metadata.leases.remove("default", "l", resource)
    assert metadata.leases.resources("default", "l") == []


def test_resources_are_listed_content_images_ingests_snapshots(metadata: Metadata) -> None:
    metadata.leases.create("default", "l")
    wanted = [
        Resource("content", D1),
        Resource("images", "i"),
        Resource("ingests", "r"),
        Resource("snapshots/snapfs", "k"),
    ]
    for resource in reversed(wanted):
        metadata.leases.add("default", "l", resource)
    assert metadata.leases.resources("default", "l") == wanted


def test_an_unknown_lease_is_refused_by_name(metadata: Metadata) -> None:
    for call in (
        lambda: metadata.leases.add("default", "no", Resource("images", "i")),
        lambda: metadata.leases.resources("default", "no"),
        lambda: metadata.leases.delete("default", "no"),
        lambda: metadata.content.writer(Context("default", lease="no"), "ref"),
    ):
        with pytest.raises(NotFound, match="lease 'no'"):
            call()


def test_leases_are_created_once_and_listed_by_filter(metadata: Metadata) -> None:
    metadata.leases.create("default", "a", {"x": "1"})
    metadata.leases.create("default", "b")
    with pytest.raises(AlreadyExists):
        metadata.leases.create("default", "a")
    assert [each.id for each in metadata.leases.walk("default", ["labels.x"])] == ["a"]
    assert [each.id for each in metadata.leases.walk("default", ["id==b"])] == ["b"]


def test_an_image_that_expires_is_held_by_the_lease_of_who_makes_it(metadata: Metadata) -> None:
    metadata.leases.create("default", "l")
    under = Context("default", lease="l")
    metadata.images.create(under, image("kept", D1))
    expiring = {"containerd.io/gc.expire": rfc3339(NOW + HOUR)}
    metadata.images.create(under, image("expiring", D1, expiring))
    assert metadata.leases.resources("default", "l") == [Resource("images", "expiring")]
