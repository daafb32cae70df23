"""Labels, update with field paths, and every name that can be given."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapfs.model import AlreadyExists, InvalidArgument, Kind, NotFound, Usage
from snapfs.snapshots import MetaStore


@pytest.fixture
def labelled(metastore):
    metastore.create(Kind.ACTIVE, "a", labels={"one": "1", "two": "2"})
    return metastore


@pytest.mark.parametrize(
    ("labels", "paths", "expected"),
    [
        ({"new": "3"}, None, {"new": "3"}),
        ({"new": "3"}, [], {"new": "3"}),
        ({"new": "3"}, ["labels"], {"new": "3"}),
        ({}, None, {}),
        ({"new": ""}, None, {}),
        ({"one": "9", "ignored": "x"}, ["labels.one"], {"one": "9", "two": "2"}),
        ({"a.b/c": "9"}, ["labels.a.b/c"], {"one": "1", "two": "2", "a.b/c": "9"}),
        ({"one": ""}, ["labels.one"], {"two": "2"}),
        ({}, ["labels.one"], {"two": "2"}),
        ({}, ["labels.absent"], {"one": "1", "two": "2"}),
        (
            {"x": "1", "y": "2"},
            ["labels.x", "labels.y"],
            {"one": "1", "two": "2"} | {"x": "1", "y": "2"},
        ),
    ],
)
def test_update_sets_deletes_and_replaces_labels(labelled, labels, paths, expected):
    before = labelled.info("a")
    changed = labelled.update("a", labels, paths)
    assert changed.labels == labelled.info("a").labels == expected
    assert changed.created_ns == before.created_ns
    assert changed.updated_ns > before.updated_ns
    assert (changed.id, changed.name, changed.kind) == (before.id, before.name, before.kind)


@pytest.mark.parametrize("path", ["name", "parent", "kind", "labels.", "label.x", "", "labels,x"])
def test_update_of_any_other_field_is_refused_and_changes_nothing(labelled, path):
    before = labelled.info("a")
    with pytest.raises(InvalidArgument, match="cannot be changed"):
        labelled.update("a", {"one": "9"}, ["labels.one", path])
    assert labelled.info("a") == before


def test_update_of_a_missing_snapshot_is_not_found_before_anything_else(labelled):
    with pytest.raises(NotFound):
        labelled.update("nobody", {}, ["name"])


def test_update_works_on_every_kind(labelled):
    labelled.create(Kind.VIEW, "v")
    labelled.commit("a", "c", Usage())
    for name in ("v", "c"):
        assert labelled.update(name, {"k": "v"}).labels == {"k": "v"}


def test_key_and_value_of_a_label_take_4096_bytes_together(metastore):
    fits, long = {"é" * 1000: "x" * 2096}, {"é" * 1000: "x" * 2097}
    metastore.create(Kind.ACTIVE, "a", labels=fits)
    for refused in (
        lambda: metastore.create(Kind.ACTIVE, "b", labels=long),
        lambda: metastore.update("a", long),
        lambda: metastore.update("a", long, ["labels." + "é" * 1000]),
        lambda: metastore.commit("a", "c", Usage(), long),
    ):
        with pytest.raises(InvalidArgument, match="4097 bytes"):
            refused()
    assert metastore.info("a").labels == fits


def test_labels_with_an_empty_value_are_not_kept_and_an_empty_key_is_refused(metastore):
    assert metastore.create(Kind.ACTIVE, "a", labels={"x": "", "y": "1"}).labels == {"y": "1"}
    assert metastore.commit("a", "c", Usage(), {"x": ""}).labels == {}
    with pytest.raises(InvalidArgument, match="label key is empty"):
        metastore.create(Kind.ACTIVE, "b", labels={"": "1"})


def test_names_up_to_32_kib_work_and_longer_ones_are_refused(metastore):
    head = "n" * (32 * 1024 - 1)
    metastore.create(Kind.ACTIVE, head + "1")
    metastore.create(Kind.ACTIVE, head + "2")
    metastore.commit(head + "1", head + "3", Usage())
    metastore.create(Kind.VIEW, head + "4", head + "3")
    assert {snapshot.name[-1] for snapshot in metastore.walk()} == {"2", "3", "4"}
    assert metastore.get(head + "4").parent == head + "3"
    with pytest.raises(AlreadyExists) as refused:
        metastore.create(Kind.ACTIVE, head + "3")
    assert len(str(refused.value)) < 400
    with pytest.raises(InvalidArgument, match="32769 bytes"):
        metastore.create(Kind.ACTIVE, head + "55")
    with pytest.raises(InvalidArgument, match="32769 bytes"):
        metastore.commit(head + "2", head + "55", Usage())


@pytest.mark.parametrize("name", ["", "\ud800"])
def test_an_unusable_name_is_refused(metastore, name):
    metastore.create(Kind.ACTIVE, "a")
    with pytest.raises(InvalidArgument):
        metastore.create(Kind.ACTIVE, name)
    with pytest.raises(InvalidArgument):
        metastore.commit("a", name, Usage())


@pytest.mark.parametrize("name", ["\ud800", "", "\0"])
def test_asking_for_an_unusable_name_is_a_refusal_not_a_crash(metastore, name):
    for ask in (metastore.info, metastore.get, metastore.usage, metastore.remove):
        with pytest.raises((NotFound, InvalidArgument)):
            ask(name)


@pytest.mark.parametrize("labels", [{"\ud800": "x"}, {"x": "\ud800"}])
def test_a_label_that_is_not_unicode_is_refused(metastore, labels):
    with pytest.raises(InvalidArgument, match="not valid utf-8"):
        metastore.create(Kind.ACTIVE, "a", labels=labels)


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=600)


@settings(max_examples=60, deadline=None)
@given(st.sets(NAMES, min_size=1, max_size=8))
def test_odd_names_are_kept_apart_and_walked_once(tmp_path_factory, names):
    with MetaStore(tmp_path_factory.mktemp("metastore")) as metastore:
        ids = {name: metastore.create(Kind.ACTIVE, name).id for name in names}
        assert {found.name: found.id for found in metastore.walk()} == ids
        assert {name: metastore.info(name).id for name in names} == ids
