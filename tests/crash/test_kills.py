"""Workers and control processes are killed under programs that notice the least failure."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash import kills

pytestmark = [pytest.mark.fuse, pytest.mark.root]


@pytest.mark.timeout(600)
def test_no_call_fails_however_often_processes_are_killed(tmp_path: Path) -> None:
    """The short form of `make kill`."""
    names = ("names", "random", "unlinked", "mapping", "sqlite", "git", "walk", "locks", "user")
    outcome = kills.run(tmp_path, workers=16, controls=2, seed=5, names=names)
    assert not outcome.failures, "\n".join(outcome.failures)
    assert outcome.worker_kills.total() == 16
    assert outcome.control_kills == 2
    assert set(outcome.turns) == {
        *(f"{name}, {mode}" for name in names for mode in ("passthrough", "no-open")),
        "walk, readonly",
    }
    assert all(outcome.turns.values())


@pytest.mark.timeout(600)
def test_nor_where_workers_share_a_lane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNAPFS_LANES_WORKERS", "3")
    names = ("names", "mapping", "git", "locks")
    outcome = kills.run(tmp_path, workers=8, controls=2, seed=6, names=names)
    assert not outcome.failures, "\n".join(outcome.failures)
    assert outcome.worker_kills.total() == 8
    assert all(outcome.turns.values())
