"""Requests that the library answers, and those that it leaves to Python, with a kernel asking."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parents[2]
DEADLINE_S = 20
CONTENTS = bytes(range(256)) * 40

pytestmark = [pytest.mark.root, pytest.mark.fuse]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    mountpoint = tmp_path / "mount"
    mountpoint.mkdir()
    (tmp_path / "backing").write_bytes(CONTENTS)
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.hot_server", mountpoint, tmp_path / "backing"],
        cwd=HERE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        try:
            yield mountpoint
        finally:
            subprocess.run(["umount", "--lazy", mountpoint], check=True, timeout=DEADLINE_S)
            try:
                assert server.wait(DEADLINE_S) == 0
            finally:
                server.kill()


def told(mounted: Path) -> dict[str, Any]:
    return json.loads(os.getxattr(mounted, "user.seen"))  # type: ignore[no-any-return]


def seen(mounted: Path, what: str) -> int:
    """How often Python was asked."""
    return told(mounted)["seen"].get(what, 0)  # type: ignore[no-any-return]


def answered(mounted: Path, what: str) -> int:
    """How often the library answered."""
    return told(mounted)["answered"].get(what, 0)  # type: ignore[no-any-return]


def order(mounted: Path, what: bytes) -> None:
    os.setxattr(mounted, "user.do", what)


def eventually(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def test_second_open_is_answered_in_the_library_with_the_same_backing_file(mounted: Path) -> None:
    for _ in range(5):
        with opened(mounted / "file") as fd:
            assert os.pread(fd, 20000, 0) == CONTENTS
    assert seen(mounted, "open") == 1
    assert answered(mounted, "OPEN") == 4
    eventually(lambda: answered(mounted, "RELEASE") == 5)
    assert told(mounted)["opens"] == 0
    assert told(mounted)["kept"] == 1
    assert seen(mounted, "release") == 0


def test_opens_for_writing_and_for_truncating_are_pythons(mounted: Path) -> None:
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY, os.O_RDONLY | os.O_TRUNC):
        with contextlib.suppress(OSError), opened(mounted / "file", flags):
            pass
    assert seen(mounted, "open") == 4
    assert answered(mounted, "OPEN") == 0


def test_withdrawn_file_is_asked_of_python_again_and_closed_by_it(mounted: Path) -> None:
    with opened(mounted / "file"):
        order(mounted, b"withdraw")
    eventually(lambda: seen(mounted, "release") == 1)
    assert told(mounted)["kept"] == 0
    with opened(mounted / "file"):
        assert seen(mounted, "open") == 2


def test_idle_file_that_is_given_up_is_opened_by_python_again(mounted: Path) -> None:
    with opened(mounted / "file"):
        pass
    eventually(lambda: told(mounted)["opens"] == 0)
    order(mounted, b"forget")
    assert told(mounted)["kept"] == 0
    with opened(mounted / "file") as fd:
        assert os.pread(fd, 10, 0) == CONTENTS[:10]
    assert seen(mounted, "open") == 2


def test_requests_of_many_threads_are_all_answered(mounted: Path) -> None:
    def work(number: int) -> int:
        for _ in range(50):
            with opened(mounted / "file"):
                pass
            assert not (mounted / f"absent{number}").exists()
        return number

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == list(range(8))
    eventually(lambda: told(mounted)["opens"] == 0)
    assert seen(mounted, "open") + answered(mounted, "OPEN") == 400
