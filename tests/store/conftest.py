from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.store import Store
from tests.store.kit import TABLES


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metadata"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    """An open store that must be without a fault when the test ends."""
    with Store.open(path, TABLES) as store:
        yield store
        assert store.check() == []
