"""What a tree takes is told right when its whiteouts no longer fit one inode."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.lanes import House, drop_dentries
from tests.support.past_python import assert_usage_is_a_walk, listed

pytestmark = [pytest.mark.fuse, pytest.mark.root]
MOST_NAMES = 65000
"""Of a file in ext4, and more than this test needs elsewhere."""


def fill(layer: Path) -> None:
    (layer / "first").write_text("first")
    for above in ("a", "b"):
        (layer / above).mkdir()
        for number in range(10):
            (layer / above / f"{number}").write_text("x")


def test_whiteout_that_can_have_no_more_names_is_counted(own_house: House) -> None:
    tree = own_house.active(fill)
    (tree / "first").unlink()
    assert_usage_is_a_walk(own_house, tree)
    shared = tree.upper.parent / "work" / "snapfs" / "w"
    spare = tree.upper.parent / "spare"
    spare.mkdir()
    for number in range(MOST_NAMES - shared.stat().st_nlink - 5):
        os.link(shared, spare / f"{number}")
    for above in ("a", "b"):
        for name in listed(tree / above):
            (tree / above / name).unlink()
    assert_usage_is_a_walk(own_house, tree)
    for above in ("a", "b"):
        (tree / above).rmdir()
    drop_dentries()
    assert os.listdir(tree.path) == []
    assert_usage_is_a_walk(own_house, tree)
