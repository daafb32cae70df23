"""Layer directories that somebody removes under mounts: errors, no wrong data, others served."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from snapfs.model import FailedPrecondition
from tests.support import lanes
from tests.support.lanes import House, Tree, drop_dentries

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.slow]

DATA = os.urandom(100_000)


def set_up(layer: Path) -> None:
    (layer / "dir").mkdir()
    (layer / "dir" / "lower").write_bytes(DATA)
    (layer / "known").write_bytes(DATA)


@pytest.fixture(params=[Mode.PASSTHROUGH, Mode.NO_OPEN])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[House]:
    with lanes.house(tmp_path / "house", mode=request.param) as made:
        yield made


@pytest.fixture
def other(house: House) -> Iterator[Tree]:
    """A snapshot beside it, which is served before and after by the same worker."""
    made, worker = house.active(set_up), house.worker().pid
    (made / "before").write_bytes(DATA)
    yield made
    (made / "dir" / "lower").write_bytes(b"copied up")
    assert (made / "before").read_bytes() == (made / "known").read_bytes() == DATA
    assert house.worker().pid == worker
    house.snapshots.commit(made.key, "other")
    assert (house.on("other") / "dir" / "lower").read_bytes() == b"copied up"


def gone(call: Callable[[], object]) -> None:
    with pytest.raises(FileNotFoundError):
        call()


@contextmanager
def in_use(tree: Tree) -> Iterator[None]:
    """The tree stays open in the block, whatever the kernel forgets."""
    fd = os.open(tree.path, os.O_PATH | os.O_DIRECTORY)
    try:
        yield
    finally:
        os.close(fd)


def missing(house: House) -> list[str]:
    """Return which layers a check says are gone."""
    problems = house.snapshots.fsck().problems
    assert all(it.kind == "missing-directory" for it in problems)
    return [it.subject for it in problems]


def test_upper_layer_that_is_removed_takes_changes_no_more(house: House, other: Tree) -> None:
    tree = house.active(set_up)
    (tree / "upper").write_bytes(DATA)
    with in_use(tree):
        shutil.rmtree(tree.upper.parent)
        drop_dentries()
        assert (tree / "dir" / "lower").read_bytes() == DATA
        for call in (
            (tree / "upper").read_bytes,
            lambda: (tree / "new").write_bytes(DATA),
            lambda: (tree / "dir" / "lower").chmod(0o600),
            (tree / "known").unlink,
            (tree / "dir" / "new").mkdir,
        ):
            gone(call)
    assert missing(house) == [f"snapshot '{tree.key}'"]
    with pytest.raises(FailedPrecondition, match=r"cannot commit .*/fs\).*; run `snapfs fsck`"):
        house.snapshots.commit(tree.key, "done")
    house.snapshots.remove(tree.key)
    assert house.snapshots.fsck().clean


def test_lower_layer_that_is_removed_is_missed_and_nothing_else(house: House, other: Tree) -> None:
    tree = house.active(set_up)
    base = house.snapshots.stat(house.snapshots.stat(tree.key).parent)
    (tree / "upper").write_bytes(DATA)
    shutil.rmtree(house.layer(base.id).parent)
    drop_dentries()
    for call in (
        (tree / "dir" / "lower").read_bytes,
        lambda: (tree / "dir" / "lower").chmod(0o600),
        (tree / "dir" / "new").mkdir,
    ):
        gone(call)
    assert (tree / "upper").read_bytes() == DATA
    (tree / "new").write_bytes(DATA)
    assert missing(house) == [f"snapshot '{base.name}'"]
    with pytest.raises(FailedPrecondition, match="run `snapfs fsck`"):
        house.snapshots.prepare("late", base.name)
    house.snapshots.remove(tree.key)
    house.snapshots.remove(base.name)
    assert house.snapshots.fsck().clean
