"""What the kernel forgot is looked up again before a new worker hears of the first.

The kernel sends a few requests before it says what it has forgotten. The worker that looked the
file up is dead, so the next one cannot tell references of before from those of now.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Thread

import pytest

from snapfs.fuse import watching
from snapfs.fuse.modes import Mode
from snapfs.fuse.trees import DOUBT_S
from tests.support import lanes
from tests.support.daemon import eventually
from tests.support.dentries import drop_with, flags_of
from tests.support.lanes import House, Tree, drop_dentries
from tests.support.overlay.kernel import image_fs

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.logs("lane.worker_died", "lane.worker_restarted"),
]

DEADLINE_S = 20.0
DEAD_S = 0.5
"""Between two workers."""
IN_ORDER_S = 0.02
"""For a call to have become a request before the next one."""
SLOW_REQUESTS = 4
"""That keep the new worker busy, so that the first program can go on before it hears more."""

STORE = """
import mmap, os, sys
print("ready", flush=True)
sys.stdin.readline()
fd = os.open(sys.argv[2], os.O_RDWR, dir_fd=int(sys.argv[1]))
mapped = mmap.mmap(fd, 4)
mapped[0:1] = b"X"
print("stored", flush=True)
sys.stdin.readline()
"""
"""Stores a byte in a file through a mapping when told to, and keeps it until the next line."""

MAKE = """
import os, sys
print("ready", flush=True)
sys.stdin.readline()
fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600, dir_fd=int(sys.argv[1]))
assert os.fstat(fd).st_ino == int(sys.argv[2]), "it was to have the number of the removed one"
os.write(fd, b"made")
assert os.pread(fd, 10, 0) == b"made"
print("made", flush=True)
"""
"""Makes a file without a name when told to."""


def fill(layer: Path) -> None:
    for name in ("read", "kept"):
        (layer / name).write_text(name)
    (layer / "dir").mkdir()
    for name in ("read", "kept"):
        (layer / "dir" / name).write_text(name)


def fill_with_links(layer: Path) -> None:
    (layer / "dir").mkdir()
    (layer / "dir" / "first").write_text("first")
    (layer / "dir" / "second").hardlink_to(layer / "dir" / "first")


@pytest.fixture(autouse=True)
def _dead_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "FIRST_DELAY_S", DEAD_S)


@contextmanager
def slow_files(tree: Tree) -> Iterator[list[int]]:
    fds = [os.open(tree / f"slow{it}", os.O_RDWR | os.O_CREAT) for it in range(SLOW_REQUESTS)]
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def nothing() -> None:
    pass


def late(
    house: House,
    slow: list[int],
    act: Callable[[], int],
    beside: Callable[[], object] = nothing,
) -> int:
    """Act while the kernel has not yet told a new worker what it forgot; return what that does."""
    flags = flags_of(house.mountpoint)
    house.kill_worker()
    drop_with(house.mountpoint, flags)
    with ThreadPoolExecutor(SLOW_REQUESTS + 2) as pool:
        first = pool.submit(act)
        time.sleep(IN_ORDER_S)
        others = [pool.submit(beside)]
        others += [pool.submit(os.setxattr, fd, "user.x", b"x") for fd in slow]
        for it in others:
            it.result(DEADLINE_S)
        return first.result(DEADLINE_S)


@pytest.mark.parametrize("name", ["read", "made"])
@pytest.mark.parametrize("listings", [0, 1], ids=["looked up once", "looked up twice"])
def test_file_that_is_open_is_opened_again(own_house: House, name: str, listings: int) -> None:
    tree = own_house.active(fill)
    (tree / "made").write_text("made")
    with slow_files(tree) as slow:
        top = os.open(tree.path, os.O_PATH)
        os.stat(name, dir_fd=top)
        for _ in range(listings):
            with os.scandir(tree.path) as found:
                assert any(it.name == name for it in found)
        fd = late(own_house, slow, lambda: os.open(name, os.O_RDONLY, dir_fd=top))
        own_house.worker()  # which has heard all by now
        again = os.open(name, os.O_RDONLY, dir_fd=top)
        for it in (fd, again):
            assert os.pread(it, 10, 0).decode() == name
            os.close(it)
        os.close(top)
    eventually(lambda: is_forgotten(own_house), what="the end of all nodes")


@pytest.mark.modes(Mode.PASSTHROUGH, Mode.NO_OPEN)
def test_file_that_is_removed_then_is_read_until_it_is_closed(own_house: House) -> None:
    tree = own_house.active(fill)
    (tree / "made").write_text("made")
    top = os.open(tree.path, os.O_PATH)

    def open_and_remove() -> int:
        fd = os.open("made", os.O_RDWR, dir_fd=top)
        os.unlink("made", dir_fd=top)
        return fd

    with slow_files(tree) as slow:
        fd = late(own_house, slow[:2], open_and_remove)
    own_house.worker()
    assert os.pread(fd, 10, 0) == b"made"
    os.ftruncate(fd, 2)
    assert os.pwrite(fd, b"MA", 0) == 2
    assert os.fstat(fd).st_size == 2
    assert os.pread(fd, 10, 0) == b"MA"
    os.close(fd)
    os.close(top)
    eventually(lambda: is_forgotten(own_house), what="the end of all nodes")
    work = own_house.layer(tree.id).parent / "work" / "snapfs"
    assert [it for it in os.listdir(work) if it.startswith("o")] == []


@contextmanager
def told(
    program: str, top: int, argument: str, first: Callable[[int], object] = hash
) -> Iterator[Callable[[], int]]:
    """A program that does what it is for when the call that is given is made; then it waits.

    `first` is called before, with its number.
    """
    with subprocess.Popen(
        [sys.executable, "-c", program, str(top), argument],
        pass_fds=[top],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        commands, said = running.stdin, running.stdout

        def tell() -> int:
            first(running.pid)
            commands.write(b"\n")
            commands.flush()
            return len(said.readline())

        try:
            assert said.readline() == b"ready\n"
            yield tell
        finally:
            commands.close()
            running.wait(DEADLINE_S)


@pytest.mark.modes(Mode.NO_OPEN)
@pytest.mark.parametrize(
    ("directory", "name"),
    [(".", "made"), (".", "read"), ("dir", "read")],
    ids=["new", "lower", "lower without a node"],
)
def test_mapped_changes_are_in_the_commit(own_house: House, directory: str, name: str) -> None:
    tree = own_house.active(fill)
    (tree / "made").write_text("made")
    with slow_files(tree) as slow:
        top = os.open(tree / directory, os.O_PATH)
        os.stat(name, dir_fd=top)
        with told(STORE, top, name) as store:
            beside = partial(os.stat, "kept", dir_fd=top)  # so that it is not the only one
            assert late(own_house, slow, store, beside) == len("stored\n")
            own_house.worker()
            time.sleep(DOUBT_S + IN_ORDER_S)  # the kernel was asked whether it has the file
            own_house.snapshots.commit(tree.key, own_house.name())
            assert (tree.upper / directory / name).read_text() == f"X{name[1:]}"
        os.close(top)
    eventually(lambda: is_forgotten(own_house), what="the end of all nodes")


@pytest.mark.modes(Mode.NO_OPEN)
def test_what_is_forgotten_twice_in_a_second_is_forgotten(own_house: House) -> None:
    tree = own_house.active(fill)
    names = ["read", "dir/read"]
    for name in names:
        os.stat(tree / name)
    own_house.kill_worker()
    for _ in range(3):
        for name in names:
            assert (tree / name).read_text() == "read"
        drop_dentries()
    assert (tree / "read").read_text() == "read"
    time.sleep(DOUBT_S + IN_ORDER_S)
    eventually(lambda: is_forgotten(own_house), what="the end of all nodes")


STARVED_S = 4.0
HOG = f"import time; end = time.monotonic() + {STARVED_S}\nwhile time.monotonic() < end: pass"


def starve(pid: int) -> None:
    """Keep a program from running for a while but when nobody else wants the processor."""
    cpu = max(os.sched_getaffinity(0))
    os.sched_setaffinity(pid, {cpu})
    os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
    hog = subprocess.Popen([sys.executable, "-c", HOG])
    os.sched_setaffinity(hog.pid, {cpu})
    Thread(target=hog.wait).start()


@pytest.mark.modes(Mode.NO_OPEN)
def test_copied_hard_link_is_kept_before_its_reply_is_read(own_house: House) -> None:
    """It lies beside removed files, and is none."""
    tree = own_house.active(fill_with_links)
    (tree / "dir" / "first").write_text("first")
    with slow_files(tree) as slow:
        top = os.open(tree / "dir", os.O_PATH)
        os.stat("second", dir_fd=top)
        with told(STORE, top, "second", starve) as store:
            assert late(own_house, slow, store) == len("stored\n")
            own_house.worker()
            time.sleep(DOUBT_S + IN_ORDER_S)
            own_house.snapshots.commit(tree.key, own_house.name())
            assert (tree.upper / "dir" / "second").read_text() == "Xirst"
        os.close(top)


@pytest.mark.modes(Mode.NO_OPEN)
def test_file_without_a_name_is_kept_before_its_reply_is_read(tmp_path: Path, mode: Mode) -> None:
    """It has the number of a removed one, which ext4 gives again at once."""
    with (
        image_fs(tmp_path, "ext4") as disk,
        lanes.house(tmp_path / "house", mode, root=disk / "root") as house,
    ):
        tree = house.active()
        fd = os.open(tree / "removed", os.O_RDWR | os.O_CREAT)
        number = os.fstat(fd).st_ino
        os.unlink(tree / "removed")
        top = os.open(tree.path, os.O_PATH)
        with told(MAKE, top, str(number), starve) as make, slow_files(tree) as slow:

            def close_and_make() -> int:
                os.close(fd)
                return make()

            assert late(house, slow, close_and_make) == len("made\n")
        os.close(top)


def is_forgotten(house: House) -> bool:
    drop_dentries()
    status = house.worker()
    return not (status.nodes or status.lookups or status.files or status.backing)
