"""Stores that sync with each other without any connection between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.sync.kit import Host


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Callable[[str], Host]]:
    """Return a function that makes a store of this name; each is sound at the end."""
    with ExitStack() as stack:

        def make(name: str) -> Host:
            made = Host(name, tmp_path / name)
            stack.callback(made.close)
            return made

        yield make
