"""EIO, ENOSPC or EDQUOT from any call of an update, while others read (tests.store.each_call).

The last call of a commit writes a meta page; when that fails, LMDB refuses every further
transaction of the process (MDB_PANIC). Reading goes on all the same, and so do updates when all
that was missing is space.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import failing_calls

LEAST_REFUSED = 2
"""That of pages and that of the meta page."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return failing_calls.build(tmp_path_factory.mktemp("library"))


@pytest.mark.parametrize("how", ["EIO", "ENOSPC", "EDQUOT", "EIO+", "ENOSPC+", "EDQUOT+"])
def test_reading_goes_on_and_what_was_refused_is_not_there(
    how: str, library: Path, path: Path
) -> None:
    found = failing_calls.run(library, "tests.store.each_call", path, how)
    assert found["refused"] >= LEAST_REFUSED


def test_a_commit_that_may_have_happened_ends_the_updates_and_stays_as_it_was_shown(
    library: Path, path: Path
) -> None:
    found = failing_calls.run(library, "tests.store.each_call", path, "EDQUOT!")
    assert found["refused"] == 1  # at the meta page
