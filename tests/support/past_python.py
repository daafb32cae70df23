"""What tests of names that change without Python have in common: a tree, and what is counted."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from snapfs.fuse.modes import Mode
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
