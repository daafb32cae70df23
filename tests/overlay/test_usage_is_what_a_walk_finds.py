"""Random operations on a Tree: its usage is what a walk finds, after each of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from snapfs.overlay import Node, Tree, TreeSpec
from snapfs.overlay.quiet import not_written
from snapfs.overlay.usage import Resting, UsageCount
from snapfs.snapshots.durability import settle_blocks
from snapfs.snapshots.usage import blocks_by_inode, measure
from tests.support.overlay.census import Census, of_tree
from tests.support.overlay.files import Held, HeldFd, OnTree
from tests.support.overlay.kernel import image_fs, tmpfs
from tests.support.overlay.machine import Candidate, OverlayMachine
from tests.support.overlay.operations import Operation, Pick, apply, picks

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(900)]

TRIES = 50


class Unseen(HeldFd):
    """A descriptor that writes past the tree, as the kernel does in passthrough."""

    def __init__(self, fd: int, count: UsageCount, node: Node) -> None:
        super().__init__(fd)
        self.count, self.node = count, node

    def close(self) -> None:
        super().close()
        self.count.closed(self.node)


class Followed(OnTree):
    def hold(self, path: bytes) -> Held:
        node, fd = self._open(path, os.O_RDWR)
        self.tree.usage.opened(node, native=True)
        return Unseen(fd, self.tree.usage, node)


class CountedCandidate(Candidate):
    def __init__(
        self, lowers: list[Path], upper: Path, work: Path, *, resumed: bool, metacopy: bool
    ) -> None:
        spec = TreeSpec(
            7, tuple(lowers), upper, work, sync=False, resumed=resumed, metacopy=metacopy
        )
        self.tree = Tree(spec)
        self.files: OnTree = Followed(self.tree)

    def census(self) -> Census:
        return of_tree(self.tree)

    def forget(self) -> None:
        self.files.forget()

    def close(self, *, settle: bool) -> None:
        self.files.forget()
        if settle:
            self.tree.settle()
        self.tree.close()


class UsageMachine(OverlayMachine):
    """The overlay's operations, with counts, walks and syncs in between."""

    resumed = metacopy = False
    left: tuple[int, int] | None = None
    walked: dict[int, int] | None = None
    syncing: list[Resting] | None = None

    @initialize(resumed=st.booleans(), metacopy=st.booleans())
    def choose(self, resumed: bool, metacopy: bool) -> None:
        self.resumed, self.metacopy = resumed, metacopy

    @property
    def count(self) -> UsageCount:
        return self.candidate.tree.usage

    def open(self, lowers: list[Path], upper: Path, work: Path) -> CountedCandidate:
        self.upper = upper
        candidate = CountedCandidate(
            lowers, upper, work, resumed=self.resumed, metacopy=self.metacopy
        )
        count = candidate.tree.usage
        if self.left is None:
            count.begin()
            settle_blocks(upper)
            assert count.finish(blocks_by_inode(upper))
        else:
            count.take(*self.left)
        return candidate

    @rule(
        pick=picks("file", "file", "any"),
        offset=st.sampled_from((0, 5000, 1 << 20)),
        size=st.sampled_from((100, 70_000, 1_500_000)),
    )
    def write_much(self, pick: Pick, offset: int, size: int) -> None:
        wish = Operation("write", (pick, offset, b"x" * size), opens=True).resolve(self.reference)
        if wish is not None:
            assert apply(self.candidate.files, wish) == apply(self.expected, wish)

    @precondition(lambda self: self.held)
    @rule(index=st.integers(0, 99), size=st.sampled_from((5000, 3_000_000)))
    def write_much_unseen(self, index: int, size: int) -> None:
        for held in self.held[index % len(self.held)]:
            os.pwrite(held.fd, b"y" * size, 1 << 16)

    @precondition(lambda self: self.held)
    @rule(index=st.integers(0, 99))
    def release_one(self, index: int) -> None:
        for held in self.held.pop(index % len(self.held)):
            held.close()

    @rule()
    def count_anew(self) -> None:
        self.count.begin()
        self.walked = None

    @precondition(lambda self: hasattr(self, "candidate") and self.count.counting)
    @rule()
    def walk(self) -> None:
        settle_blocks(self.upper)
        self.walked = blocks_by_inode(self.upper)

    @precondition(lambda self: self.walked is not None)
    @rule()
    def end_count(self) -> None:
        assert self.walked is not None
        if self.count.counting:
            assert self.count.finish(self.walked)
        self.walked = None

    @rule()
    def begin_sync(self) -> None:
        self.syncing = not_written(self.count.resting())
        settle_blocks(self.upper)

    @precondition(lambda self: self.syncing is not None)
    @rule()
    def end_sync(self) -> None:
        assert self.syncing is not None
        self.count.rest(self.syncing)
        self.syncing = None

    @rule()
    def sync_and_rest(self) -> None:
        """Afterwards only open files and what is in the work directory are still noted."""
        self.begin_sync()
        self.end_sync()
        busy = {held.node for _, held in self.held}
        aside = {node for node in self.count.nodes() if node.stash is not None}
        assert self.count.counting or self.count.nodes() <= busy | aside

    @rule()
    def reopen(self) -> None:
        """A clean close leaves what the next opening begins with."""
        self.release_held()
        self.syncing = self.walked = None
        self.left = None
        if self.count.known:
            self.sync_and_rest()
            self.left = self.count.sums()
        super().reopen()

    @invariant()
    def usage_is_what_a_walk_finds(self) -> None:
        if hasattr(self, "candidate") and not self.count.counting:
            if not self.count.known:
                self.count.begin()
                settle_blocks(self.upper)
                assert self.count.finish(blocks_by_inode(self.upper))
            assert_same_as_a_walk(self.count, self.upper)


def assert_same_as_a_walk(count: UsageCount, upper: Path) -> None:
    """Blocks move by themselves: the walks before and after the question must agree."""
    for _ in range(TRIES):
        before, said, after = measure(upper), count.usage(), measure(upper)
        if before == after:
            assert said == after
            return
    raise AssertionError("the layer does not hold still")


SETTINGS = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@contextlib.contextmanager
def file_system(base: Path, kind: str) -> Iterator[Path]:
    mounted = tmpfs(base / kind) if kind == "tmpfs" else image_fs(base, kind)
    with mounted as directory:
        yield directory


@pytest.mark.parametrize("kind", ["ext4", "tmpfs", "xfs", "btrfs"])
def test_usage_is_what_a_walk_finds(tmp_path: Path, kind: str) -> None:
    class Machine(UsageMachine):
        pass

    with file_system(tmp_path, kind) as directory:
        Machine.base_directory = str(directory)
        run_state_machine_as_test(Machine, settings=SETTINGS)
