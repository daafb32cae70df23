"""EIO or ENOSPC from any call by which a backup or a restore changes its target.

The caller is told what it was, the backup that was there stays, a root says that it is not whole,
the source is as it was, and the next run goes on and leaves nothing over (tests.backup.each_call).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import failing_calls
from tests.support.overlay.kernel import tmpfs

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(900)]

LEAST_CALLS = {"backup": 80, "restore": 160}
MOST_PASSED_OVER = 10
"""Calls without which it can do: a link that is copied instead, a draft that is left to the next
run, the end of a mark."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return failing_calls.build(tmp_path_factory.mktemp("library"))


@pytest.mark.parametrize(
    ("how", "stride"), [("EIO", 1), ("ENOSPC", 3), ("EIO+", 6), ("ENOSPC+", 6)]
)
@pytest.mark.parametrize("what", ["backup", "restore"])
def test_it_is_told_and_the_next_run_goes_on(
    what: str, how: str, stride: int, library: Path, tmp_path: Path
) -> None:
    with tmpfs(tmp_path / "place", "size=256m") as place:  # nobody else's writes to wait for
        found = failing_calls.run(library, "tests.backup.each_call", what, place, how, str(stride))
    print(f"\n| {what}, {how} | refused: {found['refused']} | passed over: {found['done']} |")
    assert found["refused"] + found["done"] >= LEAST_CALLS[what] // stride
    assert found["done"] <= MOST_PASSED_OVER
