"""What an operation reads and writes in LMDB depends on neither history nor number of names."""

from collections import Counter

import pytest

from snapfs.anchors import writing
from snapfs.store import ReadTx, WriteTx
from tests.anchors.kit import at, ref

COUNTED = [(ReadTx, "_get"), (ReadTx, "_fetch"), (WriteTx, "_put"), (WriteTx, "_remove")]


@pytest.fixture
def calls(monkeypatch):
    """Count every read and write that goes to LMDB."""
    counter = Counter()

    def count(owner, name):
        original = getattr(owner, name)

        def counting(self, *arguments, **named):
            counter[name] += 1
            return original(self, *arguments, **named)

        monkeypatch.setattr(owner, name, counting)

    for owner, name in COUNTED:
        count(owner, name)
    return counter


def cost(calls, anchors, second):
    """Return the calls that each operation makes on a name with a history."""
    operations = {
        "put": lambda: anchors.put("n", ref("new"), at_ns=at(second)),
        "put now": lambda: anchors.put("n", ref(f"now{second}")),
        "put in the past": lambda: anchors.put("n", ref("past"), at_ns=at(2.5)),
        "get": lambda: anchors.get("n"),
        "get in the past": lambda: anchors.get("n", at_ns=at(2.7)),
        "history": lambda: anchors.history("n", count=1),
        "delete": lambda: anchors.delete("n"),
    }
    costs = {}
    for name, operation in operations.items():
        calls.clear()
        operation()
        costs[name] = dict(calls)
    return costs


def test_calls_to_lmdb_are_the_same_with_ten_and_with_two_thousand_entries(replica, calls):
    few, many = replica(), replica()
    for anchors, count in ((few, 10), (many, 2000)):
        anchors._store.update(lambda tx, count=count: fill(tx, "n", count))
    many._store.update(lambda tx: [writing.put(tx, f"o{n}", ref("A")) for n in range(1000)])
    expected = cost(calls, few, 900)
    assert cost(calls, many, 900) == expected
    assert max(sum(each.values()) for each in expected.values()) < 60


def test_merge_of_one_new_fact_costs_the_same_on_a_long_history(replica, calls):
    one, few, many = replica(), replica(), replica()
    one.put("n", ref("new"), at_ns=at(900))
    costs = []
    for anchors, count in ((few, 10), (many, 2000)):
        anchors._store.update(lambda tx, count=count: fill(tx, "n", count))
        calls.clear()
        anchors.merge(one.export("n"))
        costs.append(dict(calls))
    assert costs[0] == costs[1]


def fill(tx, name, count):
    for number in range(count):
        statement = writing.Statement(at_ns=at(number / 10))
        writing.put(tx, name, ref(str(number)), statement)
