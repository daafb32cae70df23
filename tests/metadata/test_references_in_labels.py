"""Checklist M10: which labels refer to what."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs.metadata import Name, Type
from snapfs.metadata.references import Edge, Want, expiry_ns, holds, is_root, wants
from tests.metadata.kit import HOUR, NOW, rfc3339

GC = "containerd.io/gc."


def of(label: str, value: str) -> list[Want]:
    return list(wants({GC + label: value}))


@pytest.mark.parametrize("suffix", ["", ".0", "/config", ".m.1"])
def test_a_reference_may_have_a_suffix_so_that_there_can_be_many(suffix: str) -> None:
    assert of("ref.content" + suffix, "d") == [Want(Edge.KEEPS, Name(Type.CONTENT, "d"))]
    assert of("ref.image" + suffix, "i") == [Want(Edge.KEEPS, Name(Type.IMAGE, "i"))]


@pytest.mark.parametrize("label", ["ref.contentbad", "ref.content2", "ref.imagery", "ref.", "ref"])
def test_another_suffix_says_nothing(label: str) -> None:
    assert of(label, "d") == []


def test_a_snapshot_is_named_with_its_snapshotter() -> None:
    wanted = [Want(Edge.KEEPS, Name(Type.SNAPSHOT, "snapfs/k"))]
    assert of("ref.snapshot.snapfs", "k") == wanted
    assert of("ref.snapshot.snapfs/1", "k") == wanted
    assert of("ref.snapshot.", "k") == []


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("bref.content", Name(Type.CONTENT, "x")),
        ("bref.image.1", Name(Type.IMAGE, "x")),
        ("bref.container/2", Name(Type.CONTAINER, "x")),
        ("bref.snapshot.snapfs", Name(Type.SNAPSHOT, "snapfs/x")),
    ],
)
def test_a_back_reference_says_who_keeps_me(label: str, name: Name) -> None:
    assert of(label, "x") == [Want(Edge.KEPT_BY, name)]


def test_a_conditional_reference_carries_its_condition() -> None:
    assert of("cond.snapshot.snapfs", "usedat<2h|k") == [
        Want(Edge.KEEPS_IF, Name(Type.SNAPSHOT, "snapfs/k"), "usedat<2h")
    ]
    assert of("cond.snapshot.snapfs", "k") == []
    assert of("cond.value-usedat", "usedat<2h|k") == []


@pytest.mark.parametrize(
    ("condition", "age_ns", "kept"),
    [
        ("usedat<2h", HOUR, True),
        ("usedat<2h", 3 * HOUR, False),
        ("usedat>2h", 3 * HOUR, True),
        ("usedat<1h30m", HOUR, True),
        ("usedat<90s,usedat>30m", HOUR, True),
        ("used<2h", HOUR, False),
        ("usedat=2h", HOUR, False),
        ("usedat<soon", HOUR, False),
        ("usedat<", HOUR, False),
        ("", HOUR, False),
    ],
)
def test_a_condition_compares_how_long_ago_the_snapshot_was_used(
    condition: str, age_ns: int, kept: bool
) -> None:
    used = {GC + "cond.value-usedat": rfc3339(NOW - age_ns)}
    assert holds(condition, used, NOW) == kept
    assert not holds(condition, {}, NOW)


def test_labels_that_begin_with_root_keep_their_object() -> None:
    assert is_root({GC + "root": ""})
    assert is_root({GC + "root/mine": "x"})
    assert not is_root({"gc.root": "x"})


def test_a_time_that_does_not_parse_does_not_expire() -> None:
    assert expiry_ns({GC + "expire": "tomorrow"}) is None
    assert expiry_ns({}) is None
    assert expiry_ns({GC + "expire": rfc3339(NOW)}) == NOW


@given(st.dictionaries(st.text(), st.text(), max_size=5), st.text(), st.text())
def test_no_label_of_any_kind_raises(labels: dict[str, str], rest: str, value: str) -> None:
    for kind in ("ref.", "bref.", "cond.", "cond.snapshot.s", "ref.snapshot."):
        list(wants({**labels, GC + kind + rest: value}))
    holds(value, labels, NOW)
