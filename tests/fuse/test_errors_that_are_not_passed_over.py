"""What goes wrong while a worker is looked for, started or asked is told; nothing is guessed."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from snapfs.fuse import adoption, asking, control
from snapfs.fuse.handover import Connection, Init, InitRequest
from snapfs.fuse.lanemount import LaneMount
from snapfs.fuse.modes import Mode
from snapfs.fuse.process import WorkerProcess, WorkerSettings
from snapfs.fuse.recovery import Recovery
from snapfs.model import Quota, SnapfsError, SnapshotId, Unavailable
from snapfs.overlay import Inodes, Places, Tree, TreeSpec
from snapfs.overlay.node import Dir
from tests.support.lanes import House

pytestmark = [pytest.mark.root, pytest.mark.fuse]


@pytest.fixture
def settings(tmp_path: Path) -> WorkerSettings:
    place = tmp_path / "place"
    (place / "layers").mkdir(parents=True)
    return WorkerSettings(
        *("main", place, place, place / "door.sock", Mode.PASSTHROUGH, "info", "text", Quota())
    )


@pytest.fixture
def init() -> InitRequest:
    return InitRequest(2, 38, 1 << 20, Init.ASYNC_READ)


def test_worker_that_cannot_be_reached_is_not_taken_for_none(settings: WorkerSettings) -> None:
    """Two would read from one connection."""
    adoption.end_worker(settings, 0.1)  # nobody is there
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(os.fspath(settings.door))
        adoption.end_worker(settings, 0.1)  # it does not listen
        listener.listen(0)
        waiting = []
        try:
            while True:
                client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                waiting.append(client)
                client.setblocking(False)
                if client.connect_ex(os.fspath(settings.door)) == errno.EAGAIN:
                    break
            with pytest.raises(Unavailable, match="a worker may be at"):
                adoption.end_worker(settings, 0.1)
        finally:
            for client in waiting:
                client.close()


def test_welcome_without_room_for_its_descriptors_says_so(
    settings: WorkerSettings, init: InitRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    served = control.Served.of(settings.root, settings.mountpoint, "0:1")
    welcome = control.Welcome.of("0", "main", served, init, Mode.PASSTHROUGH)
    before = len(os.listdir("/proc/self/fd"))
    with ours, theirs:
        socket.send_fds(theirs, [control.encode(welcome)], [0, 0, 0, 0])
        monkeypatch.setattr(adoption, "_MOST_FDS", 1)
        with pytest.raises(Unavailable, match="no room for the descriptors"):
            adoption._receive_welcome(ours, 1)
        assert len(os.listdir("/proc/self/fd")) == before


def test_mount_that_cannot_be_looked_at_leaves_no_descriptor(
    settings: WorkerSettings, init: InitRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(os.listdir("/proc/self/fd"))

    def fails(_: object) -> bool:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(LaneMount, "is_in_place", property(fails))
    connection = Connection.of(os.open("/dev/fuse", os.O_RDWR), init)
    with pytest.raises(OSError, match="too many"):
        LaneMount.adopt(settings.mountpoint, connection, "0:1", Mode.PASSTHROUGH)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
def test_process_at_hand_that_died_with_its_worker_costs_no_delay(
    own_house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = own_house.active(lambda layer: (layer / "file").write_text("lower"))
    mount = own_house.lane._seat.mount
    assert mount is not None
    taken: list[WorkerProcess] = []

    def dead() -> WorkerProcess | None:
        if taken:
            return None
        made = own_house.lane._replacing._load(mount)
        taken.append(made)
        made.kill()
        return made

    monkeypatch.setattr(own_house.lane._replacing._spare, "take", dead)
    own_house.kill_worker()
    assert (tree / "file").read_text() == "lower"
    assert len(taken) == 1
    assert own_house.worker().pid != taken[0].pid
    assert own_house.lane.status().deaths == 1


def ask_for_ever(worker: WorkerProcess) -> None:
    while True:
        worker._send(control.GetStatus(0))


def test_question_to_a_worker_that_takes_none_ends_with_its_deadline(
    own_house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = own_house.lane._seat.worker
    assert worker is not None
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        with pytest.raises(Unavailable):
            ask_for_ever(worker)
        monkeypatch.setattr(asking, "CALL_TIMEOUT_S", 0.2)
        with pytest.raises(SnapfsError):
            own_house.lane.rebind(SnapshotId(1))
    finally:
        os.kill(worker.pid, signal.SIGCONT)


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    """A tree of which a later worker knows nothing: `one/sub/file` and `two`."""
    for name in ("lower", "upper/one/sub", "upper/two", "work"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "upper/one/sub/file").write_bytes(b"x")
    places = Places(os.memfd_create("places", os.MFD_CLOEXEC))
    spec = TreeSpec(1, (tmp_path / "lower",), tmp_path / "upper", tmp_path / "work", sync=False)
    made = Tree(spec, Inodes(places))
    yield made
    made.close()


def recovery_of(tree: Tree) -> tuple[Recovery, list[Any]]:
    found: list[Any] = []
    forest = SimpleNamespace(
        inodes=tree.inodes,
        find=lambda _: (SimpleNamespace(tree=tree), None),
        is_known=lambda _: False,
        remember=found.append,
    )
    return Recovery(cast(Any, forest)), found


def number_of_file(tree: Tree) -> int:
    here = tree.root
    for name in (b"one", b"sub"):
        found = tree.lookup(here, name)
        assert isinstance(found, Dir)
        here = found
    return tree.lookup(here, b"file").ino


async def move_behind_the_walk(tree: Tree, recovery: Recovery) -> None:
    """Move `sub` from where the walk has not been to where it has."""
    one, two = tree.lookup(tree.root, b"one"), tree.lookup(tree.root, b"two")
    here, there = (one, two), (two, one)
    while True:
        await trio.lowlevel.checkpoint()
        for remembered in recovery._trees.values():
            walked = remembered.walked.values()
            for old, new in (here, there):
                if new.ino in walked and old.ino not in walked and _has(tree, old):
                    tree.rename(old, b"sub", new, b"sub")
                    return


def _has(tree: Tree, directory: Any) -> bool:
    return any(entry.name == b"sub" for entry in tree.readdir(directory))


@pytest.mark.parametrize("first", [b"one", b"two"])
async def test_directory_that_moves_behind_a_walk_hides_no_file(tree: Tree, first: bytes) -> None:
    ino = number_of_file(tree)
    parts = [tree.lookup(tree.root, name) for name in (b"one", b"two")]
    for part in parts:  # so that a walk of each is seen
        tree.mkdir(part, b"mark", 0o755, uid=0, gid=0, umask=0)
    if first == b"two":
        tree.rename(parts[0], b"sub", parts[1], b"sub")
    recovery, found = recovery_of(tree)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(move_behind_the_walk, tree, recovery))
        with trio.fail_after(20):
            assert await recovery.recover(ino)
        nursery.cancel_scope.cancel()
    assert [node.ino for node in found] == [ino]


@pytest.mark.logs("node.recovery_failed")
@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE])
async def test_directory_that_cannot_be_read_is_an_error_and_no_missing_file(
    tree: Tree, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ino = number_of_file(tree)
    recovery, _ = recovery_of(tree)

    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(tree, "readdir", fails)
        patched.setattr(tree, "names_by_number", fails)
        with pytest.raises(OSError, match=os.strerror(number)):
            await recovery.recover(ino)
    assert await recovery.recover(ino)
