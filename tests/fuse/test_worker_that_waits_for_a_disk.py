"""A disk that does not answer: its worker is left waiting, and who waits for it sees no error."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import lanes
from tests.support.daemon import eventually
from tests.support.frozen_disk import frozen, own_disk
from tests.support.lanes import House, Tree, bind_mount

pytestmark = [pytest.mark.fuse, pytest.mark.root]

WATCHDOG_S = 1.0
DEADLINE_S = 30.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with own_disk(tmp_path) as made:
        yield made


@pytest.fixture
def slow(tmp_path: Path, disk: Path) -> Iterator[House]:
    with lanes.house(tmp_path / "house", root=disk / "root", watchdog_s=WATCHDOG_S) as made:
        yield made


def fill(layer: Path) -> None:
    (layer / "dir").mkdir()


class Maker(threading.Thread):
    """Makes a directory; `error` is what it got for it."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self._path = path
        self.error: OSError | None = None

    def run(self) -> None:
        try:
            self._path.mkdir()
        except OSError as error:
            self.error = error

    def made(self) -> bool:
        self.join(DEADLINE_S)
        assert not self.is_alive()
        assert self.error is None
        return self._path.is_dir()


def warmed(house: House) -> Tree:
    """A tree whose directory is in the upper layer, so that a change of it is one call."""
    tree = house.active(fill)
    (tree / "dir" / "first").touch()
    return tree


def waits(house: House, least_s: float = 0.0) -> bool:
    status = house.lane.status(timeout_s=0.2)
    return bool(status.waits_in) and (status.silent_s or 0.0) >= least_s


@pytest.mark.logs("lane.worker_waits")
def test_it_is_not_replaced_and_goes_on(slow: House, disk: Path) -> None:
    tree, worker = warmed(slow), slow.worker().pid
    maker = Maker(tree / "dir" / "new")
    with frozen(disk):
        maker.start()
        eventually(lambda: waits(slow, 4 * WATCHDOG_S), what="a worker that waits for its disk")
        assert slow.lane.status(timeout_s=0.2).pid == worker
    assert maker.made()
    assert slow.worker().pid == worker
    assert slow.lane.status().restarts == 0


@pytest.mark.logs("lane.worker_waits", "lane.left_in_use")
def test_a_stop_leaves_it_to_its_users_and_the_next_start_adopts_it(
    slow: House, disk: Path, tmp_path: Path
) -> None:
    tree, worker = warmed(slow), slow.worker().pid
    with bind_mount(tree.path, tmp_path / "container") as container:
        maker = Maker(container / "dir" / "new")
        with frozen(disk):
            maker.start()
            eventually(lambda: waits(slow), what="a worker that waits for its disk")
            slow.stop()
        assert maker.made()
        slow.start()
        assert slow.worker().pid == worker
        assert (container / "dir" / "new").is_dir()


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
def test_a_kill_takes_effect_when_the_disk_answers_and_the_call_happens_once(
    slow: House, disk: Path
) -> None:
    tree, worker = warmed(slow), slow.worker().pid
    maker = Maker(tree / "dir" / "new")
    with frozen(disk):
        maker.start()
        eventually(lambda: waits(slow), what="a worker that waits for its disk")
        os.kill(worker, signal.SIGKILL)
    assert maker.made()
    assert slow.worker().pid != worker
    assert sorted(os.listdir(tree / "dir")) == ["first", "new"]
