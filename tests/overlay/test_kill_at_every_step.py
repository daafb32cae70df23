"""A process killed between any two of its system calls leaves the tree as before or as after."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.overlay.changes import CHANGES
from tests.support import failing_calls

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return failing_calls.build(tmp_path_factory.mktemp("library"))


@pytest.mark.parametrize("metacopy", [(), ("metacopy",)], ids=["whole", "metacopy"])
@pytest.mark.parametrize("name", CHANGES)
def test_the_tree_is_as_before_or_as_after(
    tmp_path: Path, library: Path, name: str, metacopy: tuple[str, ...]
) -> None:
    assert failing_calls.run(library, "tests.overlay.each_step", tmp_path, name, *metacopy)["steps"]
