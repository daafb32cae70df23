"""One real service for all tests of the command."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.support.daemon import RunningDaemon, running


@pytest.fixture(scope="session")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    with running(tmp_path_factory.mktemp("cli")) as daemon:
        yield daemon


_numbers = count(1)


@pytest.fixture
def daemon(_shared: RunningDaemon) -> Iterator[RunningDaemon]:
    """The shared service, emptied after the test."""
    yield _shared
    for record in reversed(_shared.json("snapshot", "list")):
        for target in record["mounted_at"]:
            _shared.run("umount", "--lazy", target)
    while left := _shared.json("snapshot", "list"):
        parents = {record["parent"] for record in left}
        leaves = [record["name"] for record in left if record["name"] not in parents]
        _shared.run("snapshot", "remove", "--", *leaves)
    assert _shared.mounts_beside_lanes() == []


@pytest.fixture
def target(_shared: RunningDaemon) -> Path:
    """An empty directory to mount at."""
    path = _shared.base / "targets" / str(next(_numbers))
    path.mkdir(parents=True)
    return path
