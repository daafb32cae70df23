"""A store with the tables of volumes, and a set in it; without a fault at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.store import Store
from tests.volumes.kit import NOW, TABLES, Clock, Tree, faults


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with Store.open(tmp_path / "metadata", TABLES, clock_ns=clock) as opened:
        yield opened
        assert opened.check() == []
        assert faults(opened) == []


@pytest.fixture
def tree(store: Store) -> Tree:
    return Tree(store)
