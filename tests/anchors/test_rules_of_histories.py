"""The pure rules against plain restatements of them, on random histories."""

from hypothesis import given
from hypothesis import strategies as st

from snapfs.anchors import rules
from snapfs.anchors.facts import Fact, History, Ref, in_order

TIMES = st.integers(0, 12)
FACTS = st.builds(
    Fact,
    at_ns=TIMES,
    seq=st.integers(0, 2),
    ref=st.sampled_from([None, Ref("t", "a"), Ref("t", "b")]),
    author=st.sampled_from(["", "ann"]),
)
LISTS = st.lists(FACTS, max_size=10).map(in_order)


@st.composite
def histories(draw):
    """A history as a store can hold it: what is before its horizon is gone."""
    facts = draw(LISTS)
    if not facts or draw(st.booleans()):
        return History("n", facts)
    first = draw(st.integers(0, len(facts) - 1))
    return History("n", facts[first:], facts[first].key)


def answer(facts, at_ns):
    """Return what a plain reading of the facts, in order, answers about a time."""
    said = None
    for fact in facts:
        if fact.at_ns <= at_ns:
            said = fact
    return said


@given(LISTS, TIMES)
def test_in_force_is_the_last_fact_not_after_the_time(facts, at_ns):
    assert rules.in_force(reversed(facts), at_ns) == answer(facts, at_ns)


@given(LISTS)
def test_compressing_leaves_out_exactly_what_repeats(facts):
    changes = [
        fact
        for before, fact in zip((None, *facts), facts, strict=False)
        if before is None or before.ref != fact.ref
    ]
    assert list(rules.compress(reversed(facts))) == changes[::-1]


@given(LISTS, TIMES, st.integers(0, 4))
def test_cut_changes_no_answer_from_the_limit_on_and_keeps_the_newest(facts, limit, at_least):
    oldest = rules.cut(reversed(facts), limit, at_least)
    kept = facts if oldest is None else facts[facts.index(oldest) :]
    for at_ns in range(limit, 14):
        assert answer(kept, at_ns) == answer(facts, at_ns)
    entries = list(rules.compress(reversed(facts)))
    remaining = list(rules.compress(reversed(kept)))
    assert len(remaining) >= min(at_least, len(entries))
    assert [each.ref for each in remaining] == [each.ref for each in entries[: len(remaining)]]


@given(LISTS, TIMES)
def test_cut_takes_away_all_that_no_answer_needs(facts, limit):
    oldest = rules.cut(reversed(facts), limit, 1)
    assert oldest == answer(facts, limit)


@given(histories(), histories(), histories())
def test_joining_is_associative_commutative_and_idempotent(one, two, three):
    join = rules.join
    assert join(one, join(two, three)) == join(join(one, two), three)
    assert join(one, two) == join(two, one)
    assert join(one, one) == one
    assert join(join(one, two), two) == join(one, two)


@given(histories(), histories())
def test_join_has_the_fact_at_its_horizon_and_none_before(one, two):
    joined = rules.join(one, two)
    if joined.horizon is not None:
        assert joined.facts[0].key == joined.horizon


@given(LISTS, LISTS, TIMES, st.integers(0, 3))
def test_expiry_and_union_answer_alike_from_the_limit_on(mine, theirs, limit, at_least):
    """Whether a store expires before or after it hears of more: the same answers from then on."""
    oldest = rules.cut(reversed(mine), limit, at_least)
    expired = History("n", mine[mine.index(oldest) :], oldest.key) if oldest else History("n", mine)
    joined = rules.join(expired, History("n", theirs))
    whole = in_order((*mine, *theirs))
    for at_ns in range(limit, 14):
        assert answer(joined.facts, at_ns) == answer(whole, at_ns)


@given(FACTS, FACTS)
def test_facts_have_one_key_exactly_when_they_say_the_same(one, other):
    assert (one.key == other.key) == (one == other)
