"""Copies of an upper layer that goes on: each shows what the tree showed when it was made."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from snapfs.overlay import LayerCopy, has_changed, stamps
from tests.overlay.test_changes_against_the_kernel import MetacopyMachine
from tests.support.overlay.census import Census, of_mount
from tests.support.overlay.kernel import image_fs, overlay
from tests.support.overlay.machine import assert_same

pytestmark = [pytest.mark.root]


class Copies:
    """Copies of one upper, each over the one before or whole."""

    def __init__(self, base: Path, upper: Path, lowers: list[Path]) -> None:
        self.base = base
        self.upper = upper
        self.lowers = lowers
        self.chain: list[Path] = []
        self.known: bytes | None = None
        self.count = 0

    def make(self, *, whole: bool = False, warm: bool = True) -> LayerCopy:
        if whole:
            self.chain, self.known = [], None
        self.count += 1
        target, spare = self.base / f"copy{self.count}", self.base / f"spare{self.count}"
        target.mkdir()
        spare.mkdir()
        copy = LayerCopy(self.upper, self.lowers, target, spare, self.known)
        if warm:
            copy.warm()
        copy.make()
        self.known = copy.known()
        copy.clear()
        assert not list(spare.iterdir())
        self.chain.insert(0, target)
        return copy

    def shown(self) -> Census:
        """What the kernel shows of the last copy, above what it goes over."""
        with overlay(self.base / "shown", [*self.chain, *self.lowers]) as mounted:
            return of_mount(mounted)


class CopyingMachine(MetacopyMachine):
    """Copies now and then, between any operations."""

    @rule(whole=st.integers(0, 4), warm=st.booleans())
    def copy(self, whole: int, warm: bool) -> None:
        if not hasattr(self, "copies"):
            self.copies = Copies(self.base, self.base / "own-upper", self.lowers)
        self.candidate.tree.settle()
        self.copies.make(whole=whole == 0, warm=warm)
        assert_same(of_mount(self.reference), self.copies.shown(), leave_out=("nlink",))
        last = self.copies.chain, self.copies.known or b""
        assert not has_changed(self.copies.upper, last)

    @rule()
    def compare(self) -> None:
        """Settling a layer tells how many names a file has left, which the kernel never knows."""
        assert_same(of_mount(self.reference), self.candidate.census(), leave_out=("nlink",))

    def finish(self) -> None:
        self.copy(whole=1, warm=True)


SETTINGS = settings(
    max_examples=20,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_each_copy_shows_what_the_tree_showed() -> None:
    run_state_machine_as_test(CopyingMachine, settings=SETTINGS)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_each_copy_shows_what_the_tree_showed_where_files_are_cloned(tmp_path: Path) -> None:
    class Machine(CopyingMachine):
        pass

    with image_fs(tmp_path, "xfs") as directory:
        Machine.base_directory = str(directory)
        run_state_machine_as_test(Machine, settings=settings(SETTINGS, max_examples=5))


@pytest.fixture
def copies(stack, tmp_path: Path) -> Copies:
    made = stack({"below/a": b"a", "below/b": b"b"})
    base = tmp_path / "copies"
    base.mkdir()
    found = Copies(base, made.upper, made.lowers)
    found.files = made.files  # type: ignore[attr-defined]
    return found


def age(copies: Copies) -> None:
    """Let what the upper has look old enough to be recognised again."""
    known = stamps.decode(copies.known or b"")
    for path in known:
        real = os.lstat(os.fsencode(copies.upper) + b"/" + path)
        known[path] = known[path]._replace(ctime_ns=real.st_ctime_ns, fresh=False)
    copies.known = stamps.encode(known)


def test_a_copy_over_another_has_only_what_changed(copies: Copies) -> None:
    for number in range(20):
        copies.files.create(b"f%d" % number, 0o644, b"x" * 1000)
    assert copies.make().copied_files == 20
    age(copies)
    copies.files.write(b"f3", 0, b"changed")
    copies.files.unlink(b"f4")
    second = copies.make()
    assert (second.copied_files, second.copied_bytes) == (1, 1000)
    assert sorted(path.name for path in copies.chain[0].iterdir()) == ["f3", "f4"]
    assert copies.shown()[b"f3"].content == b"changed" + b"x" * 993
    assert b"f4" not in copies.shown()


def test_what_changed_within_a_tick_of_the_clock_is_copied_again(copies: Copies) -> None:
    """Its time may stay the same although it changes again."""
    copies.files.create(b"file", 0o644, b"one")
    copies.make()
    assert copies.make().copied_files == 1


def test_a_moved_directory_is_copied_with_all_it_shows(copies: Copies) -> None:
    copies.make()
    copies.files.write(b"below/a", 0, b"A")
    copies.make()
    copies.files.rename(b"below", b"moved", 0)
    copies.files.unlink(b"moved/b")
    copies.make()
    shown = copies.shown()
    assert shown[b"moved/a"].content == b"A"
    assert not {b"below", b"moved/b"} & shown.keys()
    assert os.getxattr(copies.chain[0] / "moved", "trusted.overlay.opaque") == b"y"


def test_a_moved_directory_is_copied_with_the_directories_in_it(copies: Copies) -> None:
    (copies.lowers[0] / "below" / "deep" / "deeper").mkdir(parents=True)
    (copies.lowers[0] / "below" / "deep").chmod(0o750)
    os.setxattr(copies.lowers[0] / "below" / "deep", "user.is", b"deep")
    copies.make()
    copies.files.rename(b"below", b"moved", 0)
    copies.make()
    shown = copies.shown()
    assert {b"moved/a", b"moved/deep/deeper"} <= shown.keys()
    deep = copies.chain[0] / "moved" / "deep"
    assert deep.stat().st_mode & 0o777 == 0o750
    assert os.getxattr(deep, "user.is") == b"deep"


def test_a_layer_has_changed_when_anything_in_it_has(copies: Copies) -> None:
    copies.files.create(b"file", 0o644, b"one")
    copies.files.mkdir(b"directory", 0o755)
    assert has_changed(copies.upper, None)
    copies.make()
    last = copies.chain[0]

    def changed() -> bool:
        return has_changed(copies.upper, ((last,), copies.known or b""))

    assert not changed()
    copies.files.create(b"directory/other", 0o644, b"")
    assert changed()
    copies.files.unlink(b"directory/other")
    copies.make()
    last = copies.chain[0]
    assert not changed()
    copies.files.write(b"file", 0, b"two")
    assert changed()


@pytest.mark.parametrize(
    ("path", "change"),
    [
        *product(["", "directory", "file"], ["owner", "mode", "attribute"]),
        *product(["link"], ["owner", "attribute"]),
    ],
)
@pytest.mark.parametrize("aged", [True, False])
def test_a_layer_has_changed_when_attributes_in_it_have(
    copies: Copies, path: str, change: str, aged: bool
) -> None:
    copies.files.create(b"file", 0o644, b"one")
    copies.files.symlink(b"file", b"link")
    copies.files.mkdir(b"directory", 0o755)
    copies.make()
    if aged:
        age(copies)
    last, known = copies.chain[0], copies.known or b""
    there = copies.upper / path
    ctime_ns = os.lstat(there).st_ctime_ns
    if change == "owner":
        os.chown(there, 7, 7, follow_symlinks=False)
    elif change == "mode":
        there.chmod(0o701)
    else:
        os.setxattr(there, "trusted.is", b"other", follow_symlinks=False)
    if not aged:  # a change in the tick of the clock in which the copy was made
        found = stamps.decode(known)
        now_ns = os.lstat(there).st_ctime_ns
        assert now_ns >= ctime_ns
        changed = found[os.fsencode(path)]._replace(ctime_ns=now_ns, fresh=True)
        known = stamps.encode({**found, os.fsencode(path): changed})
    assert has_changed(copies.upper, ((last,), known))


def test_names_of_one_file_stay_names_of_one_file(copies: Copies) -> None:
    copies.files.create(b"one", 0o644, b"x")
    copies.make()
    copies.files.link(b"one", b"two")
    copies.make()
    assert os.stat(copies.chain[0] / "one").st_ino == os.stat(copies.chain[0] / "two").st_ino


def test_names_of_one_file_stay_so_when_a_directory_of_theirs_moves(copies: Copies) -> None:
    copies.files.mkdir(b"old", 0o755)
    copies.files.create(b"old/one", 0o644, b"x")
    copies.files.link(b"old/one", b"two")
    copies.make()
    age(copies)
    copies.files.rename(b"old", b"new", 0)
    copies.make()
    shown = copies.shown()
    assert shown[b"new/one"].same_file_as == (b"new/one", b"two")
    assert shown[b"two"].same_file_as == (b"new/one", b"two")


def test_names_of_a_lower_file_stay_so_when_a_directory_of_theirs_moves(copies: Copies) -> None:
    os.link(copies.lowers[0] / "below" / "a", copies.lowers[0] / "two")
    copies.files.create(b"other", 0o644, b"x")
    copies.make()
    age(copies)
    copies.files.rename(b"below", b"new", 0)
    copies.make()
    shown = copies.shown()
    assert shown[b"new/a"].same_file_as == (b"new/a", b"two")


def test_what_was_copied_ahead_and_changed_since_is_copied_anew(
    copies: Copies, tmp_path: Path
) -> None:
    copies.files.create(b"file", 0o644, b"before")
    time.sleep(2 * stamps.FRESH_NS / 1e9)  # else it is too fresh to be copied ahead
    target, spare = tmp_path / "target", tmp_path / "spare"
    target.mkdir()
    spare.mkdir()
    copy = LayerCopy(copies.upper, copies.lowers, target, spare, None)
    copy.warm()
    assert len(list(spare.iterdir())) == 1
    copies.files.write(b"file", 0, b"after!")
    copy.make()
    copy.clear()
    assert (target / "file").read_bytes() == b"after!"
    assert not list(spare.iterdir())


@pytest.fixture
def deep(copies: Copies) -> Iterator[bytes]:
    """A path of many directories in the layer, which pytest could not remove afterwards."""
    path = b"/".join([b"d"] * 1500)
    for length in range(1, len(path) + 1, 2):
        os.mkdir(os.fsencode(copies.upper) + b"/" + path[:length])
    yield path
    subprocess.run(["rm", "-rf", copies.upper, *copies.chain], check=True)


def test_a_layer_is_copied_however_deep_its_directories_are(copies: Copies, deep: bytes) -> None:
    file = f"{os.fsdecode(deep)}/file"
    (copies.upper / file).write_text("one")
    copies.make()
    assert (copies.chain[0] / file).read_text() == "one"
    last = [copies.chain[0]], copies.known or b""
    assert not has_changed(copies.upper, last)
    (copies.upper / file).write_text("another")
    assert has_changed(copies.upper, last)
    copies.make()
    assert (copies.chain[0] / file).read_text() == "another"
