"""The table of three-way merges, and the laws of merging items."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs.sync import merging, versions
from snapfs.sync.items import Cell, Item
from snapfs.sync.merging import Dot, Merged
from snapfs.sync.threeway import Last, Outcome, Policy, Unknown, Value, three_way
from snapfs.sync.versions import Order, Version

UNKNOWN = Unknown.UNKNOWN


@pytest.mark.parametrize(
    ("theirs", "ours", "last", "outcome"),
    [
        ("i", "i", "i", Outcome.SAME),
        ("t", "i", "i", Outcome.TAKE),
        ("i", "c", "i", Outcome.GIVE),
        ("x", "x", "i", Outcome.SAME),
        ("t", "c", "i", Outcome.CONFLICT),
        ("t", "c", UNKNOWN, Outcome.CONFLICT),
        ("x", "x", UNKNOWN, Outcome.SAME),
        (None, "i", "i", Outcome.TAKE),
        ("i", None, "i", Outcome.GIVE),
        (None, "c", "i", Outcome.CONFLICT),
        ("t", None, None, Outcome.TAKE),
        (None, None, UNKNOWN, Outcome.SAME),
    ],
)
def test_a_field_is_merged_by_the_table(
    theirs: Value, ours: Value, last: Last, outcome: Outcome
) -> None:
    assert three_way(theirs, ours, last) is outcome


values = st.one_of(st.none(), st.sampled_from("abc"))


@given(values, values, values)
def test_exchanging_the_sides_exchanges_the_outcome(
    theirs: Value, ours: Value, last: Value
) -> None:
    mirrored = {Outcome.TAKE: Outcome.GIVE, Outcome.GIVE: Outcome.TAKE}
    outcome = three_way(theirs, ours, last)
    assert three_way(ours, theirs, last) is mirrored.get(outcome, outcome)


stamps = st.dictionaries(st.sampled_from("xyz"), st.integers(1, 3), max_size=3).map(
    lambda found: tuple(sorted(found.items()))
)


@given(stamps, stamps, stamps)
def test_versions_are_a_partial_order_with_joins(
    one: Version, other: Version, third: Version
) -> None:
    joined = versions.join(one, other)
    assert versions.join(other, one) == joined
    assert versions.join(joined, one) == joined
    assert versions.compare(one, joined) in (Order.SAME, Order.BEFORE)
    assert versions.join(versions.join(one, other), third) == versions.join(
        one, versions.join(other, third)
    )
    mirrored = {Order.BEFORE: Order.AFTER, Order.AFTER: Order.BEFORE}
    order = versions.compare(one, other)
    assert versions.compare(other, one) is mirrored.get(order, order)


cells = st.dictionaries(
    st.sampled_from(["name", "owner", "gone"]), st.builds(Cell, values, stamps), max_size=3
)
known = st.one_of(st.none(), st.dictionaries(st.sampled_from(["name", "owner"]), values))
DOT = Dot("me", 7)


def _item(found: dict[str, Cell]) -> Item:
    return Item("branch", "1", found)  # of a set no policy decides the deletion


def _merge(theirs: Item, ours: Item, last: dict[str, Value] | None, policy: Policy) -> Merged:
    return merging.merge(theirs, ours, last, policy, DOT)


@given(cells, known, st.sampled_from(Policy))
def test_merging_an_item_with_itself_changes_nothing(
    found: dict[str, Cell], last: dict[str, Value] | None, policy: Policy
) -> None:
    merged = _merge(_item(found), _item(found), last, policy)
    assert merged.cells == found
    assert merged.conflicts == ()


@given(cells, cells, known, st.sampled_from([Policy.OURS, Policy.THEIRS]))
def test_after_a_merge_both_sides_merge_to_the_same_again(
    theirs: dict[str, Cell],
    ours: dict[str, Cell],
    last: dict[str, Value] | None,
    policy: Policy,
) -> None:
    merged = _merge(_item(theirs), _item(ours), last, policy)
    for side in (theirs, ours):
        again = _merge(_item(merged.cells), _item(side), last, policy)
        assert {k: c.value for k, c in again.cells.items()} == {
            k: c.value for k, c in merged.cells.items()
        }
        assert again.conflicts == () or "gone" in {it.field for it in again.conflicts}


@given(cells, cells, known)
def test_ours_there_is_theirs_here(
    theirs: dict[str, Cell], ours: dict[str, Cell], last: dict[str, Value] | None
) -> None:
    here = _merge(_item(theirs), _item(ours), last, Policy.OURS)
    there = _merge(_item(ours), _item(theirs), last, Policy.THEIRS)
    assert here.cells == there.cells


@given(cells, cells, known)
def test_the_policy_fail_decides_nothing_that_is_in_conflict(
    theirs: dict[str, Cell], ours: dict[str, Cell], last: dict[str, Value] | None
) -> None:
    merged = _merge(_item(theirs), _item(ours), last, Policy.FAIL)
    for conflict in merged.conflicts:
        assert conflict.winner == ""
        assert conflict.field not in merged.cells


@given(cells, cells, known, st.sampled_from(Policy))
def test_no_policy_decides_a_contested_deletion_of_a_set(
    theirs: dict[str, Cell],
    ours: dict[str, Cell],
    last: dict[str, Value] | None,
    policy: Policy,
) -> None:
    merged = merging.merge(Item("set", "1", theirs), Item("set", "1", ours), last, policy, DOT)
    contests = [it for it in merged.conflicts if it.field == "gone"]
    assert all(it.winner == "" for it in contests)
    assert not (contests and "gone" in merged.cells)
