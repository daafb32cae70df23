"""A worker that dies again and again is begun later each time, and status and log say so."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from snapfs.fuse.watching import FIRST_DELAY_S, FREE_DEATHS
from tests.support.daemon import RunningDaemon, eventually

pytestmark = [pytest.mark.root, pytest.mark.fuse]

LOOP = re.compile(r"its worker died (\d+) times in a row; the next one is started (\S+) s after")


def told(daemon: RunningDaemon) -> tuple[int, float] | None:
    """Return what status warns of: deaths in a row, and the wait."""
    (found, *_) = [*map(LOOP.search, daemon.json("status")["warnings"]), None]
    return None if found is None else (int(found[1]), float(found[2]))


def logged(daemon: RunningDaemon) -> list[tuple[int, float]]:
    """Return the same of each wait that the log tells of."""
    lines = daemon.events("lane.backs_off")
    found = [re.search(r"deaths=(\d+)", it) for it in lines]
    waits = [re.search(r"delay_s=(\S+)", it) for it in lines]
    return [(int(it[1]), float(at[1])) for it, at in zip(found, waits, strict=True) if it and at]


def test_crash_loop_backs_off_and_is_told_until_a_worker_lives(
    daemon: RunningDaemon, tmp_path: Path
) -> None:
    data, away = daemon.root / "metadata" / "data.mdb", tmp_path / "data.mdb"
    data.rename(away)  # the service has it open; a worker that begins does not find it
    os.kill(daemon.worker_pid(), signal.SIGKILL)
    seen = eventually(lambda: told(daemon), what="the warning")
    assert seen[0] > FREE_DEATHS
    later = eventually(lambda: (it := told(daemon)) and it > seen and it, what="a later one")
    assert later[1] > seen[1] > FIRST_DELAY_S
    away.rename(data)
    eventually(lambda: daemon.json("status")["lanes"][0]["state"] == "serving", what="a worker")
    waits = logged(daemon)
    assert {seen, later} <= set(waits)
    assert waits == sorted(set(waits))
    assert waits[0] == (FREE_DEATHS + 1, 2 * FIRST_DELAY_S)
    eventually(lambda: not told(daemon), what="the end of the warning")
    (steady,) = daemon.events("lane.worker_steady")
    assert f"deaths={waits[-1][0]}" in steady
    os.kill(daemon.worker_pid(), signal.SIGKILL)
    eventually(lambda: len(daemon.events("lane.worker_restarted")) == 2, what="the next worker")
    assert not told(daemon)
    assert logged(daemon) == waits
