"""Each operation: what it takes, refuses, keeps alive and leaves."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from snapfs.anchors import (
    TARGET_EDGE,
    Anchors,
    Fact,
    History,
    Ref,
    Statement,
    parse_ref,
    reading,
    writing,
)
from snapfs.anchors import anchors as batches
from snapfs.anchors.schema import FACTS, SCOPE
from snapfs.model import (
    Conflict,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
)
from snapfs.store import Store
from tests.anchors.kit import (
    NOW,
    TABLES,
    THINGS,
    Thing,
    at,
    everything,
    oldest_first,
    ref,
    sync,
    told,
)


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "other", TABLES, clock_ns=lambda: NOW) as store:
        yield store
        assert store.check() == []
        assert Anchors(store).check() == []


def thing(store, name):
    return store.update(lambda tx: tx.create(THINGS, "", name, Thing())).oid


def is_kept_alive(store, oid):
    with store.view() as tx:
        return tx.has_referrers(oid, TARGET_EDGE)


def test_entry_says_who_why_since_when_and_in_which_revision(store):
    put = Anchors(store).put("n", parse_ref("snapshot:base"), author="ann", reason="first")
    assert (put.ref, put.author, put.reason) == (Ref("snapshot", "base"), "ann", "first")
    assert (put.at_ns, put.revision) == (NOW, store.revision)
    assert Anchors(store).get("n") == put


def test_entries_are_there_after_the_store_was_closed(tmp_path):
    path = tmp_path / "metadata"
    with Store.open(path, TABLES) as store:
        put = Anchors(store).put("n", ref("A"))
    with Store.open(path, TABLES) as store:
        assert Anchors(store).get("n") == put


def test_puts_of_one_moment_follow_each_other(anchors):
    for value in "ABA":
        anchors.put("n", ref(value))
    assert [value for value, _ in oldest_first(anchors, "n")] == ["A", "B", "A"]
    assert [each.at_ns for each in anchors.history("n")] == [NOW + 2, NOW + 1, NOW]


def test_same_put_again_changes_nothing(store):
    anchors = Anchors(store)
    first = anchors.put("n", ref("A"), at_ns=at(5), author="ann")
    revision = store.revision
    assert anchors.put("n", ref("A"), at_ns=at(5), author="bob") == first
    assert store.revision == revision


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("", Ref("t", "v")),
        ("n\udc80", Ref("t", "v")),
        ("n", Ref("", "v")),
        ("n", Ref("T", "v")),
        ("n", Ref("t:", "v")),
        ("n", Ref("t" * 65, "v")),
        ("n", Ref("t", "")),
        ("n", Ref("t", "v" * 4097)),
        ("n", Ref("t", "\udc80")),
    ],
)
def test_bad_names_and_references_are_refused(anchors, name, reference):
    with pytest.raises(InvalidArgument):
        anchors.put(name, reference)
    assert everything(anchors) == {}


@pytest.mark.parametrize(
    "words",
    [{"author": "a" * 257}, {"reason": "r" * 4097}, {"reason": "\udc80"}, {"at_ns": -1}],
)
def test_bad_words_and_times_are_refused(anchors, words):
    with pytest.raises(InvalidArgument):
        anchors.put("n", ref("A"), **words)


def test_reference_without_a_type_is_refused_with_an_example():
    with pytest.raises(InvalidArgument, match="write TYPE:VALUE, as in snapshot:base"):
        parse_ref("base")
    assert str(parse_ref("digest:sha256:00")) == "digest:sha256:00"


def test_names_longer_than_a_key_of_the_store_are_told_apart(anchors):
    for last in "ab":
        anchors.put("l" * 5000 + last, ref(last))
    assert [each.ref.value for each in anchors.walk("l" * 5000)] in (["a", "b"], ["b", "a"])


def test_compare_and_set_with_zero_wants_the_name_unused_or_deleted(anchors):
    anchors.put("n", ref("A"), expect_rev=0)
    with pytest.raises(Conflict):
        anchors.put("n", ref("B"), expect_rev=0)
    anchors.delete("n")
    anchors.put("n", ref("B"), expect_rev=0)


def test_one_of_many_compare_and_sets_at_once_succeeds(store):
    anchors = Anchors(store)
    seen = anchors.put("n", ref("old"))

    def attempt(number):
        try:
            return anchors.put("n", ref(str(number)), expect_rev=seen.revision)
        except Conflict:
            return None

    with ThreadPoolExecutor(8) as pool:
        (won,) = [put for put in pool.map(attempt, range(32)) if put]
    assert anchors.get("n") == won
    assert len(anchors.history("n")) == 2


def test_delete_with_a_stale_revision_is_refused_as_a_conflict(anchors):
    seen = anchors.put("n", ref("A"))
    anchors.delete("n", expect_rev=seen.revision)
    with pytest.raises(Conflict):
        anchors.delete("n", expect_rev=seen.revision)


def test_compare_and_set_notices_what_a_merge_brought(replica):
    here, there = replica(), replica()
    seen = here.put("n", ref("A"), at_ns=at(5))
    there.put("n", ref("B"), at_ns=at(6))
    sync(there, here)
    with pytest.raises(Conflict):
        here.put("n", ref("C"), expect_rev=seen.revision)


def test_delete_of_what_stands_for_nothing_is_refused(anchors):
    with pytest.raises(NotFound, match="does not exist"):
        anchors.delete("n")
    anchors.put("n", ref("A"), at_ns=at(10))
    with pytest.raises(NotFound, match="has no entry yet at 1970-01-01 00:00:05 UTC"):
        anchors.delete("n", at_ns=at(5))
    anchors.delete("n")
    with pytest.raises(NotFound, match="was deleted"):
        anchors.delete("n")


def test_walk_lists_by_prefix_in_order_as_it_was_at_a_time(anchors):
    for name, second in (("b/x", 10), ("b/y", 20), ("a", 10), ("c", 10)):
        anchors.put(name, ref(name), at_ns=at(second))
    anchors.delete("b/x", at_ns=at(30))
    assert [each.name for each in anchors.walk()] == ["a", "b/y", "c"]
    assert [each.name for each in anchors.walk("b/")] == ["b/y"]
    assert [each.name for each in anchors.walk("b/", deleted=True)] == ["b/x", "b/y"]
    assert [each.name for each in anchors.walk("b/", at_ns=at(15))] == ["b/x"]
    assert list(anchors.walk("b/", at_ns=at(5), deleted=True)) == []


@pytest.mark.parametrize("count", [99, 100, 101, 200, 201])
def test_walk_yields_each_name_once_however_many_batches_it_takes(store, count):
    names = [f"n{number:04}" for number in range(count)]
    store.update(lambda tx: [writing.put(tx, name, ref("A")) for name in names])
    anchors = Anchors(store)
    walked = []
    for each in anchors.walk():
        walked.append(each.name)
        if len(walked) == 1:
            anchors.put("a", ref("new"))  # no transaction is open while the caller works
    assert walked == names


def test_history_begins_at_a_time_and_ends_after_a_count(anchors):
    for value, second in (("A", 10), ("B", 20), ("C", 30)):
        anchors.put("n", ref(value), at_ns=at(second))
    assert told(anchors.history("n", count=2)) == [("C", 30), ("B", 20)]
    assert told(anchors.history("n", at_ns=at(25))) == [("B", 20), ("A", 10)]
    assert anchors.history("n", at_ns=at(5)) == []
    with pytest.raises(NotFound):
        anchors.history("none")


def test_expire_keeps_the_newest_entries_asked_for_repeats_not_counted(anchors):
    for value, second in (("A", 1), ("B", 2), ("C", 3), ("C", 4), ("D", 5)):
        anchors.put("n", ref(value), at_ns=at(second))
    done = anchors.expire(at(100), at_least=3)
    assert (done.anchors, done.entries) == (1, 1)
    assert oldest_first(anchors, "n") == [("B", 2), ("C", 3), ("D", 5)]
    assert anchors.expire(at(100), at_least=3).entries == 0
    assert anchors.expire(at(100), at_least=9).entries == 0
    assert anchors.expire(at(100), at_least=0).entries == 3
    assert oldest_first(anchors, "n") == [("D", 5)]


def test_expire_keeps_no_more_than_the_limit_and_the_count_ask_for(anchors):
    for second in range(1, 8):
        anchors.put("n", ref(str(second)), at_ns=at(second))
    anchors.expire(at(5), at_least=2)
    assert [value for value, _ in oldest_first(anchors, "n")] == ["5", "6", "7"]


def test_expire_keeps_to_its_prefix_and_refuses_a_negative_count(anchors):
    for name in ("a", "b"):
        anchors.put(name, ref("A"), at_ns=at(1))
        anchors.put(name, ref("B"), at_ns=at(2))
    assert anchors.expire(at(3), prefix="b").anchors == 1
    assert len(anchors.history("a")) == 2
    with pytest.raises(InvalidArgument, match="cannot keep -1 entries"):
        anchors.expire(at(3), at_least=-1)


def test_nothing_can_be_put_where_the_history_has_expired(anchors):
    for value, second in (("A", 1), ("B", 5)):
        anchors.put("n", ref(value), at_ns=at(second))
    anchors.expire(at(6))
    with pytest.raises(FailedPrecondition, match="history at 1970-01-01 00:00:03 UTC has expired"):
        anchors.put("n", ref("C"), at_ns=at(3))
    with pytest.raises(NotFound, match="has no entry, or one expired, at"):
        anchors.get("n", at_ns=at(3))
    anchors.put("n", ref("D"), at_ns=at(5.5))
    assert oldest_first(anchors, "n") == [("B", 5), ("D", 5.5)]


def test_sync_with_a_store_that_did_not_expire_brings_nothing_back(replica):
    here, there = replica(), replica()
    for value, second in (("A", 1), ("B", 5), ("C", 9)):
        here.put("n", ref(value), at_ns=at(second))
    sync(here, there)
    here.expire(at(6))
    sync(there, here)
    assert oldest_first(here, "n") == [("B", 5), ("C", 9)]
    sync(here, there)
    assert everything(there) == everything(here)


def test_merge_of_what_has_expired_here_writes_nothing(replica, store):
    there, here = replica(), Anchors(store)
    for value, second in (("A", 1), ("B", 5)):
        there.put("n", ref(value), at_ns=at(second))
    here.merge(there.export("n"))
    here.expire(at(6))
    revision = store.revision
    assert here.merge(there.export("n")).added == 0
    assert store.revision == revision


def test_deleted_name_stays_deleted_when_a_store_that_missed_it_syncs(replica):
    here, there = replica(), replica()
    here.put("n", ref("A"), at_ns=at(1))
    sync(here, there)
    here.delete("n", at_ns=at(5))
    here.expire(at(100), at_least=0)
    sync(there, here)
    assert list(here.walk()) == []
    sync(here, there)
    assert list(there.walk()) == []


def test_merge_again_writes_nothing(replica, store):
    there, here = replica(), Anchors(store)
    for value, second in (("A", 1), ("B", 5)):
        there.put("n", ref(value), at_ns=at(second))
    there.expire(at(3))
    there.put("n", ref("C"), at_ns=at(7))
    assert here.merge(there.export("n")).added == 3
    revision = store.revision
    assert here.merge(there.export("n")).added == 0
    assert store.revision == revision


def test_history_survives_any_encoding_on_its_way(replica):
    there, here = replica(), replica()
    there.put("n", ref("A"), at_ns=at(1), author="ann", reason="why")
    there.put("n", ref("B"), at_ns=at(2))
    there.expire(at(2))
    wire = msgspec.msgpack.encode(there.export("n"))
    here.merge(msgspec.msgpack.decode(wire, type=History))
    assert everything(here) == everything(there)


GOOD = Fact(at(1), 0, Ref("t", "v"))


@pytest.mark.parametrize(
    "history",
    [
        History("", (GOOD,)),
        History("n", (GOOD, Fact(-1, 0, None))),
        History("n", (GOOD, Fact(1 << 64, 0, None))),
        History("n", (GOOD, Fact(1, -1, None))),
        History("n", (GOOD, Fact(1, 1 << 32, None))),
        History("n", (GOOD, Fact(1, 0, Ref("t", "\udc80")))),
        History("n", (GOOD, Fact(1, 0, Ref("No Type", "v")))),
        History("n", (GOOD, Fact(1, 0, None, reason="r" * 5000))),
        History("n", (GOOD,), Fact(at(2), 0, None).key),
        History("n", (), GOOD.key),
    ],
)
def test_what_no_store_exports_is_refused_and_leaves_nothing(anchors, history):
    with pytest.raises(InvalidArgument):
        anchors.merge(history)
    assert everything(anchors) == {}


def test_merge_cut_short_is_finished_by_the_next(replica, monkeypatch):
    there, here = replica(), replica()
    for second in range(20):
        there.put("n", ref(str(second)), at_ns=at(second))
    there.expire(at(5))
    here.put("n", ref("old"), at_ns=at(1))
    monkeypatch.setattr(batches, "CHANGE_BATCH", 4)
    whole, update, calls = there.export("n"), Anchors._update, []

    def failing(self, change):
        calls.append(change)
        if len(calls) == 3:
            raise Internal("cut")
        return update(self, change)

    monkeypatch.setattr(Anchors, "_update", failing)
    with pytest.raises(Internal):
        here.merge(whole)
    assert here.check() == []
    here.merge(whole)
    assert everything(here) == everything(there)


def test_sweep_cut_short_is_not_seen_and_finished_by_the_next_expiry(anchors, monkeypatch):
    for second in range(20):
        anchors.put("n", ref(str(second)), at_ns=at(second))
    with monkeypatch.context() as patch:
        patch.setattr(Anchors, "_sweep", lambda *_: 0)
        anchors.expire(at(15))
    assert oldest_first(anchors, "n")[0] == ("15", 15)
    with pytest.raises(NotFound):
        anchors.get("n", at_ns=at(14))
    assert len(anchors.export("n").facts) == 5
    assert anchors.check() == []
    assert anchors.expire(at(15)).entries == 15


def test_entries_keep_what_they_name_alive_until_they_expire(store):
    anchors = Anchors(store)
    one, two = thing(store, "one"), thing(store, "two")
    anchors.put("n", ref("one"), at_ns=at(1), target=one)
    anchors.put("n", ref("two"), at_ns=at(2), target=two)
    assert is_kept_alive(store, one)
    anchors.expire(at(3))
    assert not is_kept_alive(store, one)
    assert is_kept_alive(store, two)
    anchors.delete("n")
    assert is_kept_alive(store, two), "the past names it still"


def test_removal_that_somebody_asks_for_is_not_held_up_by_an_entry(store):
    anchors = Anchors(store)
    anchors.put("n", ref("one"), target=thing(store, "one"))
    store.update(lambda tx: tx.delete(tx.get(THINGS, "", "one")))
    assert anchors.get("n").ref == ref("one")


def test_merged_entries_keep_alive_what_they_mean_here_now_or_once_it_comes(replica, store):
    there, here = replica(), Anchors(store)
    one = thing(store, "one")
    for value, second in (("one", 1), ("two", 2)):
        there.put("n", ref(value), at_ns=at(second), target=0)

    def resolve(tx, reference):
        row = tx.get(THINGS, "", reference.value)
        return row.oid if row else 0

    here.merge(there.export("n"), resolve=resolve)
    assert is_kept_alive(store, one)
    two = thing(store, "two")
    assert here.bind(ref("two"), two) == 1
    assert here.bind(ref("two"), two) == 0
    assert is_kept_alive(store, two)
    with store.view() as tx:
        assert [name for name, _ in reading.naming(tx, ref("two"))] == ["n"]
    assert everything(here) == everything(there), "what a fact means here is not part of it"


def test_other_rooms_write_entries_in_their_own_transaction(store):
    def change(tx):
        row = tx.create(THINGS, "", "tip", Thing())
        return writing.put(tx, "branch", ref("tip"), Statement(reason="commit", target=row.oid))

    entry = store.update(change)
    assert entry.revision == store.revision
    with pytest.raises(NotFound, match="intent 99"):
        store.update(lambda tx: (writing.put(tx, "branch", ref("x")), tx.clear_intent(99)))
    assert Anchors(store).get("branch") == entry


def test_check_finds_a_fact_filed_wrongly_and_a_lost_beginning(tmp_path: Path):
    with Store.open(tmp_path / "metadata", TABLES) as store:
        anchors = Anchors(store)
        anchors.put("n", ref("A"), at_ns=at(1))
        anchors.put("n", ref("B"), at_ns=at(2))
        anchors.expire(at(2))
        anchors.put("m", ref("C"))
        assert anchors.check() == []
        with store.view() as tx:
            first, second = tx.rows(FACTS, SCOPE)
        store.update(lambda tx: tx.delete(first))
        store.update(lambda tx: tx.update(second, second.body, name="elsewhere"))
        assert sorted(anchors.check()) == [
            "anchor 'm' has no fact",
            "anchor 'n' has no fact",
            "anchor 'n' lacks its oldest fact, of 1970-01-01 00:00:02 UTC",
            f"anchor fact {second.oid} is not filed under what it says",
        ]
