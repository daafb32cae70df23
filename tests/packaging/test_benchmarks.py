"""The benchmarks run, and leave nothing behind however they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import memorygroup
from bench.memorygroup import Charged
from tests.support.daemon import eventually, mounts_below, processes_below

HERE = Path(__file__).parents[2]
DEADLINE_S = 120.0

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def place() -> Iterator[Path]:
    """A place of its own, on a disk and with a short path, for directories of benchmarks."""
    with tempfile.TemporaryDirectory(prefix="benched-", dir="/var/tmp") as name:
        yield Path(name)


def start(*arguments: str, place: Path = Path("/var/tmp")) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bench", *arguments],
        cwd=HERE,
        env={**os.environ, "TMPDIR": os.fspath(place)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_each_benchmark_that_is_listed_says_how_it_is_run() -> None:
    with start() as listing:
        listed, _ = listing.communicate(timeout=DEADLINE_S)
    assert listing.returncode == 0
    names = [line.split()[0] for line in listed.splitlines() if line.startswith("  ")]
    names = [name for name in names if name != "python"]
    assert {"overlay", "containers", "usage"} <= set(names)
    for name, run in [(name, start(name, "--help")) for name in names]:
        said, _ = run.communicate(timeout=DEADLINE_S)
        assert run.returncode == 0
        assert said.startswith(f"usage: python -m bench {name}")


def test_chosen_rows_and_lanes_make_a_table(place: Path) -> None:
    chosen = ("--runs", "1", "--rows", "find,append", "--lanes", "main")
    with start("overlay", *chosen, place=place) as run:
        printed, said = run.communicate(timeout=DEADLINE_S * 2)
    assert run.returncode == 0, said
    lines = printed.splitlines()
    head = next(line for line in lines if line.startswith("| seconds "))
    assert head.split(" | ")[1:4] == ["overlayfs", "fuse-overlayfs", "main"]
    assert sum(line.startswith("| find, cold |") for line in lines) == 2  # times and requests
    assert not any("tar" in line for line in lines if line.startswith("| tar"))
    assert "| main | " in printed
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_leaves_neither_daemons_nor_mounts(number: signal.Signals, place: Path) -> None:
    run = start("overlay", "--runs", "1", "--rows", "tar", place=place)
    try:
        (base,) = eventually(
            lambda: list(place.glob("snapfs-bench-*")), timeout_s=60, what="the directory"
        )
        eventually(
            lambda: len(mounts_below(base)) > 2 and len(processes_below(base)) > 2,
            timeout_s=DEADLINE_S,
            what="a mounted tree",
        )
        run.send_signal(number)
        if number is signal.SIGKILL:
            os.kill(_script(base), number)
        run.communicate(timeout=DEADLINE_S)
        eventually(lambda: not base.exists(), timeout_s=DEADLINE_S, what="the end of everything")
        assert not mounts_below(base)
        assert not processes_below(base)
    finally:
        run.kill()
        run.communicate()


def test_memory_that_a_benchmark_is_charged_for_is_that_of_its_own_processes(place: Path) -> None:
    size_bytes = 8 << 20
    write = ["head", "-c", str(size_bytes), "/dev/zero"]
    with memorygroup.joined(place.name) as group:
        before = group.charged()
        with (place / "data").open("wb") as file:
            subprocess.run(write, stdout=file, check=True, timeout=60)
        for number in range(1000):
            (place / f"{number}").touch()
        after = group.charged()
    assert size_bytes <= after.page_cache - before.page_cache < size_bytes * 5 // 4
    assert after.kernel - before.kernel > 1000 * 1000
    memorygroup.remove(place.name)  # and it does not matter that there is none


def test_both_versions_of_the_memory_controller_are_read() -> None:
    first = {"cache": 9000, "shmem": 1000, "rss": 5}
    assert memorygroup.of_first_version(first, 77) == Charged(page_cache=8000, kernel=77)
    second = {"file": 9000, "shmem": 1000, "anon": 5, "kernel": 77}
    assert memorygroup.of_second_version(second) == Charged(page_cache=8000, kernel=77)


def _script(base: Path) -> int:
    """Return the benchmark itself: the parent of the guard of its directory."""
    (guard,) = (
        pid
        for pid in processes_at(base)
        if b"bench.ending" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    return int(Path(f"/proc/{guard}/stat").read_text().rpartition(")")[2].split()[1])


def processes_at(base: Path) -> list[int]:
    """Return the processes that have exactly `base` as an argument."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if os.fsencode(base) in arguments:
                found.append(int(entry.name))
    return found
