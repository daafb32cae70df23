"""The gate before changes, without any mount."""

from __future__ import annotations

import errno

import pytest
import trio
import trio.testing

from snapfs.fuse.gate import Gate


async def test_changes_pass_while_it_is_open() -> None:
    gate = Gate()
    await gate.enter()
    await gate.enter()
    assert gate.entered == 2
    gate.leave()
    gate.leave()
    assert gate.entered == 0


async def test_freeze_waits_for_those_inside_and_holds_the_next(
    autojump_clock: trio.testing.MockClock,
) -> None:
    gate = Gate()
    seen: list[str] = []

    async def freeze() -> None:
        await gate.freeze()
        seen.append("frozen")

    async def change() -> None:
        await gate.enter()
        seen.append("entered")
        gate.leave()

    await gate.enter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(freeze)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(change)
        await trio.testing.wait_all_tasks_blocked()
        assert seen == []
        gate.leave()
        await trio.testing.wait_all_tasks_blocked()
        assert seen == ["frozen"]
        gate.thaw()
    assert seen == ["frozen", "entered"]


async def test_freeze_of_a_frozen_gate_returns_and_one_thaw_opens() -> None:
    gate = Gate(frozen=True)
    await gate.freeze()
    assert gate.frozen
    gate.thaw()
    gate.thaw()
    await gate.enter()
    assert not gate.frozen


async def test_cancelled_freeze_leaves_the_gate_frozen_until_it_is_thawed() -> None:
    gate = Gate()
    await gate.enter()
    with trio.move_on_after(0):
        await gate.freeze()
    assert gate.frozen
    gate.thaw()
    gate.leave()
    await gate.freeze()


async def test_closed_gate_refuses_who_comes_and_who_waited() -> None:
    gate = Gate(frozen=True)
    refused: list[int | None] = []

    async def change() -> None:
        try:
            await gate.enter()
        except OSError as error:
            refused.append(error.errno)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change)
        await trio.testing.wait_all_tasks_blocked()
        gate.close()
    assert refused == [errno.EROFS]
    with pytest.raises(OSError, match="Read-only"):
        await gate.enter()


async def test_change_that_is_cancelled_while_it_waits_does_not_count() -> None:
    gate = Gate(frozen=True)
    with trio.move_on_after(0):
        await gate.enter()
    assert gate.entered == 0
