"""Random operations on a Tree and on kernel overlayfs with the same layers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from snapfs.overlay import Tree, TreeSpec
from tests.support.overlay.census import Census, of_tree
from tests.support.overlay.files import OnTree
from tests.support.overlay.machine import Candidate, OverlayMachine

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(600)]


class TreeCandidate(Candidate):
    def __init__(self, lowers: list[Path], upper: Path, work: Path) -> None:
        self.tree = Tree(TreeSpec(7, tuple(lowers), upper, work, sync=False))
        self.files: OnTree = OnTree(self.tree)

    def census(self) -> Census:
        return of_tree(self.tree)

    def forget(self) -> None:
        self.files.forget()
        assert not len(self.tree.inodes)

    def close(self, *, settle: bool) -> None:
        self.files.forget()
        if settle:
            self.tree.settle()
        self.tree.close()


class TreeMachine(OverlayMachine):
    def open(self, lowers: list[Path], upper: Path, work: Path) -> Candidate:
        return TreeCandidate(lowers, upper, work)


class TreeMachineOnTmpfs(TreeMachine):
    base_directory = "/dev/shm"


SETTINGS = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestTreeBehavesAsOverlayfs = TreeMachine.TestCase
TestTreeBehavesAsOverlayfs.settings = SETTINGS
TestTreeBehavesAsOverlayfsOnTmpfs = TreeMachineOnTmpfs.TestCase
TestTreeBehavesAsOverlayfsOnTmpfs.settings = SETTINGS
