"""What tests of the service share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import RunningDaemon, clear
from tests.support.lanes import abort


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    """A service that is killed in the end, with all that it began."""
    made = RunningDaemon(tmp_path)
    made.start()
    yield made
    made.kill()
    abort(tmp_path)
    clear(tmp_path)
