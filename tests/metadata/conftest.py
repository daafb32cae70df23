"""Metadata on a store of its own; the store is without a fault at the end of every test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.metadata import Metadata, checking
from snapfs.store import Store
from tests.metadata.kit import TABLES, Backend, Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def backend() -> Backend:
    return Backend()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with Store.open(tmp_path / "metadata", TABLES, clock_ns=clock) as opened:
        yield opened
        assert opened.check() == []
        with opened.view() as tx:
            assert list(checking.check(tx)) == []


@pytest.fixture
def metadata(store: Store, tmp_path: Path, clock: Clock, backend: Backend) -> Iterator[Metadata]:
    with Metadata(store, tmp_path / "content", {"snapfs": backend}, clock_ns=clock) as built:
        yield built
