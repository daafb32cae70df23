"""Of a snapshot there is one freeze under way, and it thaws nothing that another has frozen."""

from __future__ import annotations

from typing import cast

import pytest
import trio
import trio.testing

from snapfs.fuse import control
from snapfs.fuse.freezing import Freezing
from snapfs.fuse.lane import Complete, LaneForest
from snapfs.fuse.operations import OverlayOperations
from snapfs.model import SnapshotId

ID = SnapshotId(7)
SHORT_S, LONG_S = 1.0, 100.0


class Forest:
    """Stands for a lane's: a tree for which a thread copies, before changes are held or after."""

    notes_are_short = True

    def __init__(self, *, ahead: bool) -> None:
        self.frozen_ids: set[SnapshotId] = set()
        self.thread = trio.Event()
        """Set when it returns; nobody can make it."""
        self._ahead = ahead

    async def freeze(self, snapshot_id: SnapshotId) -> None:
        self.frozen_ids.add(snapshot_id)

    def thaw(self, snapshot_id: SnapshotId) -> int | None:
        was_frozen = snapshot_id in self.frozen_ids
        self.frozen_ids.discard(snapshot_id)
        return 1 if was_frozen else None

    async def settle_ahead(self, snapshot_id: SnapshotId, complete: Complete) -> None:
        await self._copied(self._ahead)

    async def settle(self, snapshot_id: SnapshotId, complete: Complete) -> None:
        await self._copied(not self._ahead)

    async def all_files(self, snapshot_id: SnapshotId) -> set[int]:
        return set()

    async def orphans(self, snapshot_id: SnapshotId, known: object) -> list[str]:
        return []

    async def _copied(self, is_now: bool) -> None:
        if is_now:
            with trio.fail_after(LONG_S, shield=True):
                await self.thread.wait()


class Operations:
    """Stands for those of a session in which nothing is open."""

    class copy_ups:  # noqa: N801
        completed = 0
        complete = complete_ahead = None

    def written_files(self) -> set[tuple[int, int]]:
        return set()

    def maybe_mapped(self, root: int) -> set[int]:
        return set()


@pytest.fixture(params=[True, False], ids=["before changes are held", "while they are"])
def forest(request: pytest.FixtureRequest) -> Forest:
    return Forest(ahead=request.param)


@pytest.fixture
def freezing(forest: Forest) -> Freezing:
    return Freezing(cast(LaneForest, forest), cast(OverlayOperations, Operations()), ())


def wish(number: int, timeout_s: float) -> control.Freeze:
    return control.Freeze(number, snapshot=ID, timeout_s=timeout_s, lasting=False)


async def test_freeze_that_was_given_up_does_not_end_the_next_one(
    forest: Forest, freezing: Freezing, autojump_clock: trio.testing.MockClock
) -> None:
    answers: list[control.Answer] = []

    async def freeze(number: int, timeout_s: float) -> None:
        answers.append(await freezing.freeze(wish(number, timeout_s)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(freeze, 1, SHORT_S)
        await trio.sleep(SHORT_S / 2)
        nursery.start_soon(freeze, 2, LONG_S)
        await trio.sleep(SHORT_S)
        forest.thread.set()
    assert [(it.id, it.late, it.error is None) for it in answers] == [
        (1, True, False),
        (2, False, True),
    ]
    assert ID in forest.frozen_ids
    assert freezing.thaw(ID) == 1


async def test_changes_are_held_until_the_thread_of_a_freeze_that_is_undone_returns(
    forest: Forest, freezing: Freezing, autojump_clock: trio.testing.MockClock
) -> None:
    answers: list[control.Answer] = []

    async def freeze() -> None:
        answers.append(await freezing.freeze(wish(1, LONG_S)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(freeze)
        await trio.sleep(SHORT_S)
        held = set(forest.frozen_ids)
        assert freezing.thaw(ID) is None
        assert forest.frozen_ids == held
        forest.thread.set()
    assert forest.frozen_ids == set()
    assert [it.late for it in answers] == [True]
    assert trio.current_time() < LONG_S


async def test_freeze_that_waits_for_another_is_given_up_too(
    forest: Forest, freezing: Freezing, autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(freezing.freeze, wish(1, LONG_S))
        await trio.sleep(SHORT_S)
        assert (await freezing.freeze(wish(2, SHORT_S))).late
        forest.thread.set()
    assert ID in forest.frozen_ids
    assert freezing.thaw(ID) == 1
