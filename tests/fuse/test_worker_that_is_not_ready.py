"""The next worker is slow to begin, or never begins: the first is waited for, the second ended."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from snapfs.fuse import process, supervisor
from tests.support.daemon import eventually, processes_below
from tests.support.lanes import House

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.root,
    # A container that starts just now, of a test beside this one, has a copy of the mount a little
    # longer than we have, and the worker serves it.
    pytest.mark.logs(
        "lane.worker_died", "lane.worker_restarted", "lane.restart_failed", "worker.not_ready",
        "lane.left_serving",
    ),
]  # fmt: skip

Line: TypeAlias = dict[str, Any]

STILL_S = 2.0
"""In place of `READY_TIMEOUT_S`."""
LOADS_SLOWLY = """
import sys, time

if "snapfs.fuse.workerstart" in sys.orig_argv:
    for _ in range(200):
        time.sleep(0.03)
"""
"""A sitecustomize: as where each file of the code comes late from the disk."""


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "READY_TIMEOUT_S", STILL_S)
    monkeypatch.setattr(process, "TELL_EVERY_S", STILL_S)


def fill(layer: Path) -> None:
    (layer / "file").write_text("lower")


def test_worker_whose_code_comes_late_is_waited_for(
    own_house: House,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tree = own_house.active(fill)
    (tmp_path / "sitecustomize.py").write_text(LOADS_SLOWLY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    caplog.set_level("INFO")
    for pid in processes_below(own_house.base):
        os.kill(pid, signal.SIGKILL)
    assert (tree / "file").read_text() == "lower"
    own_house.worker()
    assert own_house.lane.status().restarts == 1
    events = [it["event"] for it in lines(caplog)]
    assert "worker.not_ready" not in events
    assert "worker.slow" in events


def test_worker_that_stands_still_is_ended_and_the_log_says_where_it_stood(
    own_house: House, caplog: pytest.LogCaptureFixture
) -> None:
    tree = own_house.active(fill)
    own_house.kill_worker()
    own_house.worker()
    stopped = eventually(lambda: at_hand(own_house.base), what="a worker at hand")
    os.kill(stopped, signal.SIGSTOP)
    own_house.kill_worker()
    assert (tree / "file").read_text() == "lower"
    assert own_house.worker().pid != stopped
    line = next(it for it in lines(caplog) if it["event"] == "worker.not_ready")
    assert (line["pid"], line["step"]) == (stopped, "snapfs spare")
    assert line["state"] == "T (stopped)"
    assert line["waits_in"].startswith("do_signal_stop")
    assert line["processor_s"] > 0


def at_hand(base: Path) -> int | None:
    for pid in processes_below(base):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            if Path(f"/proc/{pid}/comm").read_text() == "snapfs spare\n":
                return pid
    return None


def lines(caplog: pytest.LogCaptureFixture) -> list[Line]:
    return [it.msg for it in caplog.records if isinstance(it.msg, dict)]
