"""The next worker is slow to begin, or never begins: the first is waited for, the second ended."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from snapfs.fuse import process, progress, watching
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
STUCK_S = STILL_S * progress.UNSEEN
"""For one that moves, with nothing to show for it."""
LOADS_SLOWLY = """
import os, sys, time

if "snapfs.fuse.workerstart" in sys.orig_argv:
    began_s = time.monotonic()
    with open({code!r}, "rb", buffering=0) as code:
        while time.monotonic() < began_s + {seconds}:
            os.posix_fadvise(code.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            code.seek(0)
            code.read(4096)
            time.sleep(0.1)
"""
"""A sitecustomize: as where each file of the code comes late from the disk."""
IN_ONE_WORKER = """
import contextlib, ctypes, os, sys, threading

if "snapfs.fuse.workerstart" in sys.orig_argv:
    with contextlib.suppress(FileNotFoundError):
        os.rename({marker!r}, f"{{{marker!r}}}.{{os.getpid()}}")
        {act}
"""
"""A sitecustomize; the next worker is whole."""
HANGS = {
    # CPython's main thread asks for its lock every 5 ms.
    "holds the lock": "threading.Thread(target=ctypes.PyDLL(None).sleep, args=(1000,)).start()",
    "uses the processor": "while True: pass",
}


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "READY_TIMEOUT_S", STILL_S)
    monkeypatch.setattr(process, "TELL_EVERY_S", STILL_S)
    monkeypatch.setattr(progress, "LOADING_NS", 2 * 10**9)


def fill(layer: Path) -> None:
    (layer / "file").write_text("lower")


def test_worker_whose_code_comes_late_is_waited_for(
    own_house: House,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tree = own_house.active(fill)
    code = tmp_path / "code"
    code.write_bytes(b"#" * 4096)
    os.sync()  # only then the kernel lets go of it
    customize(monkeypatch, tmp_path, LOADS_SLOWLY.format(code=str(code), seconds=1.5 * STUCK_S))
    caplog.set_level("INFO")
    kill_all(own_house.base)
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


@pytest.mark.parametrize("act", HANGS.values(), ids=HANGS)
def test_worker_that_moves_without_end_and_gets_nowhere_is_ended(
    own_house: House,
    act: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tree = own_house.active(fill)
    marker = tmp_path / "hangs"
    marker.touch()
    customize(monkeypatch, tmp_path, IN_ONE_WORKER.format(marker=str(marker), act=act))
    kill_all(own_house.base)
    assert (tree / "file").read_text() == "lower"
    own_house.worker()
    (hung,) = (int(it.suffix[1:]) for it in tmp_path.glob("hangs.*"))
    (line,) = (it for it in lines(caplog) if it["event"] == "worker.not_ready")
    assert line["pid"] == hung
    assert line["waited_s"] < watching.MOST_READY_S / 2  # as one that gets on would have


def customize(monkeypatch: pytest.MonkeyPatch, directory: Path, code: str) -> None:
    """Have each further worker begin with some code."""
    (directory / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(directory))


def kill_all(base: Path) -> None:
    """Kill the worker, and the one at hand."""
    for pid in processes_below(base):
        os.kill(pid, signal.SIGKILL)


def at_hand(base: Path) -> int | None:
    for pid in processes_below(base):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            if Path(f"/proc/{pid}/comm").read_text() == "snapfs spare\n":
                return pid
    return None


def lines(caplog: pytest.LogCaptureFixture) -> list[Line]:
    return [it.msg for it in caplog.records if isinstance(it.msg, dict)]
