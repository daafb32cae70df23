"""Many files are opened for a moment each while workers die and the kernel forgets files.

OPENS_TEST_SECONDS says for how long in each mode.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapfs.fuse import watching
from snapfs.fuse.modes import Mode
from tests.crash import opening
from tests.support import lanes
from tests.support.dentries import drop_with, flags_of

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    # A container that starts just now, of a test beside this one, has a copy of the mount a little
    # longer than we have, and the worker serves it.
    pytest.mark.logs(
        "lane.worker_died", "lane.worker_restarted", "lane.spare_died", "lane.left_serving"
    ),
]

SECONDS = float(os.environ.get("OPENS_TEST_SECONDS", "6"))
PROGRAMS = 4
KILL_AFTER_S = (0.1, 0.3)
FORGET_EVERY_S = 0.03
DEADLINE_S = 60.0


@pytest.mark.parametrize("mode", [Mode.PASSTHROUGH, Mode.NO_OPEN], ids=lambda it: it.value)
def test_no_open_fails_when_files_are_forgotten_while_workers_die(
    tmp_path: Path, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "STEADY_S", 0.0)  # however often, the next one begins at once
    dice, kills = random.Random(11), 0
    with lanes.aborting_after(tmp_path, SECONDS * 2 + 120), lanes.house(tmp_path, mode) as house:
        tree = house.active(opening.fill)
        opening.fill_upper(tree.path)
        with forgetting(house.mountpoint), opening_all(tree.path) as programs:
            end_s = time.monotonic() + SECONDS
            while time.monotonic() < end_s:
                house.kill_worker()
                kills += 1
                house.worker()
                time.sleep(dice.uniform(*KILL_AFTER_S))
            said = [it.communicate(timeout=DEADLINE_S)[0] for it in programs]
        print(f"{kills} kills; opens, and what failed: {said}")
        assert [it.returncode for it in programs] == [0] * PROGRAMS, said
        assert all(int(it.split()[0]) > 0 for it in said)


@contextmanager
def opening_all(top: Path) -> Iterator[list[subprocess.Popen[str]]]:
    programs = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.crash.opening", top, str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for seed in range(PROGRAMS)
    ]
    try:
        yield programs
    finally:
        for it in programs:
            it.kill()
            it.communicate(timeout=DEADLINE_S)


@contextmanager
def forgetting(mountpoint: Path) -> Iterator[None]:
    """Let the kernel forget all files that nobody has open, many times a second, also while there
    is no worker that hears of it."""
    flags, ended = flags_of(mountpoint), threading.Event()

    def drop() -> None:
        while not ended.wait(FORGET_EVERY_S):
            drop_with(mountpoint, flags)

    thread = threading.Thread(target=drop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(DEADLINE_S)
