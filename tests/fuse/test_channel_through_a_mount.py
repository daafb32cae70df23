"""Raw requests, replies to opens and hidden incarnations, with a kernel on the other side."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import lanes

HERE = Path(__file__).parents[2]
DEADLINE_S = 20
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

pytestmark = [pytest.mark.root, pytest.mark.fuse]


WITHOUT_CHANNEL = """
import runpy
from snapfs.fuse import channel
channel.give_up("asked for")
runpy.run_module("tests.support.channel_server", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A mounted directory with one file, whose contents are the file's beside it."""
    with serving(
        tmp_path_factory.mktemp("one"), "-m", "tests.support.channel_server"
    ) as mountpoint:
        yield mountpoint


@contextlib.contextmanager
def serving(directory: Path, *program: str) -> Iterator[Path]:
    mountpoint = directory / "mount"
    mountpoint.mkdir()
    (directory / "backing").write_bytes(b"0123456789")
    with subprocess.Popen(
        [sys.executable, *program, mountpoint, directory / "backing"],
        cwd=HERE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        assert "ready\n" in server.stdout  # after what is logged
        try:
            yield mountpoint
        finally:
            subprocess.run(["umount", "--lazy", mountpoint], check=True, timeout=DEADLINE_S)
            try:
                assert server.wait(DEADLINE_S) == 0
            finally:
                server.kill()


def fallocate(path: Path, mode: int) -> int:
    """Return the errno of a fallocate(2), or 0."""
    fd = os.open(path, os.O_RDWR)
    try:
        return ctypes.get_errno() if LIBC.fallocate(fd, mode, 0, 4096) else 0
    finally:
        os.close(fd)


def test_file_opened_in_passthrough_is_read_and_written_past_us(mounted: Path) -> None:
    # The server has neither a read nor a write handler.
    fd = os.open(mounted / "file", os.O_RDWR)
    assert os.pread(fd, 100, 0) == b"0123456789"
    os.pwrite(fd, b"abc", 2)
    os.close(fd)
    assert (mounted.parent / "backing").read_bytes() == b"01abc56789"
    os.truncate(mounted / "file", 10)


def test_incarnation_is_shown_by_no_reply(mounted: Path) -> None:
    assert os.stat(mounted / "file").st_ino == 7
    fd = os.open(mounted / "file", os.O_RDONLY)
    assert os.fstat(fd).st_ino == 7
    os.close(fd)
    assert [(it.name, it.inode()) for it in os.scandir(mounted)] == [("file", 7)]


def test_created_file_is_open_in_passthrough_and_hides_its_incarnation(mounted: Path) -> None:
    fd = os.open(mounted / "new", os.O_RDWR | os.O_CREAT)
    assert os.pread(fd, 1, 9) == b"9"
    assert os.fstat(fd).st_ino == 7
    os.close(fd)


def test_raw_request_is_answered_with_the_error_that_its_handler_raises(mounted: Path) -> None:
    assert fallocate(mounted / "file", 0) == errno.EDOM


def test_raw_request_names_its_node(mounted: Path) -> None:
    assert os.statvfs(mounted).f_blocks == 1


def test_raw_handler_with_a_bug_costs_its_request_only(mounted: Path) -> None:
    assert fallocate(mounted / "file", 1) == errno.EIO
    assert fallocate(mounted / "file", 0) == errno.EDOM


def test_reply_that_the_kernel_does_not_take_leaves_nobody_waiting(mounted: Path) -> None:
    assert fallocate(mounted / "file", 3) == errno.EIO
    assert fallocate(mounted / "file", 0) == errno.EDOM


def test_what_is_not_supported_is_asked_once(mounted: Path) -> None:
    fd = os.open(mounted / "file", os.O_RDONLY)
    for _ in range(2):  # the kernel knows two extents by itself then
        assert os.lseek(fd, 0, os.SEEK_DATA) == 0
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 10
    os.close(fd)


def test_others_are_served_while_raw_handlers_wait(mounted: Path) -> None:
    with ThreadPoolExecutor(5) as pool:
        waiting = [pool.submit(os.statvfs, mounted / "file") for _ in range(5)]
        assert fallocate(mounted / "file", 0) == errno.EDOM
        assert os.path.exists(mounted / "go")
        assert [it.result(DEADLINE_S).f_blocks for it in waiting] == [7] * 5


def test_library_that_was_given_up_leaves_reading_to_libfuse(tmp_path: Path) -> None:
    with serving(tmp_path, "-c", WITHOUT_CHANNEL) as mountpoint:
        try:
            command = ["stat", "--format=%s", mountpoint / "file"]
            done = subprocess.run(command, capture_output=True, check=True, timeout=DEADLINE_S)
            assert done.stdout == b"10\n"
        except subprocess.TimeoutExpired:
            lanes.abort(tmp_path)  # whoever asked waits no longer
            raise
