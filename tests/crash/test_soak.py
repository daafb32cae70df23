"""Nothing that the service and its workers hold grows with use."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash import soak


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([5, 5, 5, 5], 0.0),
        ([1, 2, 3, 4], 1.0),
        ([5, 5, 900, 5, 5, 5], 0.0),  # one outlier says nothing
        ([1, 2, 90, 4, 5, 6, 7], 1.0),
        ([7], 0.0),
    ],
)
def test_the_slope_is_that_of_most_samples(values: list[float], expected: float) -> None:
    assert soak.slope(list(enumerate(values))) == expected


def test_a_row_that_grows_is_named() -> None:
    soaked = soak.Soaked()
    for row in soak.ALLOWANCES:
        soaked.samples[row] = [(float(at), 10.0) for at in range(9)]
    assert soaked.growing() == []
    soaked.samples["mounts"] = [(float(at), float(at)) for at in range(9)]
    assert soaked.growing() == ["mounts"]
    assert "grows: mounts" in soaked.table()


def test_a_row_that_grows_with_each_kill_is_named() -> None:
    soaked = soak.Soaked()
    for row in soak.ALLOWANCES:
        soaked.samples[row] = [(float(at), 10.0) for at in range(6)]
        if row not in soak.OF_A_LIFE:
            soaked.killed[row] = [(float(at), 12.0) for at in range(6, 12)]
    for row in soak.OF_THE_MACHINE:
        soaked.killed[row] = [(float(at), soaked.samples[row][0][1]) for at in range(6, 12)]
    assert soaked.growing() == []
    soaked.killed["control, memfds"] = [(float(at), 10.0 + at) for at in range(6, 12)]
    assert soaked.growing() == ["control, memfds"]


@pytest.mark.fuse
@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_grows_with_use(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """The short form of `make soak`."""
    soaked = soak.run(tmp_path, seconds=pytestconfig.getoption("--soak-seconds"), seed=3)
    assert not soaked.failures, soaked.table()
    assert not soaked.growing(), soaked.table()
    assert soaked.kills
    assert all(soaked.own_kills.values()), soaked.own_kills
