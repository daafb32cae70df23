"""What the kernel asks a worker for when it has seen everything before, lane by lane."""

from __future__ import annotations

import errno
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench import requests
from bench.requests import Tracer
from snapfs.fuse import labels, mounts
from snapfs.fuse.modes import Mode
from tests.support.lanes import House

pytestmark = [pytest.mark.fuse, pytest.mark.root]
MODES = (Mode.PASSTHROUGH, Mode.READONLY, Mode.NO_OPEN)
FILES = 20


def fill(layer: Path) -> None:
    (layer / "dir").mkdir()
    for number in range(FILES):
        (layer / "dir" / f"f{number}").write_text("lower")
    (layer / "link").symlink_to("dir/f1")


@pytest.fixture(scope="module")
def tracer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracer]:
    with requests.tracer(tmp_path_factory.mktemp("tracer")) as made:
        assert made is not None, "this kernel has no tracepoint for requests; Linux 6.12 has"
        yield made


@pytest.fixture(scope="module")
def tree(house: House) -> Path:
    """A snapshot of the kind that the lane is for."""
    parent = house.base_layers(fill)
    shown = house.view(parent) if not house.mode.is_writable else house.on(parent)
    return shown.path


def look(tree: Path) -> None:
    for number in range(FILES):
        os.stat(tree / "dir" / f"f{number}")
    assert os.readlink(tree / "link") == "dir/f1"


def miss(tree: Path) -> None:
    for number in range(FILES):
        assert not os.path.lexists(tree / "dir" / f"none{number}")


def list_names(tree: Path) -> None:
    assert len(os.listdir(tree / "dir")) == FILES


def list_all(tree: Path) -> None:
    subprocess.run(["ls", "-lR", tree], check=True, capture_output=True, timeout=30)


def read(tree: Path) -> None:
    for number in range(FILES):
        with (tree / "dir" / f"f{number}").open("rb", buffering=0) as file:
            assert file.read(5) == b"lower"


def read_and_look(tree: Path) -> None:
    for number in range(FILES):
        with (tree / "dir" / f"f{number}").open("rb", buffering=0) as file:
            assert file.read(5) == b"lower"
            os.fstat(file.fileno())


def asked(tracer: Tracer, tree: Path, work: Callable[[Path], None]) -> Counter[str]:
    """Return the requests when all was read before, and attributes were asked for since.

    The fewest of a few times: the kernel may drop caches whenever it likes.
    """
    work(tree)
    return min((_asked_once(tracer, tree, work) for _ in range(5)), key=Counter.total)


def _asked_once(tracer: Tracer, tree: Path, work: Callable[[Path], None]) -> Counter[str]:
    work(tree)
    with tracer.counting(tree) as found:
        work(tree)
    return Counter({name: count for name, count in found.items() if name != "release"})


@pytest.mark.parametrize("work", [look, miss, list_names])
def test_warm_names_attributes_and_listings_ask_nothing(
    tracer: Tracer, tree: Path, work: Callable[[Path], None]
) -> None:
    assert asked(tracer, tree, work) == {}


@pytest.mark.skipif(not labels.are_unknown(), reason="SELinux is active: the kernel answers")
def test_ls_learns_once_that_there_are_no_labels(tracer: Tracer, tree: Path) -> None:
    assert asked(tracer, tree, list_all)["getxattr"] == 1


def test_warm_reads_ask_for_opens_at_most(tracer: Tracer, tree: Path, mode: Mode) -> None:
    found = asked(tracer, tree, read)
    del found["getattr"]  # an open(3) of Python looks; a read in passthrough has changed the atime
    assert found == ({} if mode is Mode.NO_OPEN else {"open": FILES})


@pytest.mark.modes(Mode.READONLY, Mode.NO_OPEN)
def test_reads_change_no_times_that_would_have_to_be_asked_for(
    tracer: Tracer, tree: Path, mode: Mode
) -> None:
    expected = {} if mode is Mode.NO_OPEN else {"open": FILES}
    assert asked(tracer, tree, read_and_look) == expected


@pytest.mark.modes(Mode.PASSTHROUGH)
def test_a_read_past_the_worker_changes_times_that_are_asked_for(
    tracer: Tracer, tree: Path
) -> None:
    assert asked(tracer, tree, read_and_look) == {"open": FILES, "getattr": FILES}


@pytest.mark.modes(Mode.PASSTHROUGH, Mode.NO_OPEN)
def test_writes_are_requests_only_where_the_worker_makes_them(
    tracer: Tracer, tree: Path, mode: Mode
) -> None:
    def write(tree: Path) -> None:
        for _ in range(FILES):
            os.pwrite(fd, b"x", 0)

    fd = os.open(tree / "dir" / "f0", os.O_WRONLY)
    try:
        assert asked(tracer, tree, write)["write"] == (0 if mode is Mode.PASSTHROUGH else FILES)
    finally:
        os.close(fd)


@pytest.mark.modes(Mode.NO_OPEN)
def test_big_reads_and_writes_are_requests_of_a_mebibyte(tracer: Tracer, tree: Path) -> None:
    data = os.urandom(4 << 20)
    fd = os.open(tree / "big", os.O_CREAT | os.O_RDWR)
    with tracer.counting(tree) as found:
        assert os.write(fd, data) == len(data)
    assert found["write"] == 4
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    with tracer.counting(tree) as found:
        assert os.pread(fd, len(data), 0) == data
    assert found["read"] == 4
    os.close(fd)


@pytest.mark.modes(Mode.READONLY)
def test_the_whole_mount_of_views_is_read_only(house: House, tree: Path) -> None:
    line = next(
        it
        for it in Path("/proc/self/mountinfo").read_text().splitlines()
        if f" {house.mountpoint} " in it
    )
    assert "ro" in line.rsplit(" ", 1)[1].split(",")
    for change in (
        lambda: (tree / "dir" / "f1").write_text("x"),
        lambda: (tree / "dir" / "new").mkdir(),
        lambda: (tree / "dir" / "f1").unlink(),
        lambda: os.utime(tree / "dir" / "f1"),
    ):
        with pytest.raises(OSError) as refused:
            change()
        assert refused.value.errno == errno.EROFS
    assert mounts.mounted_at(house.mountpoint)
