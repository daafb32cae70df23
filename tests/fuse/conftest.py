"""A lane for each module, a snapshot for each test, and an end for what is stuck."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.fuse import channel
from snapfs.fuse.modes import Mode
from tests.support import lanes
from tests.support.lanes import House, Tree

STUCK_AFTER_S = 60.0


@pytest.fixture(autouse=True)
def _never_stuck(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    longer = request.node.get_closest_marker("timeout")
    limit_s = longer.args[0] / 2 if longer else STUCK_AFTER_S
    with lanes.aborting_after(tmp_path_factory.getbasetemp(), limit_s):
        yield


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test once for each mode of its mark `modes`, else of its module's `MODES`.

    Where pyfuse3 serves alone a lane without opens is one of passthrough: both go without.
    """
    mark = metafunc.definition.get_closest_marker("modes")
    modes = mark.args if mark else getattr(metafunc.module, "MODES", None)
    if modes is not None and not channel.loaded() and Mode.PASSTHROUGH in modes:
        modes = [it for it in modes if it is not Mode.NO_OPEN]
    if modes is not None and "mode" in metafunc.fixturenames:
        metafunc.parametrize("mode", modes, ids=lambda it: it.value, scope="module")


@pytest.fixture(scope="module")
def mode() -> Mode:
    return Mode.PASSTHROUGH


@pytest.fixture(scope="module")
def metacopy() -> bool:
    """Whether a change of attributes copies no data in the lanes of a module."""
    return True


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, mode: Mode, metacopy: bool) -> Iterator[House]:
    with lanes.house(tmp_path_factory.mktemp("house"), mode, metacopy=metacopy) as made:
        yield made


@pytest.fixture
def own_house(tmp_path: Path, mode: Mode, metacopy: bool) -> Iterator[House]:
    """A lane of the test's own, to be broken."""
    with lanes.house(tmp_path / "house", mode, metacopy=metacopy) as made:
        yield made


@pytest.fixture
def tree(house: House) -> Tree:
    """An empty active snapshot."""
    return house.active()
