"""Random operations on a Tree and on kernel overlayfs with the same layers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule, run_state_machine_as_test

from snapfs.overlay import Tree, TreeSpec
from tests.support.overlay.census import Census, of_tree
from tests.support.overlay.files import OnTree
from tests.support.overlay.kernel import image_fs, tmpfs
from tests.support.overlay.machine import Candidate, OverlayMachine

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(600)]


class TreeCandidate(Candidate):
    def __init__(self, lowers: list[Path], upper: Path, work: Path, *, metacopy: bool) -> None:
        spec = TreeSpec(7, tuple(lowers), upper, work, sync=False, metacopy=metacopy)
        self.tree = Tree(spec)
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
    metacopy = False

    def open(self, lowers: list[Path], upper: Path, work: Path) -> Candidate:
        return TreeCandidate(lowers, upper, work, metacopy=self.metacopy)


class MetacopyMachine(TreeMachine):
    """With copies of metadata only; now and then none are made, and all that are there found."""

    @initialize(metacopy=st.sampled_from((True, True, False)))
    def choose(self, metacopy: bool) -> None:
        self.metacopy = metacopy

    @rule()
    def reopen(self) -> None:
        self.metacopy = not self.metacopy
        super().reopen()


SETTINGS = settings(
    max_examples=100,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestTreeBehavesAsOverlayfs = TreeMachine.TestCase
TestTreeBehavesAsOverlayfs.settings = SETTINGS
TestMetacopiesBehaveAsOverlayfs = MetacopyMachine.TestCase
TestMetacopiesBehaveAsOverlayfs.settings = SETTINGS


@pytest.mark.parametrize("base", [TreeMachine, MetacopyMachine])
@pytest.mark.parametrize("kind", ["tmpfs", "xfs", "btrfs"])
def test_a_tree_behaves_as_overlayfs_on_other_file_systems(
    tmp_path: Path, kind: str, base: type[TreeMachine]
) -> None:
    mounted = tmpfs(tmp_path / kind) if kind == "tmpfs" else image_fs(tmp_path, kind)

    class Machine(base):  # type: ignore[misc,valid-type]
        pass

    with mounted as directory:
        Machine.base_directory = str(directory)
        run_state_machine_as_test(Machine, settings=settings(SETTINGS, max_examples=40))
