"""Set-id bits that come while a file is open go with a write to it, whenever a worker dies."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

import pytest

from snapfs.fuse.modes import Mode
from tests.support.lanes import House, Tree

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.logs("lane.worker_died", "lane.worker_restarted"),
    pytest.mark.parametrize("mode", [Mode.PASSTHROUGH, Mode.NO_OPEN]),
]

WRITER = """
import os, sys
uid, above = int(sys.argv[1]), int(sys.argv[2])
if uid:
    os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
fd = os.open("file", os.O_RDWR, dir_fd=above)
print("open", flush=True)
while sys.stdin.readline():
    os.pwrite(fd, b"evil", 0)
    print("written", flush=True)
"""
BITS = stat.S_ISUID | stat.S_ISGID


class Writer:
    """A process of its own that has a file open for writing."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin: IO[str] = process.stdin
        self._stdout: IO[str] = process.stdout
        self.await_it("open")

    def begin_write(self) -> None:
        self._stdin.write("\n")
        self._stdin.flush()

    def await_it(self, what: str) -> None:
        assert self._stdout.readline() == f"{what}\n"


@contextmanager
def writer_of(tree: Tree, uid: int) -> Iterator[Writer]:
    """Have `file` open for writing by a user; it is closed at the end."""
    above = os.open(tree.path, os.O_RDONLY)
    try:
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(uid), str(above)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[above],
        ) as process:
            try:
                yield Writer(process)
            finally:
                if process.stdin is not None:
                    process.stdin.close()
                process.wait(30)
    finally:
        os.close(above)


def die_never(house: House) -> None:
    house.worker()


def die(house: House) -> None:
    house.kill_worker()


deaths = pytest.mark.parametrize(
    ("before", "after"), [(die_never, die_never), (die, die_never), (die_never, die), (die, die)]
)
Death = Callable[[House], object]


@pytest.fixture
def tree(own_house: House) -> Tree:
    """A snapshot with a file that everybody may write."""
    tree = own_house.active()
    (tree / "file").write_bytes(b"x" * 3000)
    (tree / "file").chmod(0o666)
    tree.path.chmod(0o777)
    return tree


@contextmanager
def written(house: House, tree: Tree, uid: int, before: Death, after: Death) -> Iterator[None]:
    """A user, who has the file open, has written to it since it got the bits."""
    with writer_of(tree, uid) as writer:
        (tree / "file").chmod(0o6777)
        before(house)
        writer.begin_write()
        writer.await_it("written")
        after(house)
        yield


@deaths
def test_bits_go_with_a_write_by_who_has_no_right_to_them(
    own_house: House, tree: Tree, before: Death, after: Death
) -> None:
    with written(own_house, tree, 1233, before, after):
        assert not (tree / "file").stat().st_mode & BITS
    assert (tree / "file").read_bytes()[:5] == b"evilx"
    assert not (tree.upper / "file").stat().st_mode & BITS


@deaths
def test_bits_go_before_anybody_looks(
    own_house: House, tree: Tree, before: Death, after: Death
) -> None:
    with written(own_house, tree, 1233, before, after):
        pass
    assert not (tree.upper / "file").stat().st_mode & BITS


@deaths
def test_bits_stay_with_a_write_by_root(
    own_house: House, tree: Tree, before: Death, after: Death
) -> None:
    with written(own_house, tree, 0, before, after):
        assert (tree / "file").stat().st_mode & BITS == BITS
    assert (tree / "file").stat().st_mode & BITS == BITS


def test_bits_stay_of_a_file_that_nobody_writes(own_house: House, tree: Tree) -> None:
    with writer_of(tree, 1233):
        (tree / "file").chmod(0o6777)
        own_house.kill_worker()
        os.utime(tree / "file", (1, 1))
        own_house.kill_worker()
        assert (tree / "file").stat().st_mode & BITS == BITS
    assert (tree / "file").stat().st_mode & BITS == BITS
