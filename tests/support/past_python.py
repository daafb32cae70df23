"""What tests of names that change without Python have in common: a tree, and what is counted."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from snapfs.fuse.modes import Mode
from snapfs.model import Usage
from snapfs.snapshots.usage import measure
from tests.support.daemon import eventually
from tests.support.lanes import House, Tree, drop_dentries


def fill(layer: Path) -> None:
    (layer / "lower").write_text("lower")
    (layer / "merged").mkdir()
    (layer / "merged" / "hidden").write_text("hidden")


@contextmanager
def without_python(house: House, operation: str, count: int) -> Iterator[None]:
    """The block has so many requests of a kind answered without Python, and no more."""

    def answered() -> int:
        return Counter(house.worker().answered)[operation]

    before = answered()
    yield
    assert answered() == before + count


def end_of_opens(house: House) -> None:
    """Return when nothing is open; of a lane without opens: when the kernel has forgotten it."""

    def is_over() -> bool:
        if house.mode is Mode.NO_OPEN:
            drop_dentries()
        return house.worker().files == 0

    eventually(is_over, what="the releases")


def fresh(tree: Tree, name: str) -> Path:
    """A new directory that has been asked for a name since."""
    directory = tree / name
    directory.mkdir()
    assert not (directory / "absent").exists()
    return directory


def kept(tree: Tree) -> list[str]:
    """What the work directory keeps for those who still use it."""
    names = os.listdir(tree.upper.parent / "work" / "snapfs")
    return [name for name in names if name.startswith("o")]


def listed(directory: Path) -> dict[str, os.stat_result]:
    """List a directory, so that the kernel knows what is in it."""
    with os.scandir(directory) as entries:
        return {it.name: it.stat(follow_symlinks=False) for it in entries}


def begun(directory: Path, first: str) -> dict[str, os.stat_result]:
    """Let Python copy the first file of a directory up."""
    found = listed(directory)
    (directory / first).chmod(found[first].st_mode & 0o7777)
    return found


def assert_usage_is_a_walk(house: House, tree: Tree) -> None:
    """The kernel may let go of the tree at any time: it is then opened and counted again."""

    def ask() -> Usage | None:
        list(tree.path.iterdir())
        return house.lane.usage(tree.id)

    os.sync()  # blocks move when they are written
    assert eventually(ask, what="a count") == measure(tree.upper)
