"""A change for which there is no room leaves the view as it was, and works once there is room."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from snapfs.overlay import Tree, TreeSpec
from tests.overlay.changes import CHANGES, LOWER
from tests.support.overlay.census import differences, of_tree
from tests.support.overlay.files import OnTree
from tests.support.overlay.kernel import mount, tmpfs
from tests.support.overlay.layers import make_layer
from tests.support.overlay.operations import outcome

pytestmark = pytest.mark.root

MAY_DIFFER = ("mtime_ns",)
ROOMY = "size=8m,nr_inodes=200"
_REMOUNT = 32


def fill_up(directory: Path, free_inodes: int) -> None:
    """Use all inodes but a few."""
    for number in range(os.statvfs(directory).f_ffree - free_inodes):
        (directory / f"filler{number}").touch()


def open_tree(lower: Path, place: Path, *, metacopy: bool) -> OnTree:
    for name in ("upper", "work"):
        (place / name).mkdir(exist_ok=True)
    upper, work = place / "upper", place / "work"
    return OnTree(Tree(TreeSpec(3, (lower,), upper, work, sync=False, metacopy=metacopy)))


@pytest.mark.parametrize("metacopy", [False, True], ids=["whole", "metacopy"])
@pytest.mark.parametrize("name", CHANGES)
def test_the_view_stays_and_a_second_try_succeeds(
    tmp_path: Path, name: str, metacopy: bool
) -> None:
    prepare, change = CHANGES[name]
    lower = make_layer(tmp_path / "lower", LOWER)
    for free in range(12):
        with tmpfs(tmp_path / "place", ROOMY) as place:
            files = open_tree(lower, place, metacopy=metacopy)
            prepare(files)
            before = of_tree(files.tree)
            fill_up(place, free)
            result = outcome(partial(change, files))
            if result != "ok":
                assert result == "ENOSPC"
                assert not differences(before, of_tree(files.tree), leave_out=MAY_DIFFER)
                mount("tmpfs", place, "nr_inodes=1000", _REMOUNT)
                change(files)
            shown = of_tree(files.tree)
            files.forget()
            left = [entry for entry in os.listdir(place / "work/snapfs") if entry[0] in "to"]
            files.tree.close()
            assert left == []
            again = open_tree(lower, place, metacopy=metacopy)
            assert not differences(shown, of_tree(again.tree))
            again.tree.close()
        if result == "ok":
            return
    pytest.fail("not even room for a dozen files was enough")
