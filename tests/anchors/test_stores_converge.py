"""Random puts, deletions, expiries and syncs on three stores end in equal stores.

Each store is held against a dictionary of histories and the pure rules all the way.
"""

import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from snapfs.anchors import Anchors, Fact, History, rules
from snapfs.anchors.facts import in_order
from snapfs.model import FailedPrecondition, NotFound, SnapfsError
from snapfs.store import Store
from tests.anchors.kit import TABLES, Clock, everything, ref

REPLICAS = 3
END = 20
STORES = st.integers(0, REPLICAS - 1)
NAMES = st.sampled_from(["a", "b" * 500])
VALUES = st.sampled_from(["x", "y"])
TIMES = st.one_of(st.none(), st.integers(0, END))


class Model:
    """One store as plain histories, with the rules applied to all of a history each time."""

    def __init__(self):
        self.histories: dict[str, History] = {}

    def state(self, name, reference, at_ns, now_ns):
        held = self.histories.get(name, History(name, ()))
        if at_ns is None:
            at_ns = max([now_ns, *(fact.at_ns + 1 for fact in held.facts)])
        before = [fact for fact in held.facts if fact.at_ns <= at_ns]
        if reference is None and (not before or before[-1].ref is None):
            raise NotFound
        same = [fact for fact in before if fact.at_ns == at_ns]
        if same and same[-1].ref == reference:
            return
        fact = Fact(at_ns, same[-1].seq + 1 if same else 0, reference)
        if not rules.survives(fact.key, held.horizon):
            raise FailedPrecondition
        self.histories[name] = History(name, in_order((*held.facts, fact)), held.horizon)

    def expire(self, limit_ns, at_least):
        for name, held in self.histories.items():
            oldest = rules.cut(reversed(held.facts), limit_ns, at_least)
            if oldest is not None and oldest != held.facts[0]:
                kept = held.facts[held.facts.index(oldest) :]
                self.histories[name] = History(name, kept, oldest.key)

    def merge(self, other):
        for name, theirs in other.histories.items():
            mine = self.histories.get(name)
            self.histories[name] = rules.join(mine, theirs) if mine else theirs


def refusal(operation):
    try:
        operation()
    except SnapfsError as error:
        return type(error)
    return None


class ReplicasMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.path = Path(tempfile.mkdtemp(prefix="snapfs-anchors-"))
        self.clock = Clock(END)
        self.stack = ExitStack()
        self.stores = [self.opened(number) for number in range(REPLICAS)]
        self.models = [Model() for _ in range(REPLICAS)]

    def opened(self, number):
        path = self.path / str(number)
        store = self.stack.enter_context(Store.open(path, TABLES, clock_ns=self.clock))
        return store, Anchors(store)

    @rule(number=STORES, name=NAMES, value=VALUES, at_ns=TIMES)
    def put(self, number, name, value, at_ns):
        model, (_, anchors) = self.models[number], self.stores[number]
        expected = refusal(lambda: model.state(name, ref(value), at_ns, self.clock()))
        assert refusal(lambda: anchors.put(name, ref(value), at_ns=at_ns)) is expected

    @rule(number=STORES, name=NAMES, at_ns=TIMES)
    def delete(self, number, name, at_ns):
        model, (_, anchors) = self.models[number], self.stores[number]
        expected = refusal(lambda: model.state(name, None, at_ns, self.clock()))
        assert refusal(lambda: anchors.delete(name, at_ns=at_ns)) is expected

    @rule(number=STORES, limit_ns=st.integers(0, END + 5), at_least=st.integers(0, 3))
    def expire(self, number, limit_ns, at_least):
        _, anchors = self.stores[number]
        before = answers(anchors, limit_ns)
        self.models[number].expire(limit_ns, at_least)
        anchors.expire(limit_ns, at_least=at_least)
        assert answers(anchors, limit_ns) == before

    @rule(source=STORES, into=STORES)
    def sync(self, source, into):
        self.models[into].merge(self.models[source])
        for history in everything(self.stores[source][1]).values():
            self.stores[into][1].merge(history)

    @rule(by_ns=st.integers(0, 3))
    def time_passes(self, by_ns):
        self.clock.now_ns += by_ns

    @invariant()
    def every_store_is_as_its_model_and_get_as_a_plain_reading_of_it(self):
        for (_, anchors), model in zip(self.stores, self.models, strict=True):
            assert everything(anchors) == model.histories
            assert answers(anchors, 0) == {
                (name, at_ns): plain(held, at_ns)
                for name, held in model.histories.items()
                for at_ns in range(END + 10)
            }

    def teardown(self):
        try:
            for source in range(REPLICAS):
                for target in range(REPLICAS):
                    self.sync(source, target)
            held = [everything(anchors) for _, anchors in self.stores]
            assert held == [held[0]] * REPLICAS
            for store, anchors in self.stores:
                assert store.check() == []
                assert anchors.check() == []
        finally:
            self.stack.close()
            shutil.rmtree(self.path)


def plain(held, at_ns):
    """Return the value and time in force, None where there is none."""
    said = None
    for fact in held.facts:
        if fact.at_ns <= at_ns:
            said = fact
    return (said.ref, said.at_ns) if said and said.ref else None


def answers(anchors, from_ns):
    """Return what get answers about each name and time from `from_ns` on."""
    found = {}
    for head in anchors.walk(deleted=True):
        for at_ns in range(from_ns, END + 10):
            try:
                put = anchors.get(head.name, at_ns=at_ns)
                found[head.name, at_ns] = (put.ref, put.at_ns)
            except NotFound:
                found[head.name, at_ns] = None
    return found


TestReplicas = ReplicasMachine.TestCase
TestReplicas.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
