"""What one operation reads and writes in LMDB does not depend on how many snapshots there are.

Counts calls instead of measuring time; bench/metastore_scaling.py measures.
"""

from collections import Counter

import pytest

from snapfs.model import Kind, Usage
from snapfs.store import ReadTx, WriteTx

COUNTED = [(ReadTx, "_get"), (ReadTx, "_fetch"), (WriteTx, "_put"), (WriteTx, "_remove")]


@pytest.fixture
def calls(monkeypatch):
    """Count every read and write that goes to LMDB, and the items that ranges bring."""
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


def cost(calls, metastore, number):
    """Return the calls that each operation makes on a chain two deep."""
    operations = {
        "create": lambda: metastore.create(Kind.ACTIVE, f"probe{number}", "base1"),
        "info": lambda: metastore.info(f"probe{number}"),
        "get": lambda: metastore.get(f"probe{number}"),
        "update": lambda: metastore.update(f"probe{number}", {"k": "v"}),
        "commit": lambda: metastore.commit(f"probe{number}", f"done{number}", Usage(1, 1)),
        "usage": lambda: metastore.usage(f"done{number}"),
        "remove": lambda: metastore.remove(f"done{number}"),
    }
    costs = {}
    for name, operation in operations.items():
        calls.clear()
        operation()
        costs[name] = dict(calls)
    return costs


def test_calls_to_lmdb_are_the_same_with_ten_and_with_a_thousand_snapshots(calls, metastore):
    for number in range(2):
        metastore.create(Kind.ACTIVE, "key", f"base{number - 1}" if number else "")
        metastore.commit("key", f"base{number}", Usage())
    for number in range(10):
        metastore.create(Kind.VIEW, f"a{number}", "base1")
    few = cost(calls, metastore, 1)
    for number in range(1000):
        metastore.create(Kind.VIEW, f"b{number}", "base1")
    assert cost(calls, metastore, 2) == few
    assert max(sum(calls.values()) for calls in few.values()) < 80


def test_having_children_is_one_look_at_the_edges_however_many_there_are(calls, metastore):
    metastore.create(Kind.ACTIVE, "key")
    metastore.commit("key", "base", Usage())
    for number in range(200):
        metastore.create(Kind.VIEW, f"v{number}", "base")
    calls.clear()
    with pytest.raises(Exception, match="has children"):
        metastore.remove("base")
    assert calls["_fetch"] == 1
