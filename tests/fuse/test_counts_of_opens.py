"""The table of opens and its journal against a plain model, through any number of crashes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from snapfs.fuse.backing import BackingIds, Entry, Kind

IDLE_KEPT = 3
RESENT = 1 << 63

nodes = st.integers(1, 8).map(lambda it: it | it % 2 << 63)


class Opens(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.fd = os.memfd_create("journal")
        self.ids = BackingIds(-1, self.fd, idle_kept=IDLE_KEPT).opened
        self.model: dict[int, list[int]] = {}
        """Node to opens and writers."""
        self.idle: list[int] = []
        self.unique = 0
        self.undo: tuple[int, bool] | None = None
        """The last request, for when it comes again."""

    @rule(node=nodes, writing=st.booleans())
    def enter(self, node: int, writing: bool) -> None:
        if node not in self.model:
            self.ids.add(node, Kind.UPPER, node % 100 + 1, 7, node % 100)
            self.model[node] = [0, 0]
        self.unique += 2
        assert self.ids.enter(node, writing, 1, self.unique)
        self.model[node][0] += 1
        self.model[node][1] += writing
        if node in self.idle:
            self.idle.remove(node)

    @rule(node=nodes, writing=st.booleans(), kept=st.booleans())
    def leave(self, node: int, writing: bool, kept: bool) -> None:
        counts = self.model.get(node, [0, 0])
        if not counts[0] or (writing and not counts[1]) or (not writing and counts[0] == counts[1]):
            return
        self.unique += 2
        assert self.ids.leave(node, writing, self.unique)
        counts[0] -= 1
        counts[1] -= writing
        if counts[0]:
            return
        if not kept:
            assert self.ids.remove(node) == node % 100 + 1
            del self.model[node]
            return
        self.idle.append(node)
        going = self.ids.keep(node)
        assert going == (self.idle[0] if len(self.idle) > IDLE_KEPT else None)
        if going is not None:
            self.ids.remove(going)
            del self.model[going]
            self.idle.remove(going)

    @rule(again=st.booleans())
    def crash(self, again: bool) -> None:
        self.ids = BackingIds(-1, self.fd, idle_kept=IDLE_KEPT).opened
        self.idle = [it[0] for it in self.ids.all(0, 0, False) if not it[5]]
        open_nodes = [node for node, counts in self.model.items() if counts[0]]
        if again and open_nodes and self.unique:
            assert not self.ids.enter(open_nodes[0], False, 1, RESENT | self.unique)
        for node in list(self.idle):  # their order is the next worker's own
            self.ids.remove(node)
            del self.model[node]
        self.idle.clear()

    @invariant()
    def counts_are_the_models(self) -> None:
        found = {it[0]: [it[5], it[6]] for it in self.ids.all(0, 0, False)}
        assert found == self.model
        assert self.ids.total == sum(opens for opens, _ in self.model.values())
        assert len(self.ids) == len(self.model)

    def teardown(self) -> None:
        os.close(self.fd)


TestOpens = Opens.TestCase
TestOpens.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.fixture
def journal() -> Iterator[int]:
    fd = os.memfd_create("journal")
    yield fd
    os.close(fd)


def test_processes_that_opened_for_writing_are_known_up_to_a_few(journal: int) -> None:
    ids = BackingIds(-1, journal)
    ids.opened.add(5, Kind.UPPER, 1, 7, 5)
    for pid in (10, 11, 10):
        ids.opened.enter(5, True, pid, 0)
    ids.opened.enter(5, False, 12, 0)
    assert ids.writers_of(5) == [10, 11]
    for pid in range(20, 25):
        ids.opened.enter(5, True, pid, 0)
    assert ids.writers_of(5) is None
    for _ in range(8):
        ids.opened.leave(5, True, 0)
    assert ids.writers_of(5) == []
    assert ids.writers_of(6) == []


def test_writers_of_an_earlier_worker_are_not_known(journal: int) -> None:
    ids = BackingIds(-1, journal)
    ids.opened.add(5, Kind.UPPER, 1, 7, 5)
    ids.opened.enter(5, True, 10, 0)
    again = BackingIds(-1, journal)
    assert again.writers_of(5) is None
    assert again.get(5) == Entry(5, Kind.UPPER, 1, 7, 5, 1, 1, inherited=True)


def test_a_request_that_comes_again_after_several_deaths_is_counted_once(journal: int) -> None:
    ids = BackingIds(-1, journal).opened
    ids.add(5, Kind.UPPER, 1, 7, 5)
    for unique in (2, 4):
        assert ids.enter(5, True, 10, unique)
    assert ids.leave(5, True, 10)  # was not answered, as no request below was
    for other in (12, 14, 16):
        ids = BackingIds(-1, journal).opened
        assert ids.enter(5, False, 11, RESENT | other)
    ids = BackingIds(-1, journal).opened
    for unique in (10, 12, 14, 16):
        assert not ids.leave(5, True, RESENT | unique)
    assert BackingIds(-1, journal).get(5) == Entry(5, Kind.UPPER, 1, 7, 5, 4, 1, inherited=True)


def test_table_refuses_what_makes_no_sense(journal: int) -> None:
    ids = BackingIds(-1, journal).opened
    ids.add(5, Kind.UPPER, 1, 7, 5)
    with pytest.raises(OSError, match="Invalid"):
        ids.add(5, Kind.UPPER, 1, 7, 5)
    with pytest.raises(OSError, match="Invalid"):
        ids.add(6, 9, 1, 7, 5)
    for call in (ids.keep, ids.remove, ids.offer):
        with pytest.raises(KeyError):
            call(7)
    assert not ids.leave(5, False, 0)
