"""Requests that the library answers, and those that it leaves to Python, with a kernel asking."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs.fuse.hot import pack
from snapfs.overlay import Attributes
from tests.support import lanes

HERE = Path(__file__).parents[2]
DEADLINE_S = 20
CONTENTS = bytes(range(256)) * 40
LIBC = ctypes.CDLL(None, use_errno=True)
AT_EMPTY_PATH, AT_STATX_FORCE_SYNC, STATX_BASIC_STATS = 0x1000, 0x2000, 0x7FF

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


def asked_stat(fd: int) -> bytes:
    """Make the kernel ask for attributes, and return what statx(2) says."""
    found = ctypes.create_string_buffer(256)
    how = AT_EMPTY_PATH | AT_STATX_FORCE_SYNC
    if LIBC.statx(fd, b"", how, STATX_BASIC_STATS, found):
        raise OSError(ctypes.get_errno(), "statx")
    return found.raw


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
    eventually(lambda: answered(mounted, "RELEASE") == 4)
    assert told(mounted)["opens"] == 0
    assert seen(mounted, "release") == 1


def test_open_for_writing_is_pythons(mounted: Path) -> None:
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY, os.O_RDONLY | os.O_TRUNC):
        with contextlib.suppress(OSError), opened(mounted / "file", flags):
            pass
    assert seen(mounted, "open") == 4
    assert answered(mounted, "OPEN") == 0


def test_withdrawn_node_is_asked_of_python_again(mounted: Path) -> None:
    with opened(mounted / "file") as fd:
        asked_stat(fd)
        with pytest.raises(OSError, match="No data"):
            os.getxattr(fd, "user.x")
    order(mounted, b"withdraw")
    with opened(mounted / "file") as fd:
        asked_stat(fd)
        with pytest.raises(OSError, match="No data"):
            os.getxattr(fd, "user.x")
    assert [seen(mounted, it) for it in ("open", "getattr", "getxattr")] == [2, 2, 2]
    order(mounted, b"withdraw all")
    with opened(mounted / "file"):
        assert seen(mounted, "open") == 3


def test_node_that_is_open_here_is_told_once_its_last_handle_is_gone(mounted: Path) -> None:
    with opened(mounted / "file"):
        with opened(mounted / "file"), opened(mounted / "file"):
            assert told(mounted)["opens"] == 2
            order(mounted, b"withdraw and tell")
            order(mounted, b"closed")
            assert told(mounted)["closed"] == []
        eventually(lambda: told(mounted)["opens"] == 0)
        order(mounted, b"closed")
        order(mounted, b"closed")
        assert told(mounted)["closed"] == [7 | 1 << 63]
        assert told(mounted)["nodes"] == 0


def test_attributes_are_answered_as_offered(mounted: Path) -> None:
    with opened(mounted / "file") as fd:
        first, second = asked_stat(fd), asked_stat(fd)
        assert os.fstat(fd).st_ino == 7
        assert os.fstat(fd).st_mtime_ns == 5
    assert first[:40] == second[:40]  # from the mask to the blocks
    assert seen(mounted, "getattr") == 1
    assert answered(mounted, "GETATTR") == 1


def test_attribute_that_is_not_there_is_answered_and_lists_are_empty(mounted: Path) -> None:
    for _ in range(3):
        with pytest.raises(OSError) as refused:
            os.getxattr(mounted / "file", "user.x")
        assert refused.value.errno == errno.ENODATA
    assert os.listxattr(mounted / "file") == []
    assert seen(mounted, "getxattr") == 1
    assert seen(mounted, "listxattr") == 0
    assert answered(mounted, "GETXATTR") == 2


def test_overlay_attributes_are_pythons(mounted: Path) -> None:
    for name in ("user.x", "trusted.overlay.opaque", "trusted.overlay.opaque"):
        with pytest.raises(OSError, match="No data"):
            os.getxattr(mounted / "file", name)
    assert seen(mounted, "getxattr") == 3


def test_contents_are_read_from_the_descriptor_up_to_the_end(mounted: Path) -> None:
    with opened(mounted / "direct") as fd:
        assert os.pread(fd, 100, 0) == CONTENTS[:100]
        for at, size in ((0, 4096), (10000, 4096), (len(CONTENTS), 10), (5, 1)):
            assert os.pread(fd, size, at) == CONTENTS[at : at + size]
    assert seen(mounted, "read") == 1
    assert answered(mounted, "READ") >= 3


def test_forgotten_node_is_asked_anew(mounted: Path) -> None:
    with opened(mounted / "file"):
        pass
    assert told(mounted)["nodes"] == 1
    lanes.drop_dentries()
    eventually(lambda: told(mounted)["nodes"] == 0)
    with opened(mounted / "file"):
        assert seen(mounted, "open") == 2


def test_requests_of_many_threads_are_all_answered(mounted: Path) -> None:
    def work(number: int) -> int:
        for _ in range(50):
            with opened(mounted / "file") as fd:
                asked_stat(fd)
            assert not (mounted / f"absent{number}").exists()
        return number

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == list(range(8))
    eventually(lambda: told(mounted)["opens"] == 0)
    assert seen(mounted, "open") + answered(mounted, "OPEN") == 400


times_ns = st.integers(-(1 << 62), 1 << 62)


@given(st.integers(0, (1 << 64) - 1), times_ns)
def test_times_before_the_epoch_and_hidden_incarnations_are_packed(ino: int, time_ns: int) -> None:
    raw = pack(Attributes(ino, 0o100644, 2, 3, 4, 5, 6, 7, 8, time_ns, 0, -1))
    fields = struct.unpack("<QQQqqqIIIIIIIIII", raw)
    assert fields[0] == ino % (1 << 63)
    assert fields[3] * 10**9 + fields[6] == time_ns
    assert (fields[5], fields[8]) == (-1, 10**9 - 1)
    assert fields[9:15] == (0o100644, 2, 3, 4, 5, 8)
