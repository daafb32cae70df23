"""What bobg/bs anchors do, and where snapfs does better: ancestors.md section 4, by its numbers."""

from itertools import permutations

import pytest

from snapfs.model import Conflict, InvalidArgument, NotFound
from tests.anchors.kit import NOW, SECOND, at, everything, oldest_first, ref, sync, told


def value_at(anchors, name, second):
    """Return what a name stood for, None for nothing."""
    try:
        return anchors.get(name, at_ns=at(second)).ref.value
    except NotFound:
        return None


def test_empty_store_has_no_anchors_and_says_so(anchors):
    assert list(anchors.walk()) == []
    assert list(anchors.each()) == []
    with pytest.raises(NotFound, match="anchor 'a' does not exist; put it first"):
        anchors.get("a")


def test_ten_lookups_at_before_after_and_between(anchors):
    anchors.put("two", ref("A"), at_ns=at(10))
    anchors.put("two", ref("B"), at_ns=at(20))
    anchors.put("one", ref("C"), at_ns=at(15))
    assert [value_at(anchors, "two", second) for second in (9, 10, 11, 19, 20, 21)] == [
        *(None, "A", "A", "A", "B", "B")
    ]
    assert [value_at(anchors, "one", second) for second in (14, 15, 16)] == [None, "C", "C"]
    assert value_at(anchors, "none", 15) is None


def test_each_yields_every_entry_names_in_order_oldest_first(anchors):
    anchors.put("two", ref("B"), at_ns=at(20))
    anchors.put("two", ref("A"), at_ns=at(10))
    anchors.put("one", ref("C"), at_ns=at(15))
    entries = list(anchors.each())
    assert [each.name for each in entries] == ["one", "two", "two"]
    assert told(entries) == [("C", 15), ("A", 10), ("B", 20)]


def test_put_before_the_latest_is_put_in_its_place(anchors):
    for value, second in (("A", 10), ("C", 30), ("B", 20)):
        anchors.put("n", ref(value), at_ns=at(second))
    assert oldest_first(anchors, "n") == [("A", 10), ("B", 20), ("C", 30)]


def test_repeat_is_kept_but_history_shows_it_once(anchors):
    for second in (10, 20, 30):
        anchors.put("n", ref("A"), at_ns=at(second))
    assert oldest_first(anchors, "n") == [("A", 10)]
    assert told(anchors.history("n", repeats=True)) == [("A", 30), ("A", 20), ("A", 10)]


def test_seven_stores_each_lacking_one_anchor_end_equal(replica):
    stores = [replica() for _ in range(7)]
    for lacking, store in enumerate(stores):
        for number in range(7):
            if number != lacking:
                store.put(f"n{number}", ref(f"v{number}"), at_ns=at(number))
    for distance in range(1, 7):
        for number, source in enumerate(stores):
            sync(source, stores[(number + distance) % 7])
    assert all(everything(store) == everything(stores[0]) for store in stores)
    assert len(everything(stores[0])) == 7


def test_a1_stores_converge_whatever_the_order_of_syncs(replica):
    stores = [replica() for _ in range(3)]
    for store, (value, second) in zip(stores, (("A", 1), ("B", 2), ("A", 3)), strict=True):
        store.put("n", ref(value), at_ns=at(second))
    for source, target in permutations(stores, 2):
        sync(source, target)
    for store in stores:
        assert oldest_first(store, "n") == [("A", 1), ("B", 2), ("A", 3)]


def test_a1_repeat_put_before_the_value_between_arrives_is_not_lost(replica):
    here, there = replica(), replica()
    here.put("n", ref("A"), at_ns=at(1))
    here.put("n", ref("A"), at_ns=at(3))
    there.put("n", ref("B"), at_ns=at(2))
    sync(there, here)
    assert oldest_first(here, "n") == [("A", 1), ("B", 2), ("A", 3)]


def test_a2_expire_keeps_the_entry_in_force_at_the_limit(anchors):
    anchors.put("n", ref("A"), at_ns=at(0))
    anchors.put("n", ref("B"), at_ns=at(10))
    anchors.expire(at(5), at_least=1)
    assert [value_at(anchors, "n", second) for second in (5, 6, 10)] == ["A", "A", "B"]


def test_a2_expire_with_none_to_keep_never_empties_a_name(anchors):
    anchors.put("n", ref("A"), at_ns=at(0))
    anchors.expire(at(500), at_least=0)
    assert value_at(anchors, "n", 500) == "A"


def test_a3_a5_stale_compare_and_set_is_refused_and_changes_nothing(anchors):
    seen = anchors.put("n", ref("A"))
    anchors.put("n", ref("B"), expect_rev=seen.revision)
    with pytest.raises(Conflict, match="get it again and repeat the change") as caught:
        anchors.put("n", ref("C"), expect_rev=seen.revision)
    assert caught.value.expected == seen.revision
    assert caught.value.actual == anchors.get("n").revision
    assert anchors.get("n").ref == ref("B")


def test_a5_change_of_another_name_is_no_conflict(anchors):
    seen = anchors.put("n", ref("A"))
    anchors.put("m", ref("B"))
    anchors.put("n", ref("C"), expect_rev=seen.revision)


def test_a4_puts_of_one_time_stand_in_the_order_they_were_made(anchors):
    for value in ("A", "C", "B"):
        anchors.put("n", ref(value), at_ns=at(5))
    assert anchors.get("n", at_ns=at(5)).ref == ref("B")
    assert oldest_first(anchors, "n") == [("A", 5), ("C", 5), ("B", 5)]


def test_a4_facts_of_one_time_from_two_stores_have_one_order(replica):
    here, there = replica(), replica()
    here.put("n", ref("A"), at_ns=at(5))
    there.put("n", ref("B"), at_ns=at(5))
    sync(here, there)
    sync(there, here)
    assert everything(here) == everything(there)
    assert here.get("n").ref == there.get("n").ref
    assert len(here.history("n")) == 2


def test_a4_put_after_a_sync_counts_over_what_came_of_that_time(replica):
    here, there = replica(), replica()
    for value in "ABCDEFGH":
        here.put("n", ref(value), at_ns=at(5))
        sync(here, there)
        there.put("n", ref(value.lower()), at_ns=at(5))
        sync(there, here)
        assert here.get("n").ref == there.get("n").ref == ref(value.lower())


def test_a5_delete_leaves_the_past_and_the_name_can_be_put_again(anchors):
    anchors.put("n", ref("A"), at_ns=at(10))
    anchors.delete("n", at_ns=at(20), author="ann", reason="obsolete")
    with pytest.raises(NotFound, match="was deleted at 1970-01-01 00:00:20 UTC"):
        anchors.get("n")
    assert value_at(anchors, "n", 19) == "A"
    assert list(anchors.walk()) == []
    anchors.put("n", ref("B"), at_ns=at(30))
    assert oldest_first(anchors, "n") == [("A", 10), (None, 20), ("B", 30)]
    assert anchors.history("n")[1].reason == "obsolete"


def test_a6_time_too_far_ahead_is_refused_and_one_within_tolerance_is_not(anchors):
    anchors.put("n", ref("A"), at_ns=NOW + 10 * SECOND)
    with pytest.raises(InvalidArgument, match="too far ahead"):
        anchors.put("n", ref("B"), at_ns=NOW + 10 * SECOND + 1)
    with pytest.raises(InvalidArgument, match="too far ahead"):
        anchors.delete("n", at_ns=NOW + 10 * SECOND + 1)
    assert anchors.get("n").ref == ref("A")


def test_a6_merged_facts_too_far_ahead_wait_until_their_time_is_near(replica, clock):
    fast, here = replica(tolerance_ns=at(1000)), replica()
    fast.put("n", ref("A"), at_ns=NOW)
    fast.put("n", ref("B"), at_ns=NOW + at(500))
    done = here.merge(fast.export("n"))
    assert (done.added, done.held_back) == (1, 1)
    assert here.get("n").ref == ref("A")
    clock.now_ns += at(490)
    assert here.merge(fast.export("n")).added == 1
    assert everything(here) == everything(fast)


def test_a6_put_without_a_time_counts_although_another_hosts_clock_is_ahead(replica):
    ahead, here = replica(), replica()
    ahead.put("n", ref("A"), at_ns=NOW + 9 * SECOND)
    sync(ahead, here)
    here.put("n", ref("B"))
    assert here.get("n").ref == ref("B")
    here.delete("n")
    sync(here, ahead)
    with pytest.raises(NotFound, match="was deleted"):
        ahead.get("n")
