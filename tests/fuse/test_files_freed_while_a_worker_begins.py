"""A file without a name is given up while what it asked for is in hand of a worker that died.

The next worker asks the kernel about such files before it answers anything, on the thread that
answers. Were the kernel freeing one of them, it would wait for that answer, and both for ever.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from snapfs.fuse import watching
from snapfs.fuse.modes import Mode
from tests.support.daemon import eventually
from tests.support.lanes import House

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.logs("lane.worker_died", "lane.worker_restarted"),
]

DEADLINE_S = 20.0
DEAD_S = 0.5
PROGRAM = """
import ctypes, mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 1 << 20)
os.unlink(sys.argv[1])
mapped = mmap.mmap(fd, 1 << 20)
if sys.argv[2] == "writes":
    mapped[:] = b"x" * (1 << 20)
print("ready", flush=True)
sys.stdin.readline()
if sys.argv[2] == "writes":
    ctypes.CDLL(None).sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), 2)
else:
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
print("asked", flush=True)
"""
"""Asks for something without waiting for it, and ends, which gives the file up."""


@pytest.mark.modes(Mode.PASSTHROUGH, Mode.NO_OPEN)
@pytest.mark.parametrize("what", ["reads", "writes"])
def test_next_worker_serves(own_house: House, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "FIRST_DELAY_S", DEAD_S)
    tree = own_house.active()
    (tree / "other").write_text("other")
    worker = own_house.worker().pid
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tree / "file"), what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stdout.readline() == b"ready\n"
        os.kill(worker, signal.SIGSTOP)
        program.stdin.write(b"\n")
        program.stdin.flush()
        assert program.stdout.readline() == b"asked\n"
        os.kill(worker, signal.SIGKILL)
        program.wait(DEADLINE_S)
    assert (tree / "other").read_text() == "other"
    assert own_house.worker().pid != worker
    work = own_house.layer(tree.id).parent / "work" / "snapfs"

    def is_gone() -> bool:
        return not any(it.startswith("o") for it in os.listdir(work))

    eventually(is_gone, what="the end of the removed file")
