"""EIO, ENOSPC or EDQUOT from any call by which a root is changed (tests.crash.each_call).

EDQUOT is what the quota of the host's file system says. Whoever asked is told what it was, what was
acknowledged is there, `fsck` finds nothing at the next start, and the same changes end.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import failing_calls
from tests.support.overlay.kernel import tmpfs

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(900)]

LEAST_CALLS = 60


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return failing_calls.build(tmp_path_factory.mktemp("library"))


@pytest.mark.parametrize("how", ["EIO", "ENOSPC", "EDQUOT", "EIO+", "ENOSPC+", "EDQUOT+"])
def test_it_is_told_and_nothing_acknowledged_is_lost(
    how: str, library: Path, tmp_path: Path
) -> None:
    stride = 2 if how.endswith("+") else 1
    with tmpfs(tmp_path / "place", "size=256m") as place:  # nobody else's writes to wait for
        found = failing_calls.run(library, "tests.crash.each_call", place, how, str(stride))
    print(f"\n| changes, {how} | refused: {found['refused']} | passed over: {found['done']} |")
    assert found["refused"] + found["done"] >= LEAST_CALLS // stride
