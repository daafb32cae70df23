"""Random operations on a snapshot in a lane and on kernel overlayfs with the same layers."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings

from snapfs.fuse.modes import Mode
from tests.support import lanes
from tests.support.lanes import House, Tree, drop_dentries
from tests.support.overlay.census import Census, of_mount
from tests.support.overlay.files import OnMount
from tests.support.overlay.machine import Candidate, OverlayMachine

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.plain,
    pytest.mark.logs("lane.worker_died", "lane.worker_restarted"),
]
MODES = (Mode.PASSTHROUGH, Mode.NO_OPEN)


class LaneCandidate(Candidate):
    """An active snapshot whose layer directories are those that the machine gives."""

    def __init__(self, house: House, lowers: list[Path], upper: Path, work: Path) -> None:
        self.house = house
        fills = [lambda layer, lower=lower: replace(layer, lower) for lower in reversed(lowers)]
        self.tree = prepared(house, house.base_layers(*fills), upper, work)
        self.files = OnMount(self.tree.path)
        self.reopened = 0

    def census(self) -> Census:
        return of_mount(self.tree.path)

    def forget(self) -> None:
        drop_dentries()

    def close(self, *, settle: bool) -> None:
        """Commit, which settles; or begin anew with what is on disk."""
        if settle:
            self.house.snapshots.commit(self.tree.key, self.house.name())
            return
        self.reopened += 1
        if self.reopened % 2:
            self.house.kill_worker()
            self.house.worker()
        else:
            self.house.stop()
            self.house.start()


def replace(directory: Path, by: Path) -> None:
    directory.rmdir()
    directory.symlink_to(by)


def prepared(house: House, parent: str, upper: Path, work: Path) -> Tree:
    tree = house.on(parent)
    replace(tree.upper, upper)
    replace(tree.upper.parent / "work", work)
    return tree


class LaneMachine(OverlayMachine):
    house: ClassVar[House]
    mode = Mode.PASSTHROUGH

    def open(self, lowers: list[Path], upper: Path, work: Path) -> Candidate:
        again: Candidate | None = getattr(self, "candidate", None)
        return again or LaneCandidate(self.house, lowers, upper, work)


class MetacopyMachine(LaneMachine):
    """In a lane that copies no data for a change of attributes."""


class NoOpenMetacopyMachine(MetacopyMachine):
    mode = Mode.NO_OPEN


@pytest.fixture(scope="module", autouse=True)
def _lane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with ExitStack() as stack:
        base = tmp_path_factory.mktemp("machine")
        for machine in (LaneMachine, MetacopyMachine, NoOpenMetacopyMachine):
            place = base / machine.__name__
            place.mkdir()
            made = lanes.house(place, machine.mode, metacopy=machine is not LaneMachine)
            machine.house = stack.enter_context(made)
        LaneMachine.base_directory = tempfile.mkdtemp(dir=base)
        stack.callback(shutil.rmtree, LaneMachine.base_directory)
        yield


SETTINGS = settings(
    max_examples=15,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestLaneBehavesAsOverlayfs = LaneMachine.TestCase
TestLaneBehavesAsOverlayfs.settings = SETTINGS
TestMetacopiesBehaveAsOverlayfs = MetacopyMachine.TestCase
TestMetacopiesBehaveAsOverlayfs.settings = SETTINGS
TestMetacopiesWithoutOpensBehaveAsOverlayfs = pytest.mark.channel("no opens")(
    NoOpenMetacopyMachine.TestCase
)
TestMetacopiesWithoutOpensBehaveAsOverlayfs.settings = SETTINGS
