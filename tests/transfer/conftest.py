"""Roots without any worker, and layers that have everything a layer can have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.transfer.kit import Root


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Callable[[str], Root]]:
    """Return a function that makes a root of this name; each is sound at the end."""
    with ExitStack() as stack:

        def make(name: str) -> Root:
            made = Root(tmp_path / name)
            stack.callback(made.close)
            return made

        yield make
