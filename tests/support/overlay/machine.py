"""One state machine for all that claims to be an overlay: random operations against the kernel's.

A subclass says how the tree under test is mounted or opened on given layers.
"""

from __future__ import annotations

import abc
import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.support.daemon import eventually

from .census import Census, differences, of_mount
from .files import Files, Held, OnMount
from .kernel import overlay
from .operations import (
    OLD_NS,
    SEED,
    Operation,
    Pick,
    apply,
    build_layers,
    listing,
    may_follow,
    outcome,
    picks,
    programs,
)


class Candidate(abc.ABC):
    """A tree under test on the layers it was given."""

    files: Files

    @abc.abstractmethod
    def census(self) -> Census:
        """What the tree shows."""

    @abc.abstractmethod
    def forget(self) -> None:
        """Drop what is cached and not in use."""

    @abc.abstractmethod
    def close(self, *, settle: bool) -> None:
        """Let go of the layers; with `settle` the upper one is to stand for itself."""


class OverlayMachine(RuleBasedStateMachine):
    """Applies the same operations to a candidate and to a kernel overlay of the same layers."""

    base_directory: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="overlay-", dir=self.base_directory))
        self.stack = ExitStack()
        self.held: list[tuple[Held, Held]] = []

    def open(self, lowers: list[Path], upper: Path, work: Path) -> Candidate:
        raise NotImplementedError

    @initialize(layered=st.lists(programs(), min_size=1, max_size=4))
    def build(self, layered: list[list[Operation]]) -> None:
        self.lowers = build_layers(self.base, [[*SEED, *layered[0]], *layered[1:]])
        for name in ("upper", "work", "own-upper", "own-work"):
            (self.base / name).mkdir()
        self.reference = self.base / "reference"
        self.mount_reference()
        self.open_candidate()
        self.compare()

    def mount_reference(self) -> None:
        upper, work = self.base / "upper", self.base / "work"
        self.stack.enter_context(overlay(self.reference, self.lowers, upper, work))
        self.expected = OnMount(self.reference)

    def open_candidate(self) -> None:
        upper, work = self.base / "own-upper", self.base / "own-work"
        self.candidate = self.open(self.lowers, upper, work)

    @rule(program=programs(min_size=1, max_size=8))
    def operate(self, program: list[Operation]) -> None:
        for drawn in program:
            operation = drawn.resolve(self.reference)
            if operation is None:
                continue
            expected = refusal_of(operation, apply(self.expected, operation))
            got = apply(self.candidate.files, operation)
            assert got == expected, f"{operation}: {got}, overlayfs says {expected}"
            if operation.name == "rename" and expected == "ENOTEMPTY":
                self.level_times(operation.arguments[0])

    def level_times(self, path: bytes) -> None:
        """Overlayfs copies up before it refuses a rename, which changes the parent's time."""
        for files in (self.expected, self.candidate.files):
            files.utime(os.path.dirname(path), OLD_NS, OLD_NS)

    @rule(pick=picks("file", "file", "any"))
    def hold(self, pick: Pick) -> None:
        path = pick.resolve(*listing(self.reference))
        if not may_follow(self.reference, path):
            return
        pair: list[Held] = []
        expected = outcome(lambda: pair.append(self.expected.hold(path)))
        got = outcome(lambda: pair.append(self.candidate.files.hold(path)))
        assert got == expected, f"open {path!r}: {got}, overlayfs says {expected}"
        if len(pair) == 2:
            self.held.append((pair[0], pair[1]))

    @precondition(lambda self: self.held)
    @rule(index=st.integers(0, 99), content=st.binary(max_size=8))
    def append_to_held(self, index: int, content: bytes) -> None:
        expected, got = self.held[index % len(self.held)]
        expected.append(content)
        got.append(content)
        assert got.content() == expected.content()

    @rule()
    def forget(self) -> None:
        self.candidate.forget()

    @rule()
    def compare(self) -> None:
        assert_same(of_mount(self.reference), self.candidate.census())

    @rule()
    def reopen(self) -> None:
        """Both trees are closed and opened again."""
        self.release_held()
        before = self.candidate.census()
        self.candidate.close(settle=False)
        self.stack.close()
        self.mount_reference()
        self.open_candidate()
        assert_same(before, self.candidate.census())

    def release_held(self) -> None:
        for expected, got in self.held:
            assert got.content() == expected.content()
            expected.close()
            got.close()
        self.held.clear()

    def teardown(self) -> None:
        try:
            if hasattr(self, "candidate"):
                self.finish()
        finally:
            self.stack.close()
            shutil.rmtree(self.base)

    def finish(self) -> None:
        """At the end: equal trees, and the kernel reads the candidate's layers the same."""
        self.compare()
        self.release_held()
        expected = of_mount(self.reference)
        self.candidate.close(settle=True)
        lowers = [self.base / "own-upper", *self.lowers]
        with overlay(self.base / "check", lowers) as check:
            # Without an index, overlayfs does not know which names of a lower file are hidden.
            assert_same(expected, of_mount(check), leave_out=("nlink",))
        # The kernel says late that it forgets what was closed last.
        eventually(lambda: not leftovers(self.base / "own-work"), what="an empty work directory")


def refusal_of(operation: Operation, outcome: str) -> str:
    """Return `outcome` of the kernel's overlay, in one word for all lower file systems.

    A plain rename onto a directory that is not empty is refused by the upper file system itself:
    xfs says EEXIST, the others ENOTEMPTY (rename(2) allows both).
    """
    if operation.name == "rename" and operation.arguments[2] == 0 and outcome == "EEXIST":
        return "ENOTEMPTY"
    return outcome


def assert_same(expected: Census, got: Census, *, leave_out: tuple[str, ...] = ()) -> None:
    """Fail with every difference."""
    found = differences(expected, got, leave_out=leave_out)
    assert not found, "\n".join(found)


def leftovers(work: Path) -> list[str]:
    """Half-made files in a work directory that nobody uses."""
    return [path.name for path in (work / "snapfs").glob("[tol]*") if os.path.lexists(path)]
