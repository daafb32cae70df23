"""A hold keeps files from being deleted while its process lives, runs, and has room."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import structlog

from snapfs.snapshots import holding
from snapfs.snapshots.holding import HOLDS, LEASE_S, Holds, held
from tests.support.daemon import eventually
from tests.support.overlay.kernel import mount, tmpfs

_REMOUNT, _RDONLY = 32, 1
HOLDER = """
import sys
from pathlib import Path
from snapfs.snapshots.holding import held
with held(Path(sys.argv[1])) as hold:
    print("held", flush=True)
    for _ in sys.stdin:
        print(hold.why_lost or "kept", flush=True)
"""


class Clock:
    """Monotonic time that stands still."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Holder:
    """Another process with a hold on a root."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert self._line() == "held"

    def ask(self) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write("?\n")
        self.process.stdin.flush()
        return self._line()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(self.process.pid, os.WUNTRACED)[1])

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@contextmanager
def holder(root: Path) -> Iterator[Holder]:
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, root], stdin=pipe, stdout=pipe, text=True
    ) as process:
        try:
            yield Holder(process)
        finally:
            process.kill()


def files(root: Path) -> list[Path]:
    return list((root / HOLDS).iterdir())


def test_a_hold_counts_until_its_end_and_leaves_nothing(tmp_path: Path) -> None:
    holds = Holds(tmp_path)
    assert not holds.any()
    with held(tmp_path) as first, held(tmp_path) as second:
        assert holds.any()
        assert not first.is_lost
        assert not second.is_lost
    assert not holds.any()
    assert files(tmp_path) == []


def test_the_hold_of_a_dead_process_does_not_count(tmp_path: Path) -> None:
    holds = Holds(tmp_path)
    with holder(tmp_path) as other:
        assert holds.any()
        other.process.kill()
        other.process.wait(20)
        assert len(files(tmp_path)) == 1
        assert not holds.any()
        assert files(tmp_path) == []


@pytest.mark.logs("hold.expired")
def test_a_process_that_stands_still_keeps_nobody_and_learns_of_it(tmp_path: Path) -> None:
    clock = Clock()
    holds = Holds(tmp_path, clock_s=clock)
    with holder(tmp_path) as other:
        assert other.ask() == "kept"
        other.stop()
        assert holds.any()
        clock.now_s += LEASE_S * 0.9
        assert holds.any()
        clock.now_s += LEASE_S * 0.2
        assert not holds.any()
        assert files(tmp_path) == []
        other.go_on()
        assert "stood still" in other.ask()


def test_a_hold_that_is_touched_counts_for_any_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "_POLL_S", 0.01)
    clock = Clock()
    holds = Holds(tmp_path, clock_s=clock)
    with held(tmp_path):
        (file,) = files(tmp_path)
        for _ in range(5):
            assert holds.any()
            before = file.stat().st_mtime_ns
            eventually(lambda before=before: file.stat().st_mtime_ns != before, what="a touch")
            clock.now_s += LEASE_S * 0.9


@pytest.mark.logs("hold.expired")
def test_a_hold_that_was_not_touched_before_anybody_looked_does_not_count(tmp_path: Path) -> None:
    with holder(tmp_path) as other:
        other.stop()
        (file,) = files(tmp_path)
        long_ago = file.stat().st_mtime - 2 * LEASE_S
        os.utime(file, (long_ago, long_ago))
        assert not Holds(tmp_path).any()
        other.go_on()
        assert "stood still" in other.ask()


@pytest.mark.logs("hold.ignored")
def test_what_is_no_file_among_holds_is_ignored_and_said_once(tmp_path: Path) -> None:
    holds, strange = Holds(tmp_path), tmp_path / HOLDS
    strange.mkdir()
    (strange / "directory").mkdir()
    (strange / "link").symlink_to("nowhere")
    os.mkfifo(strange / "fifo")
    with structlog.testing.capture_logs() as said:
        assert not holds.any()
        assert not holds.any()
    assert [it["event"] for it in said] == ["hold.ignored"] * 3
    with held(tmp_path):
        assert holds.any()


@pytest.mark.root
def test_a_hold_gives_way_where_there_is_no_room_and_is_none_on_a_read_only_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "_POLL_S", 0.01)
    with tmpfs(tmp_path / "place", "size=1m,nr_inodes=100") as root:
        with held(root) as hold:
            assert not hold.is_lost
            (root / "filler").write_bytes(b"x" * (1008 << 10))
            eventually(lambda: hold.is_lost, what="the end of the hold")
            assert "nearly full" in hold.why_lost
            assert not Holds(root).any()
        (root / "filler").unlink()
        for number in range(os.statvfs(root).f_ffree):
            (root / f"filler{number}").touch()
        with held(root) as hold:
            assert hold.why_lost == "the root's file system has no room"
        mount("tmpfs", root, "", _REMOUNT | _RDONLY)
        with held(root) as hold:
            assert hold.why_lost == "the root's file system is mounted read-only here"
