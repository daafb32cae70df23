"""A lane for each module, a snapshot for each test, and an end for what is stuck."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

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


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with lanes.house(tmp_path_factory.mktemp("house")) as made:
        yield made


@pytest.fixture
def own_house(tmp_path: Path) -> Iterator[House]:
    """A lane of the test's own, to be broken."""
    with lanes.house(tmp_path / "house") as made:
        yield made


@pytest.fixture
def tree(house: House) -> Tree:
    """An empty active snapshot."""
    return house.active()
