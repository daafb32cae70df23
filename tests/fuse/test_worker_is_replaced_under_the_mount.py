"""A worker that dies is replaced; the mount, and who uses it, stays."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from tests.support import lanes
from tests.support.daemon import eventually
from tests.support.lanes import House, bind_mount

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.plain,
    pytest.mark.logs("lane.worker_died", "lane.worker_restarted", "lane.left_in_use"),
]
MODES = (Mode.PASSTHROUGH, Mode.NO_OPEN)

DEADLINE_S = 20.0


def fill(layer: Path) -> None:
    (layer / "file").write_text("lower")
    (layer / "dir" / "deep").mkdir(parents=True)
    (layer / "dir" / "deep" / "file").write_text("deep")


def test_killed_worker_on_an_idle_mount_is_not_noticed(own_house: House, tmp_path: Path) -> None:
    tree = own_house.active(fill)
    with bind_mount(tree.path, tmp_path / "container") as container:
        (container / "dir" / "deep" / "file").write_text("copied up")
        numbers = [path.stat().st_ino for path in sorted(container.rglob("*"))]
        killed = own_house.kill_worker()
        assert (container / "dir" / "deep" / "file").read_text() == "copied up"
        assert (container / "file").read_text() == "lower"
        (container / "dir" / "new").write_text("made after")
        (container / "dir" / "new").unlink()
        os.rename(container / "dir", container / "moved")
        os.rename(container / "moved", container / "dir")
        assert [path.stat().st_ino for path in sorted(container.rglob("*"))] == numbers
        assert own_house.worker().pid != killed
        assert own_house.lane.status().restarts == 1


def test_uncached_attributes_are_asked_of_the_new_worker(own_house: House) -> None:
    tree = own_house.active(fill)
    (tree / "file").write_text("one")  # a write makes the kernel forget size and times
    own_house.kill_worker()
    assert (tree / "file").stat().st_size == 3
    assert sorted(os.listdir(tree.path)) == ["dir", "file"]
    with (tree / "file").open("a") as file:
        file.write(" two")
    assert (tree / "file").read_text() == "one two"


def test_worker_can_be_killed_again_and_again(own_house: House) -> None:
    tree = own_house.active(fill)
    for turn in range(3):
        own_house.kill_worker()
        (tree / f"n{turn}").touch()
    own_house.worker()
    assert own_house.lane.status().restarts == 3


def test_requests_made_while_no_worker_lives_are_answered_by_the_next(own_house: House) -> None:
    tree = own_house.active(fill)
    seen: list[str] = []
    os.kill(own_house.worker().pid, signal.SIGKILL)
    readers = [
        threading.Thread(target=lambda: seen.append((tree / "dir" / "deep" / "file").read_text()))
        for _ in range(5)
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(DEADLINE_S)
    assert seen == ["deep"] * 5


@pytest.mark.channel("handles of a dead worker")
@pytest.mark.modes(Mode.PASSTHROUGH)
def test_handle_of_a_dead_worker_serves_on_and_is_never_mistaken(own_house: House) -> None:
    """A handle that the worker serves itself: this file's are, for its set-id bit."""
    tree = own_house.active(fill)
    (tree / "file").chmod(0o4755)
    fd = os.open(tree / "file", os.O_RDWR)
    own_house.kill_worker()
    others = [os.open(tree / f"other{n}", os.O_RDWR | os.O_CREAT) for n in range(20)]
    assert os.pwrite(fd, b"L", 0) == 1
    assert os.pread(fd, 10, 0) == b"Lower"
    for other in others:
        assert os.pread(other, 10, 0) == b""
        os.close(other)
    os.close(fd)
    assert (tree / "file").read_text() == "Lower"


@pytest.mark.modes(Mode.PASSTHROUGH)
@pytest.mark.logs("lane.worker_hangs")
def test_worker_that_hangs_is_ended_and_replaced(tmp_path: Path) -> None:
    with lanes.house(tmp_path / "house", watchdog_s=1.0) as made:
        tree = made.active(fill)
        hung = made.worker().pid
        os.kill(hung, signal.SIGSTOP)
        (tree / "dir" / "new").write_text("by the next")
        assert made.worker().pid != hung
        assert not running(hung)
        assert made.lane.status().restarts == 1


def test_frozen_snapshot_stays_frozen(own_house: House) -> None:
    tree = own_house.active(fill)
    (tree / "dir").stat()
    own_house.lane.freeze(tree.id, timeout_s=5)
    own_house.kill_worker()
    assert own_house.worker().frozen == (tree.id,)
    writer = threading.Thread(target=(tree / "dir" / "late").touch)
    writer.start()
    assert (tree / "file").read_text() == "lower"
    assert not (tree.upper / "dir").exists()
    own_house.lane.thaw(tree.id)
    writer.join(DEADLINE_S)
    assert (tree.upper / "dir" / "late").exists()


def test_freeze_that_ends_with_the_control_process_does_so_in_the_next_worker(
    own_house: House, tmp_path: Path
) -> None:
    tree = own_house.active(fill)
    (tree / "file").stat()
    own_house.lane.freeze(tree.id, timeout_s=5, lasting=False)
    own_house.kill_worker()
    assert own_house.worker().frozen == (tree.id,)
    with bind_mount(tree.path, tmp_path / "container") as container:
        own_house.stop()
        writer = threading.Thread(target=(container / "dir" / "late").touch, daemon=True)
        writer.start()
        writer.join(DEADLINE_S)
        assert not writer.is_alive()


def test_freeze_asked_while_the_worker_is_dead_reaches_the_next(own_house: House) -> None:
    tree = own_house.active(fill)
    (tree / "file").stat()
    own_house.kill_worker()
    own_house.lane.freeze(tree.id, timeout_s=DEADLINE_S)
    assert own_house.worker().frozen == (tree.id,)
    own_house.lane.thaw(tree.id)
    (tree / "file").write_text("thawed")


def test_commit_goes_through_although_the_worker_dies(own_house: House) -> None:
    tree = own_house.active(fill)
    (tree / "file").write_text("changed")
    os.kill(own_house.worker().pid, signal.SIGKILL)
    own_house.snapshots.commit(tree.key, "done")
    assert (own_house.on("done") / "file").read_text() == "changed"


@pytest.mark.parametrize("removed", ["before", "after", "replaced after"])
def test_number_of_a_removed_open_file_is_not_given_to_another(
    own_house: House, removed: str
) -> None:
    """Else the old descriptor would read the new file: the kernel knows files by their numbers."""
    tree = own_house.active(fill)
    (tree / "file").unlink()
    (tree / "file").write_bytes(b"old" * 1000)
    (tree / "other").touch()
    fd = os.open(tree / "file", os.O_RDONLY)
    number = os.fstat(fd).st_ino
    if removed == "before":
        (tree / "file").unlink()
    own_house.kill_worker()
    own_house.worker()
    if removed == "after":
        (tree / "file").unlink()
    elif removed == "replaced after":
        os.rename(tree / "other", tree / "file")
    for count in range(50):
        (tree / f"new{count}").write_bytes(b"new" * 1000)
        assert (tree / f"new{count}").stat().st_ino != number
    with contextlib.suppress(OSError):  # ESTALE, or what the kernel has in memory
        assert os.pread(fd, 3, 0) == b"old"
    os.close(fd)
    work = tree.upper.parent / "work" / "snapfs"
    eventually(lambda: not [it for it in os.listdir(work) if it[0] in "to"], what="a clean work")


def test_unlinked_files_of_a_dead_worker_leave_no_rubbish(own_house: House) -> None:
    tree = own_house.active(fill)
    fd = os.open(tree / "file", os.O_RDWR)
    (tree / "file").unlink()
    own_house.kill_worker()
    (tree / "dir").stat()
    assert sorted(os.listdir(tree.path)) == ["dir"]
    os.close(fd)
    work = tree.upper.parent / "work" / "snapfs"
    eventually(lambda: not [it for it in os.listdir(work) if it[0] in "to"], what="a clean work")


def test_worker_serves_on_when_its_supervisor_is_gone(own_house: House, tmp_path: Path) -> None:
    tree = own_house.active(fill)
    pid = own_house.worker().pid
    with bind_mount(tree.path, tmp_path / "container") as container:
        own_house.stop()
        assert (tree / "file").read_text() == "lower"
        assert (container / "file").read_text() == "lower"
        (container / "dir" / "new").write_text("nobody watches")
        assert (container / "dir" / "new").read_text() == "nobody watches"
    eventually(lambda: not running(pid), what="the worker's end")


def running(pid: int) -> bool:
    """Whether a process lives; one that ended is reaped by its lane."""
    try:
        return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()
    except FileNotFoundError:
        return False
