"""A worker outlives its control process and is taken over by the next, with its mount."""

from __future__ import annotations

import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from snapfs.fuse import adoption, control, mounts, supervisor, unixsocket
from snapfs.fuse.process import WorkerProcess
from snapfs.model import Unavailable
from tests.support.daemon import clear, eventually, processes_below
from tests.support.lanes import House, abort, bind_mount, house

pytestmark = [pytest.mark.fuse, pytest.mark.root]

DEADLINE_S = 20.0


def fill(layer: Path) -> None:
    (layer / "file").write_text("lower")
    (layer / "dir").mkdir()


CONTROL = """
import os, signal, sys
from pathlib import Path
from snapfs import logs
from snapfs.snapshots import Snapshotter
from tests.support.lanes import House

logs.configure()
base, gap = Path(sys.argv[1]), sys.argv[2]
made = House(base)
made.start()
tree = made.active(lambda layer: (layer / "file").write_text("lower"), key="work")
made.snapshots.close()
die = lambda step: os.kill(os.getpid(), signal.SIGKILL) if step == gap else None
made.snapshots = Snapshotter(made.root, trees=made.lanes, steps=die)
(tree / "file").write_text("changed")
print(tree.path, made.worker().pid, flush=True)
sys.stdin.readline()
made.snapshots.commit("work", "done")
"""


class Victim:
    """A control process of its own that dies in the middle of a commit."""

    def __init__(self, base: Path, gap: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CONTROL, f"{base}/house", gap],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert self._process.stdout is not None
        path, pid = self._process.stdout.readline().split()
        self.shown = Path(path)
        self.worker = int(pid)

    def die(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._process.stdin as asked, self._process.stdout:
            asked.write("now\n")
        assert self._process.wait(DEADLINE_S) == -signal.SIGKILL


@contextmanager
def cleared(base: Path) -> Iterator[None]:
    try:
        yield
    finally:
        abort(base)
        clear(base)


@pytest.mark.logs("lane.left_in_use")
def test_freeze_of_a_dead_control_process_is_undone(tmp_path: Path) -> None:
    with cleared(tmp_path):
        victim = Victim(tmp_path, "commit.frozen")
        with bind_mount(victim.shown, tmp_path / "container") as container:
            victim.die()
            writer = threading.Thread(target=(container / "file").write_text, args=("late",))
            writer.start()
            assert (container / "file").read_text() == "changed"
            with house(tmp_path / "house") as made:
                assert made.worker().pid == victim.worker
                assert made.worker().frozen == ()
                writer.join(DEADLINE_S)
                assert not writer.is_alive()
                made.snapshots.commit("work", "done")
                assert (made.on("done") / "file").read_text() == "late"


@pytest.mark.logs("lane.left_in_use")
def test_commit_that_was_recorded_stays_and_its_tree_takes_no_more_changes(tmp_path: Path) -> None:
    with cleared(tmp_path):
        victim = Victim(tmp_path, "commit.recorded")
        with bind_mount(victim.shown, tmp_path / "container") as container:
            victim.die()
            with house(tmp_path / "house") as made:
                assert made.worker().pid == victim.worker
                assert made.worker().frozen == ()
                with pytest.raises(OSError) as refused:
                    (container / "file").write_text("late")
                assert refused.value.errno == errno.EROFS
                assert not victim.shown.exists()
                assert (made.on("done") / "file").read_text() == "changed"


@pytest.mark.logs("lane.left_in_use")
def test_lane_left_in_use_is_adopted_with_all_that_is_open(
    own_house: House, tmp_path: Path
) -> None:
    tree = own_house.active(fill)
    pid = own_house.worker().pid
    with bind_mount(tree.path, tmp_path / "container") as container:
        device = container.stat().st_dev
        with (container / "file").open("r+") as file:
            own_house.stop()
            file.write("still ")
            file.flush()
            own_house.restart()
            assert own_house.worker().pid == pid
            assert own_house.lane.status().restarts == 0
            file.write("open")
        assert (tree / "file").read_text() == "still open"
        assert tree.path.stat().st_dev == device
    assert len(mounts.mounted_at(own_house.mountpoint)) == 1


@pytest.mark.logs("lane.left_in_use", "lane.worker_died", "lane.worker_restarted")
@pytest.mark.parametrize("delay_s", [0.0, 0.2])
def test_lane_in_use_whose_worker_died_just_before_the_stop_is_adopted_too(
    own_house: House, tmp_path: Path, delay_s: float
) -> None:
    tree = own_house.active(fill)
    with (
        bind_mount(tree.path, tmp_path / "container") as container,
        (container / "file").open("r+") as file,
    ):
        os.kill(own_house.worker().pid, signal.SIGKILL)
        time.sleep(delay_s)
        own_house.restart()
        file.write("still open")
        file.flush()
        assert (container / "file").read_text() == "still open"
        (container / "new").write_text("made after")


@pytest.mark.logs("lane.left_in_use")
def test_nothing_is_frozen_while_a_lane_is_left_in_use(own_house: House, tmp_path: Path) -> None:
    tree = own_house.active(fill)
    (tree / "file").stat()
    with bind_mount(tree.path, tmp_path / "container"):
        own_house.stop()
        with pytest.raises(Unavailable, match="still in use"):
            own_house.lane.freeze(tree.id, timeout_s=1)
        own_house.start()
        own_house.lane.freeze(tree.id, timeout_s=5)
        assert own_house.worker().frozen == (tree.id,)
        own_house.lane.thaw(tree.id)


@pytest.mark.logs("lane.left_in_use", "lane.worker_died", "lane.worker_restarted")
def test_adopted_worker_that_dies_is_replaced(own_house: House, tmp_path: Path) -> None:
    tree = own_house.active(fill)
    with bind_mount(tree.path, tmp_path / "container") as container:
        own_house.restart()
        pid = own_house.kill_worker()
        (container / "dir" / "new").write_text("by its successor")
        assert own_house.worker().pid != pid
        assert own_house.lane.status().restarts == 1
        own_house.snapshots.commit(tree.key, "done")
        assert (own_house.on("done") / "dir" / "new").read_text() == "by its successor"


@pytest.mark.logs("lane.left_in_use")
def test_stop_of_an_adopted_idle_lane_leaves_nothing(own_house: House, tmp_path: Path) -> None:
    tree = own_house.active(fill)
    with bind_mount(tree.path, tmp_path / "container"):
        own_house.restart()
    own_house.stop()
    assert not mounts.mounted_at(own_house.mountpoint)
    assert not processes_below(own_house.base)
    assert not list(own_house.door.parent.iterdir())


@pytest.mark.logs("lane.left_in_use", "lane.not_adopted", "lane.stale_mount_cleared")
def test_worker_of_another_root_is_not_adopted(own_house: House, tmp_path: Path) -> None:
    tree = own_house.active(fill)
    pid = own_house.worker().pid
    with bind_mount(tree.path, tmp_path / "container") as container:
        own_house.stop()
        other = House(own_house.base, root=own_house.base / "other-root")
        try:
            other.start()
            assert other.worker().pid != pid
            assert not tree.path.exists()
            (container / "file").write_text("served on")
            assert (container / "file").read_text() == "served on"
        finally:
            other.stop()
            other.snapshots.close()
    eventually(lambda: pid not in processes_below(own_house.base), what="the old worker's end")


@pytest.mark.logs("lane.left_in_use", "lane.not_adopted", "lane.stale_mount_cleared")
def test_worker_that_speaks_another_protocol_is_not_adopted(
    own_house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = own_house.active(fill)
    pid = own_house.worker().pid
    with bind_mount(tree.path, tmp_path / "container") as container:
        own_house.stop()
        monkeypatch.setattr(control, "PROTOCOL", control.PROTOCOL + 1)
        own_house.start()
        assert own_house.worker().pid != pid
        assert (container / "file").read_text() == "lower"


@pytest.mark.logs("lane.left_in_use")
def test_worker_of_another_version_is_adopted_and_says_so(
    own_house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = own_house.active(fill)
    pid, version = own_house.worker().pid, own_house.lane.status().worker_version
    with bind_mount(tree.path, tmp_path / "container"):
        own_house.stop()
        monkeypatch.setattr(adoption, "__version__", "99.0")
        own_house.start()
        assert own_house.worker().pid == pid
        assert own_house.lane.status().worker_version == version


@pytest.mark.logs(
    "lane.left_in_use", "lane.restart_failed", "lane.worker_died", "lane.worker_restarted"
)
def test_next_worker_that_does_not_start_is_tried_again(
    own_house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = own_house.active(fill)
    pid = own_house.worker().pid
    begin, failures = WorkerProcess.begin, [Unavailable("not this time")]

    def fail_once(self: WorkerProcess, *arguments: Any) -> None:
        if failures:
            raise failures.pop()
        begin(self, *arguments)

    with bind_mount(tree.path, tmp_path / "container") as container:
        own_house.stop()
        monkeypatch.setattr(supervisor, "__version__", "99.0")
        monkeypatch.setattr(WorkerProcess, "begin", fail_once)
        own_house.start()
        assert not failures
        assert own_house.worker().pid != pid
        (container / "file").write_text("by the next")
        assert (container / "file").read_text() == "by the next"


@pytest.mark.logs(
    "lane.worker_hangs", "lane.worker_ended", "lane.stale_mount_cleared", "lane.left_in_use"
)
def test_worker_that_hangs_is_ended_and_its_users_get_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adoption, "ANSWER_TIMEOUT_S", 0.5)
    with house(tmp_path / "house", watchdog_s=1.0) as made:
        tree = made.active(fill)
        hung = made.worker().pid
        with bind_mount(tree.path, tmp_path / "container") as container:
            held = os.open(container / "dir", os.O_PATH)
            made.stop()
            with stopped(hung), ThreadPoolExecutor(1) as pool:
                waiting = pool.submit((container / "dir" / "new").write_text, "nobody answers")
                made.restart()
                assert isinstance(waiting.exception(DEADLINE_S), OSError)
                assert not Path(f"/proc/{hung}").exists()
            for path in (container / "file", Path(f"/proc/self/fd/{held}/name")):
                with pytest.raises(OSError) as refused:
                    path.stat()
                assert refused.value.errno == errno.ENOTCONN
            os.close(held)
        (tree / "file").write_text("by the next")
        made.snapshots.commit(tree.key, "done")


@pytest.mark.logs("lane.left_in_use")
def test_worker_that_is_slow_is_waited_for_where_its_mount_would_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adoption, "ANSWER_TIMEOUT_S", 0.1)
    with house(tmp_path / "house", watchdog_s=DEADLINE_S) as made:
        tree = made.active(fill)
        slow = made.worker().pid
        with bind_mount(tree.path, tmp_path / "container") as container:
            made.stop()
            with stopped(slow):
                threading.Timer(1.0, os.kill, (slow, signal.SIGCONT)).start()
                made.restart()
            assert made.worker().pid == slow
            (container / "file").write_text("served on")


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Keep a process from running meanwhile, if it lives."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def test_door_is_for_root_and_lets_one_control_process_in(own_house: House) -> None:
    assert stat.S_IMODE(own_house.door.stat().st_mode) == 0o600
    assert stat.S_IMODE(own_house.door.parent.stat().st_mode) == 0o700
    answer = ask(own_house.door, control.Hello(control.PROTOCOL, "1", "test"))
    assert isinstance(answer, control.Refused)
    assert "another control process is connected" in answer.reason
    assert own_house.lane.status().serving


@pytest.mark.logs("lane.left_in_use")
def test_visitors_who_vanish_or_talk_rubbish_keep_nobody_out(
    own_house: House, tmp_path: Path
) -> None:
    tree = own_house.active(fill)
    pid = own_house.worker().pid
    with bind_mount(tree.path, tmp_path / "container"):
        own_house.stop()
        silent = unixsocket.connect(own_house.door, DEADLINE_S)
        for packet in (b"rubbish", b"", control.encode(control.Stop(1)), hello()) * 10:
            with unixsocket.connect(own_house.door, DEADLINE_S) as visitor:
                visitor.send(packet)
        with unixsocket.connect(own_house.door, DEADLINE_S) as visitor:
            visitor.send(hello())
            visitor.settimeout(DEADLINE_S)
            assert isinstance(control.decode(visitor.recv(65536)), control.Welcome)
            visitor.send(control.encode(control.Freeze(1, tree.id, 5.0)))  # and is gone
        own_house.start()
        assert own_house.worker().pid == pid
        assert own_house.worker().frozen == ()
        silent.close()


def hello() -> bytes:
    return control.encode(control.Hello(control.PROTOCOL, "1", "test"))


def ask(door: Path, message: control.Message) -> control.Message:
    with unixsocket.connect(door, DEADLINE_S) as channel:
        channel.settimeout(DEADLINE_S)
        channel.send(control.encode(message))
        packet, fds, _, _ = socket.recv_fds(channel, control.MAX_PACKET_BYTES, 1)
        assert not fds
        return control.decode(packet)


@contextmanager
def covered(mountpoint: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "cover", mountpoint], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", mountpoint], check=True)


@pytest.mark.logs("lane.left_in_use", "lane.put_back")
def test_lane_that_was_unmounted_before_the_start_is_put_back(
    own_house: House, tmp_path: Path
) -> None:
    tree = own_house.active(fill)
    pid = own_house.worker().pid
    with bind_mount(tree.path, tmp_path / "container") as container:
        own_house.stop()
        mounts.unmount(own_house.mountpoint, mounts.MNT_DETACH)
        own_house.restart()
        assert own_house.worker().pid == pid
        (own_house.mountpoint / str(tree.id) / "new").write_text("of the lane")
        assert (container / "new").read_text() == "of the lane"
        assert container.stat().st_dev == own_house.mountpoint.stat().st_dev
    own_house.snapshots.commit(tree.key, "done")
    assert (own_house.on("done") / "new").read_text() == "of the lane"


@pytest.mark.logs("lane.left_in_use", "lane.put_back", "lane.displaced")
@pytest.mark.parametrize("is_unmounted", [False, True], ids=["mounted", "unmounted"])
def test_lane_that_was_covered_before_the_start_is_adopted_and_told(
    own_house: House, tmp_path: Path, *, is_unmounted: bool
) -> None:
    tree = own_house.active(fill)
    pid = own_house.worker().pid
    with bind_mount(tree.path, tmp_path / "container") as container:
        own_house.stop()
        if is_unmounted:
            mounts.unmount(own_house.mountpoint, mounts.MNT_DETACH)
        with covered(own_house.mountpoint):
            own_house.restart()
            own_house.lanes.mend()
            assert not own_house.lanes.in_place
            status = own_house.lane.status()
            assert (status.pid, status.covered_by) == (pid, "tmpfs")
            assert status.displaced == (str(container),)
            (container / "file").write_text("goes on")
            assert os.listdir(own_house.mountpoint) == []
        own_house.lanes.mend()
        assert own_house.lanes.in_place
        assert (own_house.mountpoint / str(tree.id) / "file").read_text() == "goes on"
    own_house.snapshots.commit(tree.key, "done")
