"""Anchors on a store of their own, with a clock that tests set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from snapfs.anchors import Anchors
from snapfs.store import Store
from tests.anchors.kit import NOW, SECOND, TABLES, Clock


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def replica(tmp_path: Path, clock: Clock) -> Iterator[Callable[..., Anchors]]:
    """Return a function that opens another store; each must be without a fault at the end."""
    with ExitStack() as stack:
        opened: list[tuple[Store, Anchors]] = []

        def open_another(tolerance_ns: int = 10 * SECOND) -> Anchors:
            path = tmp_path / f"metadata{len(opened)}"
            store = stack.enter_context(Store.open(path, TABLES, clock_ns=clock))
            opened.append((store, Anchors(store, tolerance_ns=tolerance_ns)))
            return opened[-1][1]

        yield open_another
        for store, anchors in opened:
            assert store.check() == []
            assert anchors.check() == []


@pytest.fixture
def anchors(replica: Callable[..., Anchors]) -> Anchors:
    return replica()
